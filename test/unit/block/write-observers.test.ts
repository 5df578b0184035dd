import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { DirectAccess, type DirectFile } from "../../../src/block/direct-access.ts";
import {
  type BlockNode,
  MAPPED,
  OP_READ,
  OP_WRITE,
  type Resolution,
  ZERO,
} from "../../../src/block/node.ts";
import {
  addWriteObserver,
  removeWriteObserver,
  type WriteObserver,
} from "../../../src/block/write-observers.ts";
import { setWriteThreshold, writeThresholdOf } from "../../../src/block/write-threshold.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

const reactor = makeReactor("epoll");
const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
let node: FakeNode;
let seen: [offset: number, bytes: number][];
const observer: WriteObserver = (offset, bytes) => seen.push([offset, bytes]);

class CompressingNode extends FakeNode {
  async writeCompressed(): Promise<number> {
    return 0;
  }
}

afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

beforeEach(() => {
  node = new FakeNode(reactor, 64 * 1024);
  seen = [];
});

describe("an observer of writes", () => {
  test("hears of each once, whether it is mapped or slow", async () => {
    addWriteObserver(node, observer);
    // Slow: the method tells.
    node.resolve(OP_WRITE, 0, 512, out);
    expect(seen).toEqual([]);
    await runOn(reactor, () => node.write(0, 512, reactor.memory.address, 0));
    node.fd = 3;
    expect(node.resolve(OP_WRITE, 512, 1024, out)).toBe(MAPPED);
    node.resolve(OP_READ, 512, 1024, out);
    expect(seen).toEqual([
      [0, 512],
      [512, 1024],
    ]);
  });

  test("hears of the mapped part only: the rest comes again", () => {
    Object.assign(node, {
      resolve: (_op: number, _offset: number, _bytes: number, result: Resolution) => {
        result.bytes = 4096;
        return MAPPED;
      },
    });
    addWriteObserver(node, observer);
    node.resolve(OP_WRITE, 0, 8192, out);
    node.resolve(OP_WRITE, 4096, 1024, out);
    expect(seen).toEqual([
      [0, 4096],
      [4096, 1024],
    ]);
  });

  test("hears of what is written nowhere", () => {
    Object.assign(node, {
      resolve: (_op: number, _offset: number, bytes: number, result: Resolution) => {
        result.bytes = bytes;
        return ZERO;
      },
    });
    addWriteObserver(node, observer);
    node.resolve(OP_WRITE, 0, 512, out);
    expect(seen).toEqual([[0, 512]]);
  });

  test("hears of what is kept compressed, by nodes that can", async () => {
    addWriteObserver(node, observer);
    expect((node as BlockNode).writeCompressed).toBe(undefined);
    removeWriteObserver(node, observer);
    const compressing: BlockNode = new CompressingNode(reactor, 4096);
    const before = compressing.writeCompressed;
    addWriteObserver(compressing, observer);
    await runOn(reactor, () => compressing.writeCompressed!(512, 1024, reactor.memory.address));
    expect(seen).toEqual([[512, 1024]]);
    removeWriteObserver(compressing, observer);
    expect(compressing.writeCompressed).toBe(before);
  });

  test("is not the only one, and the others stay when it goes", async () => {
    const before = node.write;
    const others: number[] = [];
    const other: WriteObserver = (offset) => others.push(offset);
    addWriteObserver(node, observer);
    setWriteThreshold(node, 4096, () => {});
    addWriteObserver(node, other);
    await runOn(reactor, () => node.writeZeroes(8192, 512, 0));
    expect(writeThresholdOf(node)).toBe(0);
    removeWriteObserver(node, observer);
    removeWriteObserver(node, observer);
    await runOn(reactor, () => node.writeZeroes(0, 512, 0));
    expect([seen.length, others.length]).toEqual([1, 2]);
    removeWriteObserver(node, other);
    expect(node.write).toBe(before);
  });

  test("is refused while others write past us", () => {
    const access = new DirectAccess({} as DirectFile, [node], true);
    expect(() => addWriteObserver(node, observer)).toThrow("lets read and write directly");
    expect(() => setWriteThreshold(node, 4096, () => {})).toThrow("Node 'fake' is in use");
    expect(writeThresholdOf(node)).toBe(0);
    expect(Object.hasOwn(node, "write")).toBe(false);
    access.close();
  });
});
