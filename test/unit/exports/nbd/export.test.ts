import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  NBD_CMD_DISC,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
} from "../../../../src/abi/nbd.ts";
import { file } from "../../../../src/block/drivers/file/index.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../../../src/block/node.ts";
import { openContext } from "../../../support/block.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { KiB, MiB, pattern } from "../../../support/images.ts";
import { NbdRig, type Peer } from "../../../support/nbd-rig.ts";
import { request } from "../../../support/nbd-wire.ts";
import { Random, randomSeed } from "../../../support/random.ts";
import { ENGINES, runOn } from "../../../support/reactor.ts";

const MODES = ["simple", "structured", "extended"] as const;
/** Each peer has a part of the disk. */
const PART_BYTES = MiB;

setDefaultTimeout(180_000);

let rig: NbdRig;

// Every test ends here: with no buffer, slot, operation or descriptor left.
afterEach(async () => {
  await rig.end();
  expect(rig.fdsLeft).toBeLessThanOrEqual(0);
});

function write(peer: Peer, offset: number, payload: Uint8Array): number {
  const flags = peer.mode === "extended" ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
  return peer.request(NBD_CMD_WRITE, offset, payload.length, { flags, payload });
}

async function serveFile(path: string): Promise<void> {
  const { reactor } = rig;
  const node = await runOn(reactor, () =>
    file.open(openContext(reactor, { options: { filename: path } })),
  );
  await node.setPermissions(PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
  rig.serve(node);
}

for (const engine of ENGINES) {
  describe(`NbdExport on ${engine}`, () => {
    beforeEach(() => {
      rig = new NbdRig(engine);
    });

    test("keeps every request of its clients when it moves again and again", async () => {
      const folder = mkdtempSync(join(tmpdir(), "outport-export-"));
      const path = join(folder, "image");
      const content = pattern(MODES.length * PART_BYTES);
      writeFileSync(path, content);
      await serveFile(path);
      const random = new Random(randomSeed());
      const peers = MODES.map((mode) => rig.peer(mode));
      for (const peer of peers) peer.sendBytesMax = 70_001;
      const maybeMove = async () => {
        if (random.below(3) === 0) await rig.moveSoon();
      };
      for (let round = 0; round < 150; round++) {
        const [index, start] = [round % 3, (round % 3) * PART_BYTES];
        const peer = peers[index]!;
        const bytes = 1 + random.below(random.chance(0.5) ? 8 * KiB : 300 * KiB);
        const offset = start + random.below(PART_BYTES - bytes);
        const payload = pattern(bytes, random.below(200));
        content.set(payload, offset);
        const written = write(peer, offset, payload);
        const read = peer.request(NBD_CMD_READ, start, PART_BYTES);
        for (let i = random.below(3); i > 0; i--) await rig.turn();
        await maybeMove();
        // Replies come in any order: this write may not be what the read has seen.
        await rig.until(() => peer.pending === 0, "both replies");
        expect(peer.replies.get(written)!.error).toBe(0);
        expect(peer.replies.get(read)!.error).toBe(0);
        const again = peer.request(NBD_CMD_READ, start, PART_BYTES);
        await maybeMove();
        await rig.until(() => peer.pending === 0, "the reply to the second read");
        const data = peer.replies.get(again)!.data();
        expect(Buffer.compare(data, content.subarray(start, start + PART_BYTES))).toBe(0);
      }
      rmSync(folder, { recursive: true });
    });

    test("takes along what clients have sent of their next requests", async () => {
      rig.serve(new FakeNode(rig.reactor, MiB));
      const peer = rig.peer("simple");
      await rig.settle();
      const whole = request({ type: NBD_CMD_READ, flags: 0, cookie: 1, offset: 0, length: 4096 });
      for (let sent = 0; sent < whole.length; sent += 5) {
        if (sent === 0) peer.request(NBD_CMD_READ, 0, 4096);
        peer.unsend();
        peer.push(whole.subarray(sent, sent + 5));
        await rig.settle(3);
        expect(await rig.move()).toBe(true);
      }
      await rig.until(() => peer.replies.has(1), "the reply");
      expect(peer.replies.get(1)!.error).toBe(0);
    });

    test("waits for requests under way, and starts none meanwhile", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      rig.serve(node);
      const peer = rig.peer("structured");
      node.hold();
      const first = peer.request(NBD_CMD_READ, 0, 4096);
      await rig.until(() => node.waitingCount === 1);
      const moving = rig.move();
      await rig.settle();
      const second = peer.request(NBD_CMD_READ, 0, 4096);
      await rig.settle();
      expect(node.waitingCount).toBe(1);
      node.go();
      expect(await moving).toBe(true);
      await rig.until(() => peer.replies.has(first) && peer.replies.has(second), "both replies");
    });

    test("stays when a client is in the middle of a request, and serves it on", async () => {
      rig.serve(new FakeNode(rig.reactor, MiB));
      const [slow, quick] = [rig.peer("simple"), rig.peer("structured")];
      const cookie = write(slow, 0, pattern(8 * KiB));
      slow.sendBytesMax = 100;
      await rig.turn();
      slow.sendBytesMax = 0;
      expect(await rig.move()).toBe(false);
      slow.sendBytesMax = Infinity;
      await rig.until(() => slow.replies.has(cookie), "the reply to the write");
      expect((await rig.ask(quick, NBD_CMD_READ, 0, 512)).error).toBe(0);
      expect(await rig.move()).toBe(true);
    });

    test("stays when a client does not take its replies", async () => {
      rig.serve(new FakeNode(rig.reactor, 4 * MiB));
      const peer = rig.peer("simple");
      peer.reads = false;
      const cookies = [0, 1, 2, 3].map((i) => peer.request(NBD_CMD_READ, i * MiB, MiB));
      await rig.settle(100);
      expect(await rig.move()).toBe(false);
      peer.reads = true;
      await rig.until(() => cookies.every((cookie) => peer.replies.has(cookie)), "the replies");
      expect(await rig.move()).toBe(true);
    });

    test("moves without a client that leaves meanwhile", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      rig.serve(node);
      const [gone, goodbye, stays] = [rig.peer("simple"), rig.peer("simple"), rig.peer("simple")];
      node.hold();
      for (const peer of [gone, goodbye]) peer.request(NBD_CMD_READ, 0, 4096);
      await rig.until(() => node.waitingCount === 2);
      goodbye.request(NBD_CMD_DISC, 0, 0);
      await rig.settle();
      const moving = rig.move();
      await rig.settle();
      gone.close();
      node.go();
      expect(await moving).toBe(true);
      expect((await rig.ask(stays, NBD_CMD_READ, 0, 512)).error).toBe(0);
      await rig.until(() => rig.connections.count === 1 && goodbye.ended, "the leave of both");
    });
  });
}
