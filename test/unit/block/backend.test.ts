import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { O_RDWR } from "../../../src/abi/linux.ts";
import { BlockBackend } from "../../../src/block/backend.ts";
import {
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_FUA,
  type Resolution,
} from "../../../src/block/node.ts";
import { statisticsOf } from "../../../src/block/statistics.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { EAGAIN, EIO, EOPNOTSUPP, EPERM, ESHUTDOWN } from "../../../src/runtime/errno.ts";
import { Payload } from "../../support/block.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { pattern } from "../../support/images.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";

const BYTES = 64 * 1024;
const folder = mkdtempSync(join(tmpdir(), "outport-backend-"));
afterAll(() => rmSync(folder, { recursive: true }));

for (const engine of ENGINES) {
  describe(`BlockBackend on ${engine}`, () => {
    let reactor: Reactor;
    let node: FakeNode;
    let backend: BlockBackend;
    let payload: Payload;

    beforeEach(() => {
      reactor = makeReactor(engine);
      node = new FakeNode(reactor, BYTES);
      backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
      payload = new Payload(reactor, BYTES);
    });

    afterEach(() => {
      expect([reactor.requests.inUse, backend.inFlight, reactor.engine.inFlight]).toEqual([
        0, 0, 0,
      ]);
      if (node.fd >= 0) reactor.linux.close(node.fd);
      reactor.engine.close();
      reactor.memory.unmap();
    });

    const ask = (
      op: Parameters<typeof backend.request>[0],
      offset: number,
      bytes: number,
      flags = 0,
    ) => runOn(reactor, () => backend.request(op, offset, bytes, payload.address, flags));

    /** Lets the node live in a host file of its own. */
    function map(content: Uint8Array): string {
      const path = join(folder, "image");
      writeFileSync(path, content);
      node.fd = reactor.linux.open(path, O_RDWR);
      return path;
    }

    test("refuses what is out of bounds, and writes where it may not", async () => {
      for (const op of [OP_READ, OP_WRITE, OP_DISCARD, OP_WRITE_ZEROES] as const) {
        for (const [offset, bytes] of [
          [BYTES, 1],
          [BYTES - 1, 2],
          [-1, 1],
          [Number.NaN, 1],
          [2 ** 60, 512],
        ] as const) {
          expect([op, offset, await ask(op, offset, bytes)]).toEqual([op, offset, -EIO]);
        }
      }
      backend = new BlockBackend(reactor, node, { writable: false, writethrough: false });
      expect(await ask(OP_WRITE, 0, 512)).toBe(-EPERM);
      expect(await ask(OP_DISCARD, 0, 512)).toBe(-EPERM);
      expect(await ask(OP_WRITE_ZEROES, 0, 512)).toBe(-EPERM);
      expect(await ask(OP_CACHE, 0, 512)).toBe(0);
      expect(node.calls).toEqual([]);
    });

    test("takes nothing around the queue that is out of bounds", async () => {
      // The node became shorter than what its client was told; its file did not.
      const path = map(pattern(2 * BYTES));
      const before = readFileSync(path);
      const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
      expect(backend.findCached(BYTES - 4096, 8192, out)).toBe(false);
      expect(backend.readCached(BYTES - 4096, 8192, payload.address)).toBe(false);
      const pipe = reactor.linux.pipe();
      if (typeof pipe === "number") throw new Error(`pipe() said ${pipe}`);
      reactor.linux.write(pipe.writeFd, payload.address, 8192);
      expect(backend.writeFromPipe(pipe.readFd, 8192, BYTES - 4096)).toBe(-EAGAIN);
      expect(readFileSync(path).equals(before)).toBe(true);
      expect(backend.writeFromPipe(pipe.readFd, 4096, BYTES - 4096)).toBe(4096);
      reactor.linux.close(pipe.readFd);
      reactor.linux.close(pipe.writeFd);
    });

    test("reads at once what is in one run of a file in the host's memory", async () => {
      const content = pattern(BYTES);
      map(content);
      expect(backend.readCached(5, 4096, payload.address)).toBe(true);
      expect(payload.u8.subarray(0, 4096)).toEqual(content.subarray(5, 5 + 4096));
      for (const offset of [-1, Number.NaN]) {
        expect(backend.readCached(offset, 4096, payload.address)).toBe(false);
      }
      await runOn(reactor, () => backend.drain());
      expect(backend.readCached(0, 4096, payload.address)).toBe(false);
      backend.resume();
      // The file ends where the node does not.
      reactor.linux.ftruncate(node.fd, 4096);
      expect(backend.readCached(2048, 4096, payload.address)).toBe(false);
      expect(node.calls).toEqual([]);
      node.fd = -1;
      expect(backend.readCached(0, 4096, payload.address)).toBe(false);
    });

    test("keeps requests back while drained, and tells when none is in flight", async () => {
      node.hold();
      const first = backend.request(OP_READ, 0, 512, payload.address, 0);
      let drained = false;
      const drain = backend.drain().then(() => {
        drained = true;
      });
      const second = backend.request(OP_FLUSH, 0, 0, 0, 0);
      await runOn(reactor, () => reactor.sleep(1_000_000));
      expect([drained, node.calls.length, backend.inFlight]).toEqual([false, 1, 1]);
      node.go();
      await runOn(reactor, () => drain);
      expect([await first, node.calls.length]).toEqual([0, 1]);
      void backend.drain();
      backend.resume();
      expect(node.calls.length).toBe(1);
      backend.resume();
      expect([await runOn(reactor, () => second), node.calls.length]).toEqual([0, 2]);
    });

    test("ends what waits when it is closed, and flushes", async () => {
      void backend.drain();
      const waits = backend.request(OP_WRITE, 0, 512, payload.address, 0);
      expect(await runOn(reactor, () => backend.close())).toBe(0);
      expect(await runOn(reactor, () => waits)).toBe(-ESHUTDOWN);
      expect(node.calls.map(({ op }) => op)).toEqual([OP_FLUSH]);
    });

    test("waits for a free slot", async () => {
      const { requests } = reactor;
      const owner = { onRequestDone: () => {} };
      const taken = Array.from({ length: requests.capacity }, () => requests.allocate(owner));
      const waits = [1, 2].map(() => backend.request(OP_FLUSH, 0, 0, 0, 0));
      expect(node.calls.length).toBe(0);
      for (const slot of taken) requests.free(slot);
      expect(await runOn(reactor, () => Promise.all(waits))).toEqual([0, 0]);
    });

    test("reads zeroes where the host file ends before the node", async () => {
      const content = pattern(1000);
      map(content);
      payload.u8.fill(0xee);
      expect(await ask(OP_READ, 512, 4096)).toBe(0);
      expect(Buffer.compare(payload.u8.subarray(0, 488), content.subarray(512))).toBe(0);
      expect(payload.u8.subarray(488, 4096).every((byte) => byte === 0)).toBe(true);
      expect(payload.u8[4096]).toBe(0xee);
    });

    test("asks no rest of a block of a file that takes whole ones", async () => {
      const limits = { requestAlignment: 512, memoryAlignment: 512 };
      node = new FakeNode(reactor, BYTES, limits);
      backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
      map(pattern(1000));
      const offsets: number[] = [];
      const read = reactor.engine.read.bind(reactor.engine);
      reactor.engine.read = (fd, address, bytes, offset, token) => {
        offsets.push(offset);
        read(fd, address, bytes, offset, token);
      };
      payload.u8.fill(0xee);
      expect(await ask(OP_READ, 0, 1024)).toBe(0);
      expect(payload.u8.subarray(1000, 1024).every((byte) => byte === 0)).toBe(true);
      expect(offsets).toEqual([0]);
    });

    test("writes and flushes where the host has no synchronous write", async () => {
      const path = map(new Uint8Array(BYTES));
      payload.u8.set(pattern(4096));
      const calls: string[] = [];
      const { engine } = reactor;
      const { write, fsync } = {
        write: engine.write.bind(engine),
        fsync: engine.fsync.bind(engine),
      };
      engine.write = (fd, address, bytes, offset, rwFlags, token) => {
        calls.push(`write ${rwFlags}`);
        if (rwFlags !== 0) engine.post(token, -EOPNOTSUPP);
        else write(fd, address, bytes, offset, rwFlags, token);
      };
      engine.fsync = (fd, dataOnly, token) => {
        calls.push("fsync");
        fsync(fd, dataOnly, token);
      };
      expect(await ask(OP_WRITE, 0, 4096, REQ_FUA)).toBe(0);
      expect(calls).toEqual(["write 2", "write 0", "fsync"]);
      expect(Buffer.compare(readFileSync(path).subarray(0, 4096), pattern(4096))).toBe(0);
    });

    test("flushes every write through when told to, and reports that flush's error", async () => {
      backend = new BlockBackend(reactor, node, { writable: true, writethrough: true });
      for (const op of [OP_WRITE, OP_WRITE_ZEROES, OP_DISCARD] as const) {
        node.calls.length = 0;
        expect(await ask(op, 0, 512)).toBe(0);
        expect(node.calls.map((call) => call.op)).toEqual([op, OP_FLUSH]);
      }
      node.fails = (op) => (op === OP_FLUSH ? -EIO : 0);
      expect(await ask(OP_WRITE, 0, 512)).toBe(-EIO);
    });

    test("counts what succeeded, and how often it did not", async () => {
      await ask(OP_READ, 0, 1000);
      await ask(OP_WRITE, 0, 512);
      await ask(OP_WRITE, BYTES, 512);
      expect(statisticsOf(node).describe(reactor.nowNs(), 0)).toMatchObject({
        rd_operations: 1,
        rd_bytes: 1000,
        wr_operations: 1,
        wr_bytes: 512,
        failed_wr_operations: 1,
        wr_highest_offset: 512,
      });
    });

    test("goes on with another node, with the requests that waited", async () => {
      const overlay = new FakeNode(reactor, 2 * BYTES);
      let resized = 0;
      backend.onResized = () => resized++;
      await runOn(reactor, () => backend.drain());
      const waiting = backend.request(OP_WRITE, BYTES, 512, payload.address, 0);
      backend.replaceNode(overlay);
      backend.resume();
      expect(await runOn(reactor, () => waiting)).toBe(0);
      expect([node.calls.length, overlay.calls.length, resized]).toEqual([0, 1, 1]);
      expect(await ask(OP_FLUSH, 0, 0)).toBe(0);
      expect([node.calls.length, overlay.calls.length]).toEqual([0, 2]);
      const { wr_operations: writes } = statisticsOf(overlay).describe(reactor.nowNs(), 0);
      expect(writes).toBe(1);
    });

    test("counts the time from the request to its end, drained sections included", async () => {
      node.hold();
      const beginNs = reactor.nowNs();
      await runOn(reactor, async () => {
        const read = backend.request(OP_READ, 0, 512, payload.address, 0);
        await reactor.sleep(3_000_000);
        node.go();
        await read;
        await backend.drain();
        const write = backend.request(OP_WRITE, 0, 512, payload.address, 0);
        await reactor.sleep(2_000_000);
        backend.resume();
        return write;
      });
      const endNs = reactor.nowNs();
      const stats = statisticsOf(node).describe(endNs, 0);
      expect(stats.rd_total_time_ns).toBeGreaterThanOrEqual(3_000_000);
      expect(stats.wr_total_time_ns).toBeGreaterThanOrEqual(2_000_000);
      const sumNs = stats.rd_total_time_ns + stats.wr_total_time_ns;
      expect(sumNs).toBeLessThanOrEqual(endNs - beginNs);
    });
  });
}
