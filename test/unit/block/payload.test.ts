import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { IOVEC_SIZE } from "../../../src/abi/linux.ts";
import { BlockBackend } from "../../../src/block/backend.ts";
import { type BlockLimits, OP_READ, OP_WRITE, type Op, REQ_FUA } from "../../../src/block/node.ts";
import { isPayloadAligned, zeroPayload } from "../../../src/block/payload.ts";
import type { Memory } from "../../../src/io/memory.ts";
import type { PayloadMemory } from "../../../src/io/payload-memory.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { EIO } from "../../../src/runtime/errno.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

const BYTES = 1024 * 1024;
/** Where the payload lies; no real address. */
const ADDRESS = 2 ** 40;

/** Memory that only its own methods can look at. */
class FarMemory implements PayloadMemory {
  readonly u8 = new Uint8Array(BYTES);

  zero(address: number, bytes: number): void {
    this.u8.fill(0, address - ADDRESS, address - ADDRESS + bytes);
  }

  read(address: number, bytes: number, target: Memory, at: number): void {
    target.u8.set(this.u8.subarray(address - ADDRESS, address - ADDRESS + bytes), at);
  }

  write(address: number, bytes: number, source: Memory, at: number): void {
    this.u8.set(source.u8.subarray(at, at + bytes), address - ADDRESS);
  }
}

describe("payload", () => {
  let reactor: Reactor;
  let node: FakeNode;
  let backend: BlockBackend;
  let far: FarMemory;
  let results: number[];
  let iovs: number[];

  beforeEach(() => {
    reactor = makeReactor("epoll");
    node = new FakeNode(reactor, BYTES);
    backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
    far = new FarMemory();
    results = [];
    iovs = [];
  });
  afterEach(() => {
    for (const at of iovs) reactor.buffers.free(at);
    expect([reactor.requests.inUse, reactor.buffers.bytesInUse, backend.inFlight]).toEqual([
      0, 0, 0,
    ]);
    reactor.engine.close();
    reactor.memory.unmap();
  });

  /** A request with [offset in the far memory, bytes] pieces; its slot. */
  function prepare(op: Op, offset: number, pieces: readonly (readonly [number, number])[]): number {
    const { requests, memory } = reactor;
    const slot = requests.allocate({
      onRequestDone: (one, result) => {
        results.push(result);
        release(one);
      },
    });
    requests.op[slot] = op;
    requests.flags[slot] = 0;
    requests.offset[slot] = offset;
    requests.bytes[slot] = pieces.reduce((sum, [, bytes]) => sum + bytes, 0);
    requests.payload[slot] = far;
    requests.address[slot] = ADDRESS + pieces[0]![0];
    if (pieces.length > 1) {
      const at = reactor.buffers.allocate(pieces.length * IOVEC_SIZE);
      iovs.push(at);
      for (const [i, [start, bytes]] of pieces.entries()) {
        memory.setU64(at + i * IOVEC_SIZE, ADDRESS + start);
        memory.setU64(at + i * IOVEC_SIZE + 8, bytes);
      }
      requests.address[slot] = memory.address + at;
      requests.iovCount[slot] = pieces.length;
    }
    return slot;
  }

  function release(slot: number): void {
    reactor.requests.payload[slot] = null;
    reactor.requests.iovCount[slot] = 0;
    reactor.requests.free(slot);
  }

  function run(...slots: number[]): Promise<void> {
    return runOn(reactor, async () => {
      for (const slot of slots) backend.submit(slot);
      while (results.length < slots.length) await reactor.sleep(10_000);
    });
  }

  test("isPayloadAligned() looks at every piece", () => {
    const limits = { requestAlignment: 512, memoryAlignment: 4096 } as BlockLimits;
    const cases: [boolean, [number, number][]][] = [
      [
        true,
        [
          [0, 512],
          [4096, 1024],
        ],
      ],
      [
        false,
        [
          [0, 512],
          [512, 512],
        ],
      ],
      [
        false,
        [
          [0, 500],
          [4096, 524],
        ],
      ],
      [
        false,
        [
          [1, 512],
          [4096, 512],
        ],
      ],
    ];
    for (const [expected, pieces] of cases) {
      const slot = prepare(OP_READ, 0, pieces);
      expect(isPayloadAligned(reactor, slot, limits)).toBe(expected);
      expect(isPayloadAligned(reactor, slot, { ...limits, requestAlignment: 1 })).toBe(true);
      release(slot);
    }
  });

  test("zeroPayload() zeroes from anywhere on", () => {
    for (const pieces of [
      [[10, 20]],
      [
        [10, 3],
        [13, 7],
        [20, 10],
      ],
    ] as [number, number][][]) {
      for (let start = 0; start <= 20; start++) {
        far.u8.fill(9);
        const slot = prepare(OP_READ, 0, pieces);
        zeroPayload(reactor, slot, start);
        release(slot);
        const expected = new Uint8Array(40).fill(9).fill(0, 10 + start, 30);
        expect(far.u8.slice(0, 40)).toEqual(expected);
      }
    }
  });

  test("goes through buffers part by part, flushes once, and stops at an error", async () => {
    const part = 256 * 1024;
    far.u8.fill(3);
    const slot = prepare(OP_WRITE, 512, [
      [1, part + 5],
      [700_000, part],
    ]);
    reactor.requests.flags[slot] = REQ_FUA;
    await run(slot);
    expect(results).toEqual([0]);
    expect(node.calls.map(({ op, offset, bytes }) => [op, offset, bytes])).toEqual([
      [OP_WRITE, 512, part],
      [OP_WRITE, 512 + part, part],
      [OP_WRITE, 512 + 2 * part, 5],
      [2, 0, 0],
    ]);
    expect(node.data.subarray(512, 512 + 2 * part + 5).every((value) => value === 3)).toBe(true);
    results = [];
    node.calls.length = 0;
    node.fails = (_op, offset) => (offset === part ? -EIO : 0);
    await run(prepare(OP_READ, 0, [[0, 3 * part]]));
    expect([results, node.calls.length]).toEqual([[-EIO], 2]);
  });

  test("holds buffers for a bounded number of requests", async () => {
    node.hold();
    const slots = Array.from({ length: 200 }, (_, i) =>
      prepare(OP_READ, i * 512, [[i * 512, 512]]),
    );
    node.data.fill(5);
    const ended = run(...slots);
    await runOn(reactor, () => reactor.sleep(1_000_000));
    expect(node.waitingCount).toBe(64);
    node.go();
    await runOn(reactor, () => ended);
    expect(results).toEqual(new Array(200).fill(0));
    expect(far.u8.subarray(0, 200 * 512).every((value) => value === 5)).toBe(true);
  });
});
