import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOSPC,
  NBD_EPERM,
} from "../../../../src/abi/nbd.ts";
import type { OpenContext } from "../../../../src/block/driver.ts";
import { file } from "../../../../src/block/drivers/file/index.ts";
import {
  type BlockNode,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_WRITE,
} from "../../../../src/block/node.ts";
import { NONE } from "../../../../src/io/requests.ts";
import { EIO, ENOSPC } from "../../../../src/runtime/errno.ts";
import { openContext } from "../../../support/block.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { KiB, MiB, pattern } from "../../../support/images.ts";
import { NbdRig, type Peer } from "../../../support/nbd-rig.ts";
import { concat, request } from "../../../support/nbd-wire.ts";
import { ENGINES, runOn } from "../../../support/reactor.ts";

const MODES = ["simple", "structured", "extended"] as const;
/** What a request may carry. */
const LONGEST = 32 * MiB;

setDefaultTimeout(180_000);

let folder: string;
let rig: NbdRig;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "outport-connection-"));
});

// Every test ends here: with no buffer, slot, operation or descriptor left.
afterEach(async () => {
  await rig.end();
  expect(rig.fdsLeft).toBeLessThanOrEqual(0);
  rmSync(folder, { recursive: true });
});

function same(actual: Uint8Array, expected: Uint8Array): void {
  expect(actual.length).toBe(expected.length);
  expect(Buffer.compare(actual, expected)).toBe(0);
}

function image(content: Uint8Array): string {
  const path = join(folder, "image");
  writeFileSync(path, content);
  return path;
}

async function openFile(filename: string, more: Partial<OpenContext> = {}): Promise<BlockNode> {
  const { reactor } = rig;
  const node = await runOn(reactor, () =>
    file.open(openContext(reactor, { options: { filename }, ...more })),
  );
  await node.setPermissions(PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL);
  return node;
}

/** A write as each mode wants it. */
function write(peer: Peer, offset: number, payload: Uint8Array, flags = 0): number {
  const all = peer.mode === "extended" ? flags | NBD_CMD_FLAG_PAYLOAD_LEN : flags;
  return peer.request(NBD_CMD_WRITE, offset, payload.length, { flags: all, payload });
}

async function errorOf(peer: Peer, cookie: number): Promise<number> {
  await rig.until(() => peer.replies.has(cookie) || peer.ended, "a reply");
  return peer.replies.get(cookie)?.error ?? -1;
}

for (const engine of ENGINES) {
  describe(`NbdConnection on ${engine}`, () => {
    beforeEach(() => {
      rig = new NbdRig(engine);
    });

    for (const mode of MODES) {
      test(`carries the longest requests with ${mode} replies`, async () => {
        const content = pattern(LONGEST + 4 * KiB);
        const path = image(content);
        rig.serve(await openFile(path));
        const peer = rig.peer(mode);
        same((await rig.ask(peer, NBD_CMD_READ, 4 * KiB, LONGEST)).data(), content.subarray(4096));
        const next = pattern(LONGEST, 7);
        expect(await errorOf(peer, write(peer, 0, next, NBD_CMD_FLAG_FUA))).toBe(0);
        const odd = pattern(LONGEST - 513, 8);
        expect(await errorOf(peer, write(peer, 513, odd))).toBe(0);
        const read = await rig.ask(peer, NBD_CMD_READ, 0, LONGEST, { flags: NBD_CMD_FLAG_FUA });
        same(read.data(), concat(next.subarray(0, 513), odd));
        same(readFileSync(path).subarray(0, LONGEST), read.data());
      });

      test(`answers requests of no bytes with ${mode} replies`, async () => {
        rig.serve(new FakeNode(rig.reactor, 4 * KiB));
        const peer = rig.peer(mode);
        const types = [NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE];
        for (const type of [...types, NBD_CMD_WRITE_ZEROES]) {
          for (const offset of [0, 4 * KiB]) {
            for (const flags of [0, NBD_CMD_FLAG_FUA]) {
              const reply = await rig.ask(peer, type, offset, 0, { flags });
              expect([type, offset, reply.error]).toEqual([type, offset, 0]);
              if (type === NBD_CMD_READ) expect(reply.data().length).toBe(0);
            }
          }
        }
        expect((await rig.ask(peer, NBD_CMD_BLOCK_STATUS, 0, 0)).error).toBe(NBD_EINVAL);
      });

      test(`refuses a write that is too long, then ends, with ${mode} replies`, async () => {
        rig.serve(new FakeNode(rig.reactor, 64 * MiB));
        const peer = rig.peer(mode);
        const bytes = LONGEST + 1;
        const flags = mode === "extended" ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
        expect((await rig.ask(peer, NBD_CMD_WRITE, 0, bytes, { flags })).error).toBe(NBD_EINVAL);
        await rig.until(() => peer.ended);
        const other = rig.peer(mode);
        expect((await rig.ask(other, NBD_CMD_READ, 0, bytes)).error).toBe(NBD_EINVAL);
        expect((await rig.ask(other, NBD_CMD_READ, 0, 512)).error).toBe(0);
      });

      test(`takes ${mode} requests and payloads byte by byte`, async () => {
        const node = new FakeNode(rig.reactor, 256 * KiB);
        rig.serve(node);
        const peer = rig.peer(mode);
        peer.sendBytesMax = 1;
        const short = write(peer, 100, pattern(33));
        const refused = write(peer, 256 * KiB, pattern(70));
        const read = peer.request(NBD_CMD_READ, 90, 60);
        expect(await errorOf(peer, short)).toBe(0);
        expect(await errorOf(peer, refused)).toBe(NBD_ENOSPC);
        await rig.until(() => peer.replies.has(read));
        same(peer.replies.get(read)!.data(), node.data.subarray(90, 150));
      });

      test(`takes a long ${mode} write in odd pieces`, async () => {
        const path = image(new Uint8Array(512 * KiB));
        rig.serve(await openFile(path));
        const peer = rig.peer(mode);
        const data = pattern(256 * KiB);
        for (const sendBytesMax of [997, 4095, 70_001]) {
          peer.sendBytesMax = sendBytesMax;
          expect(await errorOf(peer, write(peer, 8 * KiB, data))).toBe(0);
          same(readFileSync(path).subarray(8 * KiB, 264 * KiB), data);
          data.reverse();
        }
      });
    }

    test("keeps few commands in hand while half of all requests are in use", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      node.hold();
      rig.serve(node);
      const { requests } = rig.reactor;
      const owner = { onRequestDone: () => {} };
      const taken: number[] = [];
      while (requests.inUse <= requests.capacity / 2) taken.push(requests.allocate(owner));
      const peer = rig.peer("structured");
      for (let i = 0; i < 1000; i++) peer.request(NBD_CMD_TRIM, 0, 512);
      await rig.until(() => node.waitingCount > 0);
      await rig.settle();
      expect(node.waitingCount).toBe(16);
      for (const slot of taken) requests.free(slot);
      node.go();
      await rig.until(() => peer.pending === 0);
    });

    test("keeps 128 commands at most in hand and serves all of a flood", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      node.hold();
      rig.serve(node);
      const peer = rig.peer("structured");
      for (let i = 0; i < 1000; i++) peer.request(NBD_CMD_TRIM, 0, 512);
      await rig.until(() => node.waitingCount > 0);
      await rig.settle();
      expect(node.waitingCount).toBe(128);
      node.go();
      await rig.until(() => peer.pending === 0);
    });

    test("serves all requests when the slots run out", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      node.hold();
      rig.serve(node);
      const { requests } = rig.reactor;
      const owner = { onRequestDone: () => {} };
      const taken: number[] = [];
      while (requests.capacity - requests.inUse > 10) taken.push(requests.allocate(owner));
      const peers = [rig.peer("simple"), rig.peer("structured"), rig.peer("extended")];
      for (const peer of peers) for (let i = 0; i < 30; i++) write(peer, i * 512, pattern(512));
      await rig.until(() => requests.inUse === requests.capacity);
      await rig.settle();
      node.go();
      await rig.until(() => peers.every(({ pending }) => pending === 0));
      for (const slot of taken) requests.free(slot);
    });

    test("gives back its own buffer when a waiter gets its slot", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      rig.serve(node);
      const { requests } = rig.reactor;
      const owner = { onRequestDone: () => {} };
      const dying = rig.peer("simple");
      // A write whose payload never comes holds a slot.
      dying.push(request({ type: NBD_CMD_WRITE, cookie: 9, length: 8 * KiB }));
      await rig.until(() => requests.inUse === 1);
      const taken: number[] = [];
      for (let slot = 0; slot !== NONE; ) {
        slot = requests.allocate(owner);
        if (slot !== NONE) taken.push(slot);
      }
      const waiter = rig.peer("simple");
      const data = pattern(512);
      const cookie = write(waiter, 0, data);
      await rig.settle();
      dying.close();
      expect(await errorOf(waiter, cookie)).toBe(0);
      same(node.data.subarray(0, 512), data);
      expect(node.calls.length).toBe(1);
      for (const slot of taken) requests.free(slot);
    });

    test("limits what peers that don't read hold, whatever their number", async () => {
      const content = pattern(2 * MiB);
      const node = new FakeNode(rig.reactor, content.length);
      node.data.set(content);
      rig.serve(node);
      const { buffers } = rig.reactor;
      const bad = MODES.flatMap((mode) => Array.from({ length: 5 }, () => rig.peer(mode)));
      for (const peer of bad) {
        peer.reads = false;
        for (let i = 0; i < 20; i++) peer.request(NBD_CMD_READ, i * 512, MiB);
      }
      await rig.settle(200);
      expect(buffers.bytesInUse).toBeLessThan(buffers.bytesMax * 0.75);
      for (const mode of MODES) {
        const good = rig.peer(mode);
        same(
          (await rig.ask(good, NBD_CMD_READ, 1000, MiB)).data(),
          content.subarray(1000, 1000 + MiB),
        );
        expect(await errorOf(good, write(good, 0, content.subarray(0, 300_000)))).toBe(0);
      }
      for (const peer of bad.slice(0, 12)) peer.close();
      for (const peer of bad) peer.reads = true;
      await rig.until(() => bad.slice(12).every(({ pending }) => pending === 0));
    });

    test("leaves a run of data the buffers that it needs", async () => {
      const node = new FakeNode(rig.reactor, 40 * MiB);
      node.data.set(pattern(8 * MiB));
      rig.serve(node);
      const peer = rig.peer("structured");
      peer.reads = false;
      for (let i = 0; i < 4; i++) {
        peer.request(NBD_CMD_READ, i * 512, 8 * MiB, { flags: NBD_CMD_FLAG_DF });
        for (let k = 0; k < 6; k++) peer.request(NBD_CMD_READ, k * 4096, 8 * MiB);
        for (let k = 0; k < 30; k++) peer.request(NBD_CMD_READ, k * 4096, 8 * KiB);
      }
      await rig.settle(50);
      peer.reads = true;
      await rig.until(() => peer.pending === 0);
      for (const { shape, chunks } of peer.replies.values()) {
        if (shape.offset % 4096 !== 0) expect(chunks.length).toBe(1);
      }
      same(peer.replies.get(1)!.data(), node.data.subarray(0, 8 * MiB));
    });

    test("serves unaligned requests when all need buffers at once", async () => {
      const limits = { requestAlignment: 512, memoryAlignment: 512, discardAlignment: 512 };
      const node = new FakeNode(rig.reactor, 4 * MiB, limits);
      node.data.set(pattern(4 * MiB));
      rig.serve(node);
      const peers = MODES.map((mode) => rig.peer(mode));
      for (let i = 0; i < 100; i++) {
        for (const peer of peers) peer.request(NBD_CMD_READ, 2 * i + 1, MiB - 7);
      }
      await rig.until(() => peers.every(({ pending }) => pending === 0));
      same(peers[0]!.replies.get(1)!.data(), node.data.subarray(1, MiB - 6));
    });

    for (const mode of MODES) {
      test(`ends a ${mode} connection in the middle of anything`, async () => {
        const path = image(pattern(8 * MiB));
        rig.serve(await openFile(path));
        for (let round = 0; round < 24; round++) {
          const peer = rig.peer(mode);
          peer.reads = round % 2 === 0;
          peer.sendBytesMax = 1000 + round * 20_011;
          peer.request(NBD_CMD_READ, 0, 4 * MiB);
          peer.request(NBD_CMD_READ, 512, 3 * MiB, { flags: NBD_CMD_FLAG_FUA });
          write(peer, 0, pattern(200 * KiB));
          write(peer, 512, pattern(3000));
          peer.request(NBD_CMD_FLUSH, 0, 0);
          await rig.settle(1 + round);
          peer.close();
        }
        await rig.until(() => rig.exp.connectionCount === 0);
        expect(rig.reactor.buffers.bytesInUse).toBe(0);
      });

      test(`drops ${mode} clients that are in the middle of anything`, async () => {
        const node = new FakeNode(rig.reactor, 8 * MiB);
        rig.serve(node);
        node.hold();
        for (let i = 0; i < 8; i++) {
          const peer = rig.peer(mode);
          peer.reads = i % 2 === 0;
          if (i % 4 < 2) peer.request(NBD_CMD_READ, 0, 2 * MiB);
          if (i % 3 === 0) peer.request(NBD_CMD_WRITE_ZEROES, 0, MiB);
          const cut = write(peer, 0, pattern(i < 4 ? 8 * KiB : 256 * KiB));
          expect(cut).toBeGreaterThan(0);
          peer.sendBytesMax = 3001;
          await rig.turn();
        }
        const closing = rig.exp.closeConnections();
        await rig.settle();
        node.go();
        await runOn(rig.reactor, () => closing);
        rig.exp.closeConnections = () => Promise.resolve();
        expect(rig.exp.connectionCount).toBe(0);
      });

      test(`answers what is pending before it takes a goodbye, with ${mode} replies`, async () => {
        const node = new FakeNode(rig.reactor, MiB);
        node.hold();
        rig.serve(node);
        const peer = rig.peer(mode);
        const cookies = [write(peer, 0, pattern(512)), write(peer, 0, pattern(128 * KiB))];
        cookies.push(peer.request(NBD_CMD_READ, 0, 600 * KiB));
        cookies.push(peer.request(NBD_CMD_FLUSH, 0, 0));
        peer.push(request({ type: NBD_CMD_DISC }, mode === "extended"));
        peer.request(NBD_CMD_FLUSH, 0, 0);
        await rig.until(() => node.waitingCount >= 3);
        expect(peer.ended).toBe(false);
        node.go();
        await rig.until(() => peer.ended);
        for (const cookie of cookies) expect(peer.replies.get(cookie)?.error).toBe(0);
        expect(peer.pending).toBe(1);
      });
    }

    test("reports what fails in the middle of a long write, and takes all of it", async () => {
      const node = new FakeNode(rig.reactor, 4 * MiB);
      rig.serve(node);
      const peer = rig.peer("structured");
      for (const [errno, nbdErrno] of [
        [ENOSPC, NBD_ENOSPC],
        [EIO, NBD_EIO],
      ] as const) {
        node.fails = (op, offset) => (op === OP_WRITE && offset >= MiB ? -errno : 0);
        expect(await errorOf(peer, write(peer, 0, pattern(2 * MiB)))).toBe(nbdErrno);
        node.fails = (op) => (op === OP_FLUSH ? -errno : 0);
        const flushed = write(peer, 0, pattern(MiB), NBD_CMD_FLAG_FUA);
        expect(await errorOf(peer, flushed)).toBe(nbdErrno);
        node.fails = () => 0;
        expect((await rig.ask(peer, NBD_CMD_READ, 0, 512)).error).toBe(0);
      }
    });

    test("reports a disk that is full in the middle of what comes through the pipe", async () => {
      const path = image(new Uint8Array(0));
      truncateSync(path, MiB);
      rig.serve(await openFile(path));
      const peer = rig.peer("simple");
      // The second of two long writes goes that way.
      expect(await errorOf(peer, write(peer, 0, pattern(512 * KiB)))).toBe(0);
      let calls = 0;
      const { engine } = rig.reactor;
      const write0 = engine.writeFromPipe.bind(engine);
      engine.writeFromPipe = (pipe, _bytes, fd, offset) =>
        calls++ === 0 ? write0(pipe, 4 * KiB, fd, offset) : -ENOSPC;
      expect(await errorOf(peer, write(peer, 0, pattern(512 * KiB)))).toBe(NBD_ENOSPC);
      expect(calls).toBeGreaterThan(1);
      engine.writeFromPipe = write0;
      expect(await errorOf(peer, write(peer, 0, pattern(512 * KiB)))).toBe(0);
      same(readFileSync(path).subarray(0, 512 * KiB), pattern(512 * KiB));
    });

    test("closes when a simple reply that has begun can't be completed", async () => {
      const node = new FakeNode(rig.reactor, 8 * MiB);
      rig.serve(node);
      for (const [mode, flags] of [
        ["simple", 0],
        ["structured", NBD_CMD_FLAG_DF],
      ] as const) {
        const peer = rig.peer(mode);
        node.fails = (op, offset) => (op === OP_READ && offset >= 4 * MiB ? -EIO : 0);
        peer.request(NBD_CMD_READ, 0, 8 * MiB, { flags });
        await rig.until(() => peer.ended);
        expect(peer.replies.size).toBe(0);
        const other = rig.peer(mode);
        const failed = await rig.ask(other, NBD_CMD_READ, 5 * MiB, 3 * MiB, { flags });
        expect(failed.error).toBe(NBD_EIO);
        expect((await rig.ask(other, NBD_CMD_READ, 0, MiB, { flags })).error).toBe(0);
      }
    });

    for (const mode of MODES) {
      test(`reads zeroes where the host file ends early, with ${mode} replies`, async () => {
        const content = pattern(300 * KiB - 100);
        const path = image(content);
        rig.serve(await openFile(path));
        const peer = rig.peer(mode);
        const bytes = 300 * KiB;
        const whole = concat(content, new Uint8Array(100));
        for (const offset of [0, 4096, 200 * KiB, bytes - 512]) {
          const reply = await rig.ask(peer, NBD_CMD_READ, offset, bytes - offset);
          same(reply.data(), whole.subarray(offset));
        }
        truncateSync(path, 100 * KiB);
        const shrunk = await rig.ask(peer, NBD_CMD_READ, 0, bytes);
        same(shrunk.data(), concat(content.subarray(0, 100 * KiB), new Uint8Array(200 * KiB)));
      });

      test(`completes a ${mode} reply whose file shrinks while it is sent`, async () => {
        const content = pattern(4 * MiB);
        const path = image(content);
        rig.serve(await openFile(path));
        const peer = rig.peer(mode);
        same((await rig.ask(peer, NBD_CMD_READ, 0, content.length)).data(), content);
        peer.reads = false;
        const cookies = [0, 1, 2].map(() => peer.request(NBD_CMD_READ, 0, content.length));
        await rig.settle();
        truncateSync(path, 0);
        peer.reads = true;
        await rig.until(() => peer.pending === 0 || peer.ended);
        for (const cookie of cookies) {
          const read = Buffer.from(peer.replies.get(cookie)!.data());
          const end = read.findLastIndex((byte) => byte !== 0) + 1;
          same(read.subarray(0, end), content.subarray(0, end));
        }
      });
    }

    test("serves and drains others while a peer takes nothing of its file", async () => {
      const content = pattern(8 * MiB);
      rig.serve(await openFile(image(content)));
      const bad = rig.peer("simple");
      await rig.ask(bad, NBD_CMD_READ, 0, 8 * MiB);
      bad.reads = false;
      for (let i = 0; i < 20; i++) bad.request(NBD_CMD_READ, 0, 8 * MiB);
      await rig.settle();
      const good = rig.peer("structured");
      same((await rig.ask(good, NBD_CMD_READ, 0, MiB)).data(), content.subarray(0, MiB));
      await runOn(rig.reactor, () => rig.backend.drain());
      const waits = good.request(NBD_CMD_READ, 0, 512);
      await rig.settle();
      expect(good.replies.has(waits)).toBe(false);
      rig.backend.resume();
      expect(await errorOf(good, waits)).toBe(0);
      bad.reads = true;
      await rig.until(() => bad.pending === 0);
    });

    test("uses one descriptor for all that it sends of a file", async () => {
      rig.serve(await openFile(image(pattern(4 * MiB))));
      const peer = rig.peer("simple");
      await rig.ask(peer, NBD_CMD_READ, 0, 4 * MiB);
      const before = rig.fdsLeft;
      peer.reads = false;
      for (let i = 0; i < 100; i++) peer.request(NBD_CMD_READ, 0, MiB);
      await rig.settle(50);
      expect(rig.fdsLeft).toBeLessThanOrEqual(before + 1);
    });

    test("refuses writes to an export that is read-only, and takes their payload", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      rig.serve(node, { writable: false });
      for (const mode of MODES) {
        const peer = rig.peer(mode);
        const refused = [write(peer, 0, pattern(512)), write(peer, 0, pattern(300 * KiB))];
        refused.push(peer.request(NBD_CMD_TRIM, 0, 512));
        refused.push(peer.request(NBD_CMD_WRITE_ZEROES, 0, 512));
        for (const cookie of refused) expect(await errorOf(peer, cookie)).toBe(NBD_EPERM);
        expect((await rig.ask(peer, NBD_CMD_READ, 0, 512)).error).toBe(0);
      }
      expect(node.calls.every(({ op }) => op === OP_READ)).toBe(true);
    });

    test("begins with what came with the handshake", async () => {
      const node = new FakeNode(rig.reactor, MiB);
      rig.serve(node);
      const data = pattern(60_000);
      const header = request({ type: NBD_CMD_WRITE, cookie: 1, offset: 512, length: data.length });
      const early = concat(header, data.subarray(0, 5000));
      const peer = rig.peer("simple", early);
      // The same request as the peer knows it, without its bytes.
      const cookie = peer.request(NBD_CMD_WRITE, 512, data.length);
      peer.unsend();
      peer.push(data.subarray(5000));
      expect(await errorOf(peer, cookie)).toBe(0);
      same(node.data.subarray(512, 512 + data.length), data);
    });

    test("closes on garbage, wherever it comes", async () => {
      rig.serve(new FakeNode(rig.reactor, MiB));
      for (const mode of MODES) {
        const peer = rig.peer(mode);
        peer.request(NBD_CMD_READ, 0, 512 * KiB);
        write(peer, 0, pattern(70 * KiB));
        peer.push(pattern(64));
        await rig.until(() => peer.ended);
        const quiet = rig.peer(mode, pattern(100));
        await rig.until(() => quiet.ended);
      }
    });

    test("sleeps while a client is silent", async () => {
      rig.serve(new FakeNode(rig.reactor, MiB));
      const peer = rig.peer("simple");
      await rig.ask(peer, NBD_CMD_READ, 0, 512);
      await rig.settle();
      let completions = 0;
      for (let i = 0; i < 20; i++) completions += rig.reactor.engine.wait(0);
      expect(completions).toBe(0);
    });
  });
}
