import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { O_RDWR } from "../../../src/abi/linux.ts";
import * as abi from "../../../src/abi/virtio-blk.ts";
import { VIRTIO_F_RING_PACKED } from "../../../src/abi/virtio-ring.ts";
import { BlockBackend } from "../../../src/block/backend.ts";
import {
  OP_DISCARD,
  OP_FLUSH,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_MAY_UNMAP,
  ZERO,
} from "../../../src/block/node.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { NONE, type RequestOwner } from "../../../src/io/requests.ts";
import { EBUSY, EINVAL, EIO } from "../../../src/runtime/errno.ts";
import { DirtyLog } from "../../../src/virtio/dirty-log.ts";
import { GuestMemory } from "../../../src/virtio/guest-memory.ts";
import { InflightArea } from "../../../src/virtio/inflight.ts";
import { VirtioBlk, type VirtioBlkOptions } from "../../../src/virtio/virtio-blk.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { pattern } from "../../support/images.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";
import {
  blkRequest,
  type DriverQueue,
  GuestRam,
  makeDriver,
  type Piece,
} from "../../support/virtio-driver.ts";

const MiB = 1024 * 1024;
/** More than a request through buffers takes at once. */
const BYTES = 640 * 1024;
const SIZE = 64;
const OK = abi.VIRTIO_BLK_S_OK;
const IOERR = abi.VIRTIO_BLK_S_IOERR;
const UNSUPP = abi.VIRTIO_BLK_S_UNSUPP;
const folder = mkdtempSync(join(tmpdir(), "outport-virtio-"));
afterAll(() => rmSync(folder, { recursive: true }));

for (const engine of ENGINES) {
  for (const packed of [false, true]) {
    describe(`VirtioBlk on ${engine}, ${packed ? "packed" : "split"} ring`, () => {
      let reactor: Reactor;
      let node: FakeNode;
      let backend: BlockBackend;
      let ram: GuestRam;
      let memory: GuestMemory;
      let device: VirtioBlk;
      let front: DriverQueue;
      let calls: number;
      let broken: number[];

      beforeEach(() => {
        reactor = makeReactor(engine);
        ram = new GuestRam(reactor.linux, 8 * MiB);
        begin(new FakeNode(reactor, BYTES));
      });
      afterEach(async () => {
        await runOn(reactor, () => device.stop());
        memory.clear();
        expect(memory.mappedCount).toBe(0);
        expect([reactor.requests.inUse, backend.inFlight, reactor.engine.inFlight]).toEqual([
          0, 0, 0,
        ]);
        expect(reactor.buffers.bytesInUse).toBe(0);
        if (node.fd >= 0) reactor.linux.close(node.fd);
        ram.close();
        reactor.engine.close();
        reactor.memory.unmap();
      });

      function begin(
        newNode: FakeNode,
        options: Partial<VirtioBlkOptions> = {},
        { writable = true, writethrough = false } = {},
      ): void {
        node = newNode;
        backend = new BlockBackend(reactor, node, { writable, writethrough });
        memory = new GuestMemory(reactor.linux);
        memory.add(ram.region());
        calls = 0;
        broken = [];
        device = new VirtioBlk({
          reactor,
          backend,
          memory,
          queueCount: 2,
          blockBytes: 512,
          writable,
          serial: "serial-of-the-disk",
          onCall: () => calls++,
          onBroken: (index) => broken.push(index),
          ...options,
        });
        const packedBit = 1n << BigInt(VIRTIO_F_RING_PACKED);
        device.setFeatures(packed ? device.features : device.features & ~packedBit);
        front = makeDriver(ram, packed, { size: SIZE, eventIdx: true });
        expect(start(null)).toBe(0);
      }

      function start(inflight: ArrayBuffer | null, base = packed ? 0x8000_8000 : 0): number {
        const { addresses } = front;
        return device.startQueue(1, { size: SIZE, addresses, base, inflight });
      }

      const buffer = (bytes: number, write: boolean, alignment = 1): Piece => {
        return { at: ram.allocate(bytes, alignment), bytes, write };
      };

      /** Turns the reactor until `count` requests have ended; their used elements. */
      async function ended(count: number): Promise<{ id: number; bytes: number }[]> {
        const found = front.collect();
        await runOn(reactor, async () => {
          while (found.length < count) {
            await reactor.sleep(10_000);
            found.push(...front.collect());
          }
        });
        return found;
      }

      /** One request with the chain as it is. Its used length. */
      async function run(pieces: readonly Piece[], indirect = true): Promise<number> {
        expect(front.add(pieces, indirect)).toBeGreaterThanOrEqual(0);
        device.processQueue(1);
        return (await ended(1))[0]!.bytes;
      }

      /** One request; its status. */
      async function ask(type: number, sector: number, data: readonly Piece[]): Promise<number> {
        const { pieces, statusAt } = blkRequest(ram, type, sector, data);
        const writable = pieces.filter((one) => one.write).reduce((sum, one) => sum + one.bytes, 0);
        expect(await run(pieces)).toBe(writable);
        return ram.u8[statusAt]!;
      }

      /** A DISCARD or WRITE_ZEROES; its status. */
      function clear(type: number, sector: number, sectors: number, flags = 0): Promise<number> {
        const segment = buffer(16, false, 4);
        ram.setU64(segment.at, sector);
        ram.view.setUint32(segment.at + 8, sectors, true);
        ram.view.setUint32(segment.at + 12, flags, true);
        return ask(type, 0, [segment]);
      }

      /** Lets the node live in a host file of its own. */
      function map(content: Uint8Array): string {
        const path = join(folder, "image");
        writeFileSync(path, content);
        node.fd = reactor.linux.open(path, O_RDWR);
        return path;
      }

      const at = ({ at, bytes }: Piece) => ram.u8.slice(at, at + bytes);

      for (const mapped of [true, false]) {
        describe(mapped ? "on a host file" : "on a node that is slow", () => {
          beforeEach(() => {
            const content = pattern(BYTES, 7);
            node.data.set(content);
            if (mapped) map(content);
          });

          test("reads into one piece and into many, of any size", async () => {
            const one = buffer(4096, true);
            expect(await ask(abi.VIRTIO_BLK_T_IN, 3, [one])).toBe(OK);
            expect(at(one)).toEqual(node.data.slice(1536, 1536 + 4096));
            const many = [1, 511, 700, 3000, 396].map((bytes) => buffer(bytes, true));
            expect(await ask(abi.VIRTIO_BLK_T_IN, 8, many)).toBe(OK);
            const read = many.flatMap((piece) => [...at(piece)]);
            expect(Uint8Array.from(read)).toEqual(node.data.slice(4096, 4096 + 4608));
          });

          test("writes from one piece and from many", async () => {
            const one = buffer(512, false);
            ram.u8.set(pattern(512, 1), one.at);
            expect(await ask(abi.VIRTIO_BLK_T_OUT, 5, [one])).toBe(OK);
            const many = Array.from({ length: 100 }, () => buffer(4096, false));
            for (const [i, piece] of many.entries()) ram.u8.fill(i + 1, piece.at, piece.at + 4096);
            expect(await ask(abi.VIRTIO_BLK_T_OUT, 64, many)).toBe(OK);
            const image = new Uint8Array(BYTES);
            image.set(mapped ? readFileSync(join(folder, "image")) : node.data);
            expect<Uint8Array>(image.slice(5 * 512, 6 * 512)).toEqual(pattern(512, 1));
            many.forEach((_, i) => {
              const start = 64 * 512 + i * 4096;
              expect(image.slice(start, start + 4096)).toEqual(new Uint8Array(4096).fill(i + 1));
            });
          });

          test("moves the whole disk at once, more than any buffer holds", async () => {
            const all = buffer(BYTES, true);
            const pieces = [
              { ...all, bytes: 300_001 },
              { at: all.at + 300_001, bytes: BYTES - 300_001, write: true },
            ];
            expect(await ask(abi.VIRTIO_BLK_T_IN, 0, pieces)).toBe(OK);
            expect<Uint8Array>(at(all)).toEqual(node.data);
          });
        });
      }

      test("reads zeroes past the end of the host file", async () => {
        map(pattern(5000, 3));
        for (const sizes of [[2048], [700, 1, 1347]]) {
          const pieces = sizes.map((bytes) => buffer(bytes, true));
          for (const piece of pieces) ram.u8.fill(9, piece.at, piece.at + piece.bytes);
          expect(await ask(abi.VIRTIO_BLK_T_IN, 8, pieces)).toBe(OK);
          const read = pieces.flatMap((piece) => [...at(piece)]);
          const expected = new Uint8Array(2048);
          expected.set(pattern(5000, 3).subarray(4096));
          expect(Uint8Array.from(read)).toEqual(expected);
        }
      });

      test("zeroes the guest's memory where a node reads as zeroes", async () => {
        await runOn(reactor, () => device.stop());
        begin(new FakeNode(reactor, BYTES));
        node.resolve = (_op, _offset, bytes, out) => {
          out.bytes = bytes;
          return ZERO;
        };
        const pieces = [buffer(1000, true), buffer(24, true)];
        const around = buffer(1, true);
        ram.u8.fill(9, pieces[0]!.at, around.at + 1);
        expect(await ask(abi.VIRTIO_BLK_T_IN, 0, pieces)).toBe(OK);
        expect(pieces.flatMap((piece) => [...at(piece)])).toEqual(Array(1024).fill(0));
        expect(ram.u8[around.at]).toBe(9);
        expect(await ask(abi.VIRTIO_BLK_T_IN, 0, [pieces[0]!, pieces[1]!])).toBe(OK);
      });

      test("keeps to the alignment of a node, through buffers of its own", async () => {
        await runOn(reactor, () => device.stop());
        begin(new FakeNode(reactor, BYTES, { requestAlignment: 4096, memoryAlignment: 512 }));
        node.data.set(pattern(BYTES, 5));
        const model = node.data.slice();
        for (const sizes of [[512], [4096], [100, 924], [4096, 4096], [8000, 192]]) {
          const write = sizes.map((bytes) => buffer(bytes, false, 512));
          for (const piece of write) ram.u8.fill(sizes.length, piece.at, piece.at + piece.bytes);
          const bytes = sizes.reduce((sum, one) => sum + one, 0);
          model.fill(sizes.length, 3 * 512, 3 * 512 + bytes);
          expect(await ask(abi.VIRTIO_BLK_T_OUT, 3, write)).toBe(OK);
          const read = sizes.map((size) => buffer(size, true));
          expect(await ask(abi.VIRTIO_BLK_T_IN, 3, read)).toBe(OK);
          expect(read.flatMap((piece) => [...at(piece)])).toEqual(
            write.flatMap((piece) => [...at(piece)]),
          );
        }
        expect(node.data).toEqual(model);
        expect(node.calls.every((call) => call.offset % 4096 === 0)).toBe(true);
      });

      test("takes any layout of header, data and status", async () => {
        node.data.set(pattern(BYTES, 2));
        const header = ram.allocate(16 + 512);
        ram.view.setUint32(header, abi.VIRTIO_BLK_T_OUT, true);
        ram.setU64(header + 8, 2);
        ram.u8.fill(0x77, header + 16, header + 528);
        const status = ram.allocate(1);
        const last = { at: status, bytes: 1, write: true };
        const cuts = [[528], [15, 513], [1, 1, 14, 512], [16, 511, 1], [3, 20, 505]];
        for (const cut of cuts) {
          node.data.fill(0, 1024, 1536);
          ram.u8[status] = 0xff;
          const pieces = cut.map((bytes, index) => {
            const skipped = cut.slice(0, index).reduce((sum, one) => sum + one, 0);
            return { at: header + skipped, bytes, write: false };
          });
          expect(await run([...pieces, last])).toBe(1);
          expect(ram.u8[status]).toBe(OK);
          expect(node.data.slice(1024, 1536)).toEqual(new Uint8Array(512).fill(0x77));
        }
        ram.view.setUint32(header, abi.VIRTIO_BLK_T_IN, true);
        const data = buffer(513, true);
        expect(await run([{ at: header, bytes: 16, write: false }, data])).toBe(513);
        expect(at(data)).toEqual(Uint8Array.of(...new Uint8Array(512).fill(0x77), OK));
      });

      test("says so of what it can't do, and does nothing", async () => {
        const data = buffer(512, false);
        const into = buffer(512, true);
        const { VIRTIO_BLK_T_IN: IN, VIRTIO_BLK_T_OUT: OUT } = abi;
        const end = BYTES / 512;
        expect(await ask(IN, end, [into])).toBe(IOERR);
        expect(await ask(OUT, end, [data])).toBe(IOERR);
        expect(await ask(IN, end - 1, [into, buffer(512, true)])).toBe(IOERR);
        expect(await ask(IN, 2 ** 52, [into])).toBe(IOERR);
        expect(await ask(IN, 0, [buffer(511, true)])).toBe(IOERR);
        expect(await ask(OUT, 0, [buffer(513, false)])).toBe(IOERR);
        expect(await ask(99, 0, [data, into])).toBe(UNSUPP);
        expect(await ask(abi.VIRTIO_BLK_T_SECURE_ERASE, 0, [data])).toBe(UNSUPP);
        expect(node.calls).toEqual([]);
        node.fails = () => -EIO;
        expect(await ask(IN, 0, [into])).toBe(IOERR);
        expect(await ask(OUT, 0, [data])).toBe(IOERR);
        expect(await ask(abi.VIRTIO_BLK_T_FLUSH, 0, [])).toBe(IOERR);
      });

      test("ends requests of no data at once", async () => {
        expect(await ask(abi.VIRTIO_BLK_T_IN, 0, [])).toBe(OK);
        expect(await ask(abi.VIRTIO_BLK_T_OUT, 0, [])).toBe(OK);
        expect(await clear(abi.VIRTIO_BLK_T_DISCARD, 0, 0)).toBe(OK);
        expect(node.calls).toEqual([]);
      });

      test("returns chains without header or status", async () => {
        const status = buffer(1, true);
        expect(await run([buffer(15, false), status])).toBe(1);
        expect(ram.u8[status.at]).toBe(IOERR);
        expect(await run([buffer(16, false)])).toBe(0);
        expect(broken).toEqual([]);
      });

      test("tells its serial, as much as there is room for", async () => {
        const all = [buffer(7, true), buffer(20, true)];
        expect(await ask(abi.VIRTIO_BLK_T_GET_ID, 0, all)).toBe(OK);
        const text = all.map((piece) => String.fromCharCode(...at(piece))).join("");
        expect(text.slice(0, 20)).toBe("serial-of-the-disk\0\0");
        const few = buffer(6, true);
        expect(await ask(abi.VIRTIO_BLK_T_GET_ID, 0, [few])).toBe(OK);
        expect(String.fromCharCode(...at(few))).toBe("serial");
      });

      test("flushes, discards and zeroes", async () => {
        const { VIRTIO_BLK_T_DISCARD: DISCARD, VIRTIO_BLK_T_WRITE_ZEROES: ZEROES } = abi;
        const unmap = abi.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
        expect(await ask(abi.VIRTIO_BLK_T_FLUSH, 0, [])).toBe(OK);
        expect(await clear(DISCARD, 1, 2)).toBe(OK);
        expect(await clear(ZEROES, 2, 3)).toBe(OK);
        expect(await clear(ZEROES, 2, 3, unmap)).toBe(OK);
        expect(node.calls).toEqual([
          { op: OP_FLUSH, offset: 0, bytes: 0, flags: 0 },
          { op: OP_DISCARD, offset: 512, bytes: 1024, flags: 0 },
          { op: OP_WRITE_ZEROES, offset: 1024, bytes: 1536, flags: 0 },
          { op: OP_WRITE_ZEROES, offset: 1024, bytes: 1536, flags: REQ_MAY_UNMAP },
        ]);
        expect(await clear(DISCARD, 0, 1, unmap)).toBe(UNSUPP);
        expect(await clear(ZEROES, 0, 1, 2)).toBe(UNSUPP);
        expect(await clear(ZEROES, BYTES / 512, 1)).toBe(IOERR);
        expect(await clear(DISCARD, 0, 0xffff_ffff)).toBe(IOERR);
        expect(await ask(DISCARD, 0, [buffer(8, false)])).toBe(IOERR);
        expect(await ask(ZEROES, 0, [buffer(32, false)])).toBe(UNSUPP);
        expect(node.calls).toHaveLength(4);
      });

      test("keeps to the logical block size", async () => {
        await runOn(reactor, () => device.stop());
        begin(new FakeNode(reactor, BYTES), { blockBytes: 4096 });
        expect(await ask(abi.VIRTIO_BLK_T_IN, 0, [buffer(512, true)])).toBe(OK);
        expect(await ask(abi.VIRTIO_BLK_T_IN, 1, [buffer(512, true)])).toBe(IOERR);
        expect(await clear(abi.VIRTIO_BLK_T_DISCARD, 7, 1)).toBe(IOERR);
      });

      test("writes nothing when read-only", async () => {
        await runOn(reactor, () => device.stop());
        begin(new FakeNode(reactor, BYTES), {}, { writable: false });
        expect(await ask(abi.VIRTIO_BLK_T_OUT, 0, [buffer(512, false)])).toBe(IOERR);
        expect(await clear(abi.VIRTIO_BLK_T_DISCARD, 0, 1)).toBe(IOERR);
        expect(await clear(abi.VIRTIO_BLK_T_WRITE_ZEROES, 0, 1)).toBe(IOERR);
        expect(await ask(abi.VIRTIO_BLK_T_FLUSH, 0, [])).toBe(OK);
        expect(await ask(abi.VIRTIO_BLK_T_IN, 0, [buffer(512, true)])).toBe(OK);
      });

      test("flushes every write when the driver turns the cache off", async () => {
        const wce = abi.VIRTIO_BLK_CONFIG_WCE;
        const write = () => ask(abi.VIRTIO_BLK_T_OUT, 0, [buffer(512, false)]);
        expect(device.config()[wce]).toBe(1);
        await write();
        expect(node.calls.map(({ op }) => op)).toEqual([OP_WRITE]);
        expect(device.setConfig(wce, Uint8Array.of(0))).toBe(true);
        expect(device.config()[wce]).toBe(0);
        await write();
        await clear(abi.VIRTIO_BLK_T_WRITE_ZEROES, 0, 1);
        const ops: Op[] = [OP_WRITE, OP_WRITE, OP_FLUSH, OP_WRITE_ZEROES, OP_FLUSH];
        expect(node.calls.map(({ op }) => op)).toEqual(ops);
        expect(device.setConfig(wce, Uint8Array.of(1))).toBe(true);
        await write();
        expect(node.calls.map(({ op }) => op)).toEqual([...ops, OP_WRITE]);
        expect(device.setConfig(wce, Uint8Array.of(1, 0))).toBe(false);
        expect(device.setConfig(0, Uint8Array.of(1))).toBe(false);
        // A driver that can't flush.
        for (const features of [0n, 1n << BigInt(abi.VIRTIO_BLK_F_CONFIG_WCE)]) {
          device.setFeatures(features);
          await write();
          expect(node.calls.map(({ op }) => op).slice(-2)).toEqual([OP_WRITE, OP_FLUSH]);
        }
      });

      test("config() has the disk's size of now", () => {
        const view = new DataView(device.config().buffer);
        expect(view.getBigUint64(abi.VIRTIO_BLK_CONFIG_CAPACITY, true)).toBe(1280n);
        expect(view.getUint32(abi.VIRTIO_BLK_CONFIG_SEG_MAX, true)).toBe(126);
        expect(view.getUint32(abi.VIRTIO_BLK_CONFIG_BLK_SIZE, true)).toBe(512);
        expect(view.getUint16(abi.VIRTIO_BLK_CONFIG_NUM_QUEUES, true)).toBe(2);
      });

      test("publishes and notifies once for what ends in one turn", async () => {
        map(pattern(BYTES, 7));
        const count = 16;
        for (let i = 0; i < count; i++) {
          const { pieces } = blkRequest(ram, 0, i * 8, [buffer(4096, true)]);
          expect(front.add(pieces, true)).toBeGreaterThanOrEqual(0);
        }
        front.wantCall(true);
        device.processQueue(1);
        expect(await ended(count)).toHaveLength(count);
        expect(calls).toBe(1);
      });

      function takeAll(allocate: () => number): number[] {
        const taken: number[] = [];
        for (let one = allocate(); one !== NONE; one = allocate()) taken.push(one);
        return taken;
      }
      /** Three, of two pieces each. */
      function addReads(): void {
        const data = [buffer(512, true), buffer(512, true)];
        for (let i = 0; i < 3; i++) front.add(blkRequest(ram, 0, 0, data).pieces, true);
      }

      test("goes on when a slot is free again", async () => {
        const owner: RequestOwner = { onRequestDone: () => {} };
        const taken = takeAll(() => reactor.requests.allocate(owner));
        addReads();
        device.processQueue(1);
        device.processQueue(1);
        expect(reactor.buffers.bytesInUse).toBe(0);
        for (const slot of taken) reactor.requests.free(slot);
        expect(await ended(3)).toHaveLength(3);
      });

      test("takes no more slots than it leaves to others, and goes on by itself", async () => {
        const owner: RequestOwner = { onRequestDone: () => {} };
        const taken = takeAll(() => reactor.requests.allocate(owner));
        for (const slot of taken.splice(0, 4)) reactor.requests.free(slot);
        node.hold();
        addReads();
        device.processQueue(1);
        device.processQueue(1);
        await runOn(reactor, () => reactor.sleep(1_000_000));
        expect([backend.inFlight, reactor.requests.capacity - reactor.requests.inUse]).toEqual([
          2, 2,
        ]);
        node.go();
        expect(await ended(3)).toHaveLength(3);
        for (const slot of taken) reactor.requests.free(slot);
      });

      test("goes on when a buffer is free again", async () => {
        const taken = [MiB, 4096].flatMap((bytes) =>
          takeAll(() => reactor.buffers.allocate(bytes)),
        );
        addReads();
        device.processQueue(1);
        expect(reactor.requests.inUse).toBe(0);
        for (const at of taken) reactor.buffers.free(at);
        expect(await ended(3)).toHaveLength(3);
      });

      test("stopQueue() waits for what is in flight, and starts nothing more", async () => {
        node.hold();
        const add = () => front.add(blkRequest(ram, 0, 0, [buffer(512, true)]).pieces, true);
        add();
        device.processQueue(1);
        let base = -1;
        const stopped = device.stopQueue(1).then((found) => {
          base = found;
        });
        add();
        device.processQueue(1);
        await runOn(reactor, () => reactor.sleep(1_000_000));
        expect([base, node.calls.length]).toEqual([-1, 1]);
        expect(start(null)).toBe(-EBUSY);
        node.go();
        await runOn(reactor, () => stopped);
        expect(front.collect()).toHaveLength(1);
        expect(base & 0x7fff).toBe(1);
        expect(device.ring(1)).toBe(null);
        device.processQueue(1);
        expect(start(null, base)).toBe(0);
        device.processQueue(1);
        expect(await ended(1)).toHaveLength(1);
        expect(await runOn(reactor, () => device.stopQueue(0))).toBe(-EINVAL);
      });

      test("a region goes while requests use it, and is unmapped after them", async () => {
        const extra = new GuestRam(reactor.linux, MiB, {
          guestAddress: 2 ** 40,
          userAddress: 4096,
        });
        memory.add(extra.region());
        const { pieces, statusAt } = blkRequest(ram, 0, 0, []);
        const far = { at: extra.guestAddress - ram.guestAddress, bytes: 4096, write: true };
        node.data.fill(0x5a);
        node.hold();
        front.add([pieces[0]!, far, pieces[1]!], true);
        device.processQueue(1);
        expect(memory.remove(extra.guestAddress, extra.userAddress, MiB)).toBe(0);
        expect(memory.mappedCount).toBe(2);
        node.go();
        expect(await ended(1)).toHaveLength(1);
        expect(ram.u8[statusAt]).toBe(OK);
        expect(extra.u8.slice(0, 4096)).toEqual(new Uint8Array(4096).fill(0x5a));
        expect([memory.mappedCount, broken]).toEqual([1, []]);
        extra.close();
      });

      test("survives the loss of the rings' memory", async () => {
        node.hold();
        front.add(blkRequest(ram, 0, 0, [buffer(512, true)]).pieces, true);
        device.processQueue(1);
        memory.clear();
        expect(broken).toEqual([1]);
        device.processQueue(1);
        node.go();
        await runOn(reactor, () => device.stopQueue(1));
        expect([broken, memory.mappedCount, front.collect()]).toEqual([[1], 0, []]);
      });

      test("tells once of a driver that breaks the rules, and takes no more", async () => {
        front.add([buffer(16, true), buffer(16, false)]);
        front.add(blkRequest(ram, 0, 0, [buffer(512, true)]).pieces, true);
        device.processQueue(1);
        device.processQueue(1);
        expect(broken).toEqual([1]);
        expect(await runOn(reactor, () => device.stopQueue(1))).toBe(packed ? 0x8000_8000 : 0);
        expect(node.calls).toEqual([]);
      });

      test("a new back-end ends what was in flight in the old one", async () => {
        await runOn(reactor, () => device.stop());
        const shape = { queueCount: 2, queueSize: SIZE, packed };
        const fd = InflightArea.create(reactor.linux, shape);
        const area = InflightArea.open(reactor.linux, fd, shape, {
          offset: 0,
          bytes: InflightArea.bytes(shape),
        });
        if (typeof area === "number") throw new Error(`open() said ${area}`);
        reactor.linux.close(fd);
        const old = { reactor, device, memory, node, backend };
        reactor = makeReactor(engine);
        begin(new FakeNode(reactor, BYTES));
        await runOn(reactor, () => device.stop());
        expect(start(area.region(1, SIZE))).toBe(0);
        node.hold();
        for (const sector of [1, 2, 3]) {
          front.add(blkRequest(ram, 1, sector, [buffer(512, false)]).pieces, true);
        }
        device.processQueue(1);
        await runOn(reactor, () => reactor.sleep(1_000_000));
        expect(node.calls).toHaveLength(3);
        // The first one vanishes with all that it knows.
        const dead = { reactor, device, memory, node };
        ({ reactor, device, memory, node, backend } = old);
        const base = packed ? 0x8000_8000 : 0;
        expect(start(area.region(1, SIZE), base)).toBe(0);
        device.processQueue(1);
        expect(await ended(3)).toHaveLength(3);
        expect(node.calls.map(({ offset }) => offset)).toEqual([512, 1024, 1536]);
        await runOn(reactor, () => device.stop());
        dead.node.go();
        await runOn(dead.reactor, () => dead.device.stop());
        dead.memory.clear();
        dead.reactor.engine.close();
        dead.reactor.memory.unmap();
        area.unmap();
      });

      test("logs the pages that it writes to", async () => {
        const file = new GuestRam(reactor.linux, 65_536);
        const log = DirtyLog.map(reactor.linux, file.fd, 0, 65_536);
        if (typeof log === "number") throw new Error(`map() said ${log}`);
        memory.log = log;
        device.ring(1)!.setUsedLog(0);
        const data = [buffer(5000, true, 4096), buffer(120, true, 4096)];
        const out = buffer(8192, false, 4096);
        const status = blkRequest(ram, 0, 0, data);
        expect(await run(status.pieces)).toBe(5121);
        await ask(abi.VIRTIO_BLK_T_OUT, 0, [out]);
        const isDirty = (address: number) => {
          const page = Math.floor((ram.guestAddress + address) / 4096);
          return ((file.u8[page >>> 3]! >>> (page & 7)) & 1) === 1;
        };
        const places = [data[0]!.at, data[0]!.at + 4096, data[1]!.at, status.statusAt];
        expect(places.map(isDirty)).toEqual([true, true, true, true]);
        expect([isDirty(out.at), isDirty(data[0]!.at + 2 * 4096)]).toEqual([false, true]);
        expect(file.u8[0]! & 1).toBe(1);
        memory.log = null;
        log.unmap();
        file.close();
      });
    });
  }
}
