import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { ChildIo } from "../../../src/block/child-io.ts";
import {
  MAPPED,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_FUA,
  REQ_NO_FALLBACK,
  type Resolution,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "../../../src/block/node.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { EBADF, EIO, ENOTSUP } from "../../../src/runtime/errno.ts";
import { Payload } from "../../support/block.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { pattern } from "../../support/images.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

const PART = 4096;
const BYTES = 16 * PART;

/** Every part of 4 KiB is zero, slow, or mapped to a descriptor that is none, in turns. */
class PatchworkNode extends FakeNode {
  kinds: readonly ResolutionKind[] = [ZERO, SLOW];

  override resolve(_op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.fd = this.fd;
    out.offset = offset;
    out.bytes = Math.min(bytes, PART - (offset % PART));
    return this.kinds[Math.floor(offset / PART) % this.kinds.length]!;
  }
}

let reactor: Reactor;
let node: PatchworkNode;
let io: ChildIo;
let payload: Payload;

beforeEach(() => {
  reactor = makeReactor("epoll");
  node = new PatchworkNode(reactor, BYTES, { transferBytesMax: 3 * PART });
  node.data.set(pattern(BYTES));
  io = new ChildIo(reactor, node);
  payload = new Payload(reactor, BYTES);
});

afterEach(() => {
  reactor.buffers.free(payload.address - reactor.memory.address);
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

const run = (task: () => Promise<number>) => runOn(reactor, task);

describe("ChildIo", () => {
  test("reads wherever the parts are", async () => {
    payload.u8.fill(255);
    // A slow part may be as long as the node takes: then it reads all of it.
    node.kinds = [ZERO, ZERO, ZERO, SLOW];
    expect(await run(() => io.read(100, 3 * PART - 100 + 10, payload.address))).toBe(0);
    const expected = new Uint8Array(3 * PART - 100 + 10);
    expected.set(node.data.subarray(3 * PART, 3 * PART + 10), 3 * PART - 100);
    expect(Buffer.compare(payload.u8.subarray(0, expected.length), expected)).toBe(0);
    expect(payload.u8[expected.length]).toBe(255);
    expect(node.calls).toMatchObject([{ op: OP_READ, offset: 3 * PART, bytes: 10 }]);
  });

  test("keeps to the longest transfer", async () => {
    node.kinds = [SLOW];
    payload.u8.fill(7);
    expect(await run(() => io.write(0, 7 * PART, payload.address, 0))).toBe(0);
    expect(node.calls.map(({ bytes }) => bytes / PART)).toEqual([3, 3, 1]);
    expect(node.data.subarray(0, 7 * PART).every((byte) => byte === 7)).toBe(true);
  });

  test("tells the node of errors on what it mapped, and ends there", async () => {
    node.kinds = [MAPPED];
    const seen: [Op, number][] = [];
    node.onMappedError = (op, errno) => {
      seen.push([op, errno]);
      return -EIO;
    };
    expect(await run(() => io.read(0, PART, payload.address))).toBe(-EIO);
    expect(await run(() => io.write(0, PART, payload.address, REQ_FUA))).toBe(-EIO);
    expect(await run(() => io.flush())).toBe(-EIO);
    expect(seen).toEqual([
      [OP_READ, -EBADF],
      [OP_WRITE, -EBADF],
      [OP_FLUSH, -EBADF],
    ]);
    node.kinds = [SLOW];
    node.fails = (_op, offset) => (offset >= 3 * PART ? -ENOTSUP : 0);
    expect(await run(() => io.read(0, BYTES, payload.address))).toBe(-ENOTSUP);
    expect(node.calls.length).toBe(2);
  });

  test("flushes after a write with FUA, if it succeeded", async () => {
    node.kinds = [SLOW];
    expect(await run(() => io.write(0, PART, payload.address, REQ_FUA))).toBe(0);
    expect(await run(() => io.writeZeroes(0, PART, REQ_FUA))).toBe(0);
    expect(node.calls.map(({ op, flags }) => [op, flags])).toEqual([
      [OP_WRITE, 0],
      [OP_FLUSH, 0],
      [OP_WRITE_ZEROES, 0],
      [OP_FLUSH, 0],
    ]);
    node.fails = (op) => (op === OP_FLUSH ? -EIO : 0);
    expect(await run(() => io.write(0, PART, payload.address, REQ_FUA))).toBe(-EIO);
  });

  test("writes zeroes by hand where the node can't, unless that is forbidden", async () => {
    node.kinds = [SLOW];
    node.fails = (op) => (op === OP_WRITE_ZEROES ? -ENOTSUP : 0);
    expect(await run(() => io.writeZeroes(10, BYTES - 20, REQ_NO_FALLBACK))).toBe(-ENOTSUP);
    expect(Buffer.compare(node.data, pattern(BYTES))).toBe(0);
    expect(await run(() => io.writeZeroes(10, BYTES - 20, 0))).toBe(0);
    const expected = pattern(BYTES);
    expected.fill(0, 10, BYTES - 10);
    expect(Buffer.compare(node.data, expected)).toBe(0);
  });

  test("copyUp() is nothing for a node without layers", async () => {
    node.kinds = [SLOW];
    expect(await run(() => io.copyUp(0, BYTES))).toBe(0);
    expect(node.calls).toEqual([]);
  });
});
