import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BlockBackend } from "../../../../src/block/backend.ts";
import { compress } from "../../../../src/block/drivers/compress.ts";
import { copyOnRead } from "../../../../src/block/drivers/copy-on-read.ts";
import { markActive } from "../../../../src/block/inactive-nodes.ts";
import {
  type BlockNode,
  MAPPED,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  PERM_RESIZE,
  PERM_WRITE,
  REQ_FUA,
  type Resolution,
  SLOW,
} from "../../../../src/block/node.ts";
import type { Reactor } from "../../../../src/io/reactor.ts";
import { EIO, ENOTSUP } from "../../../../src/runtime/errno.ts";
import { openContext, Payload } from "../../../support/block.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";

const CLUSTER = 65_536;

/** What is written to it compressed it counts, and has. */
class CompressibleNode extends FakeNode {
  readonly compressed: [offset: number, bytes: number][] = [];
  result = 0;

  constructor(reactor: Reactor, bytes = 4 * CLUSTER) {
    super(reactor, bytes, { clusterBytes: CLUSTER });
  }

  async writeCompressed(offset: number, bytes: number, address: number): Promise<number> {
    this.compressed.push([offset, bytes]);
    return this.result || super.write(offset, bytes, address, 0);
  }
}

let reactor: Reactor;
let child: CompressibleNode;
let payload: Payload;

beforeEach(() => {
  reactor = makeReactor("epoll");
  child = new CompressibleNode(reactor);
  payload = new Payload(reactor, CLUSTER);
});

afterEach(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

async function open(over: BlockNode = child, detectZeroes: "off" | "on" = "off") {
  const node = await compress.open(
    openContext(reactor, { children: { file: over }, detectZeroes }),
  );
  markActive(node, true);
  const backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
  const ask = (op: 0 | 1 | 2 | 3 | 4, offset: number, bytes: number, flags = 0) =>
    runOn(reactor, () => backend.request(op, offset, bytes, payload.address, flags));
  return { node, ask };
}

describe("compress", () => {
  test("passes writes on compressed, whatever they cover, and nothing else", async () => {
    const { ask, node } = await open();
    payload.u8.fill(7);
    expect(await ask(OP_WRITE, 0, CLUSTER)).toBe(0);
    expect(await ask(OP_WRITE, CLUSTER + 5, 100)).toBe(0);
    expect(await ask(OP_READ, CLUSTER, 512)).toBe(0);
    expect(await ask(OP_WRITE_ZEROES, 0, CLUSTER)).toBe(0);
    expect(await ask(OP_DISCARD, 0, CLUSTER)).toBe(0);
    expect(child.compressed).toEqual([
      [0, CLUSTER],
      [CLUSTER + 5, 100],
    ]);
    expect(node.highestWrite).toBe(CLUSTER + 105);
  });

  test("flushes after a write with FUA", async () => {
    const { ask } = await open();
    expect(await ask(OP_WRITE, 0, 512, REQ_FUA)).toBe(0);
    expect(child.calls.map(({ op }) => op)).toEqual([OP_WRITE, OP_FLUSH]);
  });

  test("never maps a write, and maps reads as its child does", async () => {
    const { node } = await open();
    child.fd = 9;
    const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
    expect(node.resolve(OP_WRITE, 0, 512, out)).toBe(SLOW);
    expect(node.resolve(OP_READ, 512, 100, out)).toBe(MAPPED);
    expect(out).toEqual({ fd: 9, offset: 512, bytes: 100 });
  });

  test("finds zeroes first when it is to", async () => {
    const { ask } = await open(child, "on");
    expect(await ask(OP_WRITE, 0, CLUSTER)).toBe(0);
    expect(child.compressed).toEqual([]);
    expect(child.calls.map(({ op }) => op)).toEqual([OP_WRITE_ZEROES]);
  });

  test("says what its child says", async () => {
    const { ask } = await open();
    child.result = -EIO;
    expect(await ask(OP_WRITE, 0, 512)).toBe(-EIO);
  });

  test("asks its clients for whole clusters, and takes less", async () => {
    const { node } = await open();
    expect(node.limits).toMatchObject({ requestAlignment: 1, blockBytes: CLUSTER });
    expect(node.describe().limits).toEqual({ "request-alignment": CLUSTER });
  });

  test("can't write to a disk that ends inside a cluster", async () => {
    const { node } = await open(new CompressibleNode(reactor, CLUSTER + 512));
    await node.setPermissions(PERM_WRITE | PERM_RESIZE, 0);
    await expect(node.setPermissions(PERM_WRITE, 0)).rejects.toThrow(
      "Image size is not a multiple of request alignment",
    );
  });

  test("needs a child that can compress", async () => {
    await expect(open(new FakeNode(reactor, CLUSTER))).rejects.toThrow(
      "Compression is not supported for underlying format: fake",
    );
    await expect(open((await open()).node)).rejects.toThrow(
      "Compression is not supported for underlying format: compress",
    );
  });

  test("goes through filters that pass it on", async () => {
    const over = (file: BlockNode) =>
      copyOnRead.open(openContext(reactor, { children: { file }, bound: Infinity }));
    const { ask } = await open(await over(child));
    expect(await ask(OP_WRITE, 512, 512)).toBe(0);
    expect(child.compressed).toEqual([[512, 512]]);
    const none = await open(await over(new FakeNode(reactor, CLUSTER)));
    expect(await none.ask(OP_WRITE, 0, 512)).toBe(-ENOTSUP);
  });
});
