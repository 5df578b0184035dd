/** How much a FUSE session takes at a time. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import * as fuse from "../../../../src/abi/fuse.ts";
import { readArgs, writeArgs } from "../../../support/fuse-kernel.ts";
import { FuseRig } from "../../../support/fuse-rig.ts";
import { ENGINES } from "../../../support/reactor.ts";

const PATTERN = Uint8Array.from({ length: 70_000 }, (_, i) => i % 251);

for (const engine of ENGINES) {
  describe(`limits of a FuseSession on ${engine}`, () => {
    let rig: FuseRig;

    beforeEach(() => {
      rig = new FuseRig(engine);
    });
    afterEach(async () => {
      await rig.end();
      expect(rig.node.waitingCount).toBe(0);
    });

    test("a slow request holds up no other", async () => {
      rig.node.data.set(PATTERN);
      rig.node.hold();
      const slow = rig.send(fuse.FUSE_READ, readArgs(0, 4096));
      expect((await rig.request(fuse.FUSE_GETATTR)).error).toBe(0);
      expect(rig.replies.size).toBe(0);
      rig.node.go();
      expect((await rig.reply(slow)).data).toEqual(PATTERN.subarray(0, 4096));
    });

    test("takes a bounded number of requests, and the rest when some have ended", async () => {
      rig.node.hold();
      const sent = Array.from({ length: 200 }, () => rig.send(fuse.FUSE_READ, readArgs(0, 512)));
      await rig.turns(20);
      expect(rig.node.waitingCount).toBe(128);
      rig.node.go();
      for (const unique of sent) expect((await rig.reply(unique)).error).toBe(0);
      expect(rig.isClean).toBe(true);
    });

    test("leaves request slots to others, and goes on when it has less itself", async () => {
      const { requests } = rig.reactor;
      const others: number[] = [];
      const owner = { onRequestDone: () => {} };
      while (requests.capacity - requests.inUse > 10) others.push(requests.allocate(owner));
      rig.node.hold();
      const sent = Array.from({ length: 20 }, () => rig.send(fuse.FUSE_READ, readArgs(0, 512)));
      await rig.turns(20);
      expect(rig.node.waitingCount).toBe(5);
      // These are no news for the session.
      for (const slot of others) requests.free(slot);
      await rig.turns(20);
      rig.node.go();
      for (const unique of sent) expect((await rig.reply(unique)).error).toBe(0);
      expect(rig.isClean).toBe(true);
    });

    test("holds a part of the buffers only", async () => {
      rig.node.hold();
      const { buffers } = rig.reactor;
      const sent = Array.from({ length: 6 }, (_, i) =>
        rig.send(fuse.FUSE_WRITE, writeArgs(i * 70_000, PATTERN)),
      );
      await rig.turns(20);
      expect(buffers.bytesInUse).toBeLessThanOrEqual(buffers.bytesMax / 4);
      expect(rig.node.waitingCount).toBeLessThan(6);
      rig.node.go();
      for (const unique of sent) expect((await rig.reply(unique)).error).toBe(0);
      expect(rig.isClean).toBe(true);
    });
  });
}
