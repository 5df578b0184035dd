import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BlockBackend } from "../../../src/block/backend.ts";
import {
  OP_DISCARD,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_NO_FALLBACK,
} from "../../../src/block/node.ts";
import { acquireWriteGate } from "../../../src/block/write-gate.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { NONE } from "../../../src/io/requests.ts";
import { EIO, ENOTSUP } from "../../../src/runtime/errno.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { pattern } from "../../support/images.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

const BYTES = 1024 * 1024;
const LIMITS = { requestAlignment: 512, memoryAlignment: 512, discardAlignment: 4096 };
let reactor: Reactor;
let node: FakeNode;
let backend: BlockBackend;
let at: number;
let buffer: Uint8Array;

beforeEach(() => {
  reactor = makeReactor("epoll");
  node = new FakeNode(reactor, BYTES, LIMITS);
  node.data.set(pattern(BYTES));
  backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
  at = reactor.buffers.allocate(BYTES);
  buffer = reactor.memory.u8.subarray(at, at + BYTES);
});

afterEach(() => {
  reactor.buffers.free(at);
  expect([reactor.buffers.bytesInUse, reactor.requests.inUse, backend.inFlight]).toEqual([0, 0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
});

const start = (
  op: Parameters<typeof backend.request>[0],
  offset: number,
  bytes: number,
  from = 0,
) => backend.request(op, offset, bytes, reactor.memory.address + at + from, 0);

/** Every call of the node kept to its blocks. */
function expectAligned(): void {
  const odd = node.calls.filter(({ offset, bytes }) => offset % 512 !== 0 || bytes % 512 !== 0);
  expect(odd).toEqual([]);
}

describe("SlowPath", () => {
  test("reads and writes what is in no place of blocks", async () => {
    const model = pattern(BYTES);
    for (const [offset, bytes] of [
      [1, 1],
      [511, 2],
      [512, 511],
      [100, 700_000],
      [262_144 - 1, 262_144 + 2],
      [BYTES - 5, 5],
    ] as const) {
      const data = pattern(bytes, offset);
      buffer.set(data);
      expect(await runOn(reactor, () => start(OP_WRITE, offset, bytes))).toBe(0);
      model.set(data, offset);
      expect(Buffer.compare(node.data, model)).toBe(0);
      buffer.fill(0);
      expect(await runOn(reactor, () => start(OP_READ, offset, bytes))).toBe(0);
      expect(Buffer.compare(buffer.subarray(0, bytes), data)).toBe(0);
      expect(buffer[bytes]).toBe(0);
    }
    expectAligned();
  });

  test("loses no write of many at a time to the parts of one block", async () => {
    const model = pattern(BYTES);
    node.hold();
    const writes: Promise<number>[] = [];
    for (let i = 0; i < 64; i++) {
      // Every fourth is a whole block; all others are parts of one or two.
      const [from, bytes] = [
        [300, 400],
        [300, 400],
        [300, 200],
        [0, 512],
      ][i % 4]!;
      const offset = i * 512 + from!;
      buffer.fill(i + 1, i * 4096, i * 4096 + bytes!);
      model.fill(i + 1, offset, offset + bytes!);
      writes.push(start(OP_WRITE, offset, bytes!, i * 4096));
    }
    node.go();
    expect(new Set(await runOn(reactor, () => Promise.all(writes)))).toEqual(new Set([0]));
    expect(Buffer.compare(node.data, model)).toBe(0);
    expectAligned();
  });

  test("zeroes exactly the range, and by hand where the node can't", async () => {
    for (const can of [true, false]) {
      node.fails = (op) => (op === OP_WRITE_ZEROES && !can ? -ENOTSUP : 0);
      node.data.set(pattern(BYTES));
      const model = pattern(BYTES);
      expect(await runOn(reactor, () => start(OP_WRITE_ZEROES, 700, 600_000))).toBe(0);
      model.fill(0, 700, 600_700);
      expect(Buffer.compare(node.data, model)).toBe(0);
    }
    expectAligned();
    const flags = REQ_NO_FALLBACK;
    const fast = (offset: number) =>
      runOn(reactor, () => backend.request(OP_WRITE_ZEROES, offset, 4096, 0, flags));
    expect([await fast(0), await fast(1)]).toEqual([-ENOTSUP, -ENOTSUP]);
  });

  test("discards whole blocks only, and takes a refusal for success", async () => {
    expect(await runOn(reactor, () => start(OP_DISCARD, 1, 4096))).toBe(0);
    expect(node.calls).toEqual([]);
    expect(await runOn(reactor, () => start(OP_DISCARD, 4095, 8194))).toBe(0);
    expect(node.calls).toMatchObject([{ op: OP_DISCARD, offset: 4096, bytes: 8192 }]);
    node.fails = () => -ENOTSUP;
    expect(await runOn(reactor, () => start(OP_DISCARD, 0, BYTES))).toBe(0);
    node.fails = () => -EIO;
    expect(await runOn(reactor, () => start(OP_DISCARD, 0, BYTES))).toBe(-EIO);
  });

  test("lets the next one write after an error, and waits for a buffer", async () => {
    node.fails = () => -EIO;
    expect(await runOn(reactor, () => start(OP_WRITE, 1, 1))).toBe(-EIO);
    node.fails = () => 0;
    const taken: number[] = [];
    for (let more = 0; more !== NONE; ) {
      more = reactor.buffers.allocate(4096);
      if (more !== NONE) taken.push(more);
    }
    const waits = [start(OP_WRITE, 1, 1), start(OP_WRITE, 512, 512), start(OP_READ, 3, 9)];
    await runOn(reactor, () => reactor.sleep(1_000_000));
    expect(node.calls.length).toBe(1);
    for (const one of taken) reactor.buffers.free(one);
    expect(await runOn(reactor, () => Promise.all(waits))).toEqual([0, 0, 0]);
  });

  test("does not wait for writes to another host file", async () => {
    const files = ["a", "b"].map((name) => acquireWriteGate(reactor, name));
    const nodes = files.map(({ gate }) =>
      Object.assign(new FakeNode(reactor, BYTES, LIMITS), { writeGate: gate }),
    );
    const options = { writable: true, writethrough: false };
    const backends = nodes.map((one) => new BlockBackend(reactor, one, options));
    const write = (index: number, offset: number, bytes: number) =>
      backends[index]!.request(OP_WRITE, offset, bytes, reactor.memory.address + at, 0);
    nodes[0]!.hold();
    const waiting = [write(0, 512, 512), write(0, 1, 1)];
    expect(await runOn(reactor, () => write(1, 1, 1))).toBe(0);
    expect(nodes[0]!.calls.length).toBe(1);
    nodes[0]!.go();
    expect(await runOn(reactor, () => Promise.all(waiting))).toEqual([0, 0]);
    for (const file of files) file.release();
  });
});
