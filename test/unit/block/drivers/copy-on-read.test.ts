import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BlockBackend } from "../../../../src/block/backend.ts";
import type { NodeView, Surroundings } from "../../../../src/block/driver.ts";
import { copyOnRead } from "../../../../src/block/drivers/copy-on-read.ts";
import { raw } from "../../../../src/block/drivers/raw.ts";
import { markActive } from "../../../../src/block/inactive-nodes.ts";
import {
  type BlockNode,
  type BlockStatus,
  MAPPED,
  OP_CACHE,
  OP_READ,
  OP_WRITE,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  type Resolution,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  ZERO,
} from "../../../../src/block/node.ts";
import type { Reactor } from "../../../../src/io/reactor.ts";
import { openContext, Payload } from "../../../support/block.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { pattern } from "../../../support/images.ts";
import { Random, randomSeed } from "../../../support/random.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";

const CLUSTER = 4096;
const CLUSTERS = 64;
const BYTES = CLUSTER * CLUSTERS;

/** The top of a chain: which layer has each cluster; 0 is none. Data is the same in all. */
class ChainNode extends FakeNode {
  readonly depths = new Uint8Array(CLUSTERS).fill(1);
  copyResult = 0;
  readonly copied: [offset: number, bytes: number][] = [];

  constructor(reactor: Reactor) {
    super(reactor, BYTES);
    this.data.set(pattern(BYTES));
    this.status = async (offset, bytes, out) => {
      const first = Math.floor(offset / CLUSTER);
      const depth = this.depths[first]!;
      let end = first;
      while (end < CLUSTERS && this.depths[end] === depth) end++;
      out.bytes = Math.min(bytes, end * CLUSTER - offset);
      out.depth = depth;
      out.flags = depth === 0 ? 0 : STATUS_DATA | (depth === 1 ? STATUS_ALLOCATED : 0);
      return 0;
    };
  }

  async copyUp(offset: number, bytes: number): Promise<number> {
    this.copied.push([offset, bytes]);
    const last = Math.floor((offset + bytes - 1) / CLUSTER);
    if (this.copyResult === 0) this.depths.fill(1, Math.floor(offset / CLUSTER), last + 1);
    return this.copyResult;
  }
}

const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
let reactor: Reactor;
let child: ChainNode;
let payload: Payload;

beforeEach(() => {
  reactor = makeReactor("epoll");
  child = new ChainNode(reactor);
  payload = new Payload(reactor, BYTES);
});

afterEach(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

/** `bound`: how far down is copied from. */
function open(bound = Infinity, below: BlockNode = child): Promise<BlockNode> {
  return copyOnRead.open(openContext(reactor, { bound, children: { file: below } }));
}

function read(node: BlockNode, offset: number, bytes: number): Promise<number> {
  return runOn(reactor, () => node.read(offset, bytes, payload.address));
}

describe("copy-on-read", () => {
  test("copies what the topmost layer does not have, once", async () => {
    const node = await open();
    child.depths.set([1, 2, 2, 0, 3, 1]);
    expect(node.resolve(OP_READ, 0, 6 * CLUSTER, out)).toBe(SLOW);
    expect(out.bytes).toBe(6 * CLUSTER);
    expect(child.calls).toEqual([]);
    expect(await read(node, 100, 6 * CLUSTER - 200)).toBe(0);
    const expected = child.data.subarray(100, 6 * CLUSTER - 100);
    expect(Buffer.compare(payload.u8.subarray(0, expected.length), expected)).toBe(0);
    expect(child.copied).toEqual([
      [CLUSTER, 2 * CLUSTER],
      [3 * CLUSTER, CLUSTER],
      [4 * CLUSTER, CLUSTER],
    ]);
    child.fd = 5;
    expect(node.resolve(OP_READ, 200, 6 * CLUSTER - 300, out)).toBe(MAPPED);
    expect(node.resolve(OP_CACHE, 200, 6 * CLUSTER - 300, out)).toBe(ZERO);
    expect(node.resolve(OP_READ, 6 * CLUSTER, 10, out)).toBe(SLOW);
    expect(node.resolve(OP_WRITE, 6 * CLUSTER, 10, out)).toBe(MAPPED);
  });

  test("copies only from the layers down to bottom", async () => {
    const node = await open(2);
    child.depths.set([1, 2, 3, 0, 2]);
    expect(await read(node, 0, 5 * CLUSTER)).toBe(0);
    expect(child.copied).toEqual([
      [CLUSTER, CLUSTER],
      [4 * CLUSTER, CLUSTER],
    ]);
    expect([...child.depths.subarray(0, 5)]).toEqual([1, 1, 3, 0, 1]);
  });

  test("prefetches on OP_CACHE, also under raw, and reads nothing", async () => {
    const filter = await open();
    const options = { offset: CLUSTER };
    const node = await raw.open(openContext(reactor, { options, children: { file: filter } }));
    child.depths.fill(2);
    const backend = new BlockBackend(reactor, node, { writable: false, writethrough: false });
    expect(await runOn(reactor, () => backend.request(OP_CACHE, 0, 2 * CLUSTER, 0, 0))).toBe(0);
    expect(child.copied).toEqual([[CLUSTER, 2 * CLUSTER]]);
    expect(child.calls).toEqual([]);
    await runOn(reactor, () => backend.close());
  });

  test("tells when copying fails, and tries again", async () => {
    const node = await open();
    child.depths.fill(2);
    child.copyResult = -28;
    expect(await read(node, 0, CLUSTER)).toBe(-28);
    child.copyResult = 0;
    expect(await read(node, 0, CLUSTER)).toBe(0);
    expect(child.copied.length).toBe(2);
  });

  test("copies where the status can't be had", async () => {
    const node = await open();
    child.status = () => -5;
    expect(await read(node, 0, CLUSTER)).toBe(0);
    expect(child.copied).toEqual([[0, CLUSTER]]);
  });

  test("copies nothing while it is inactive", async () => {
    const node = await open();
    child.depths.fill(2);
    markActive(node, false);
    expect(await read(node, 0, CLUSTER)).toBe(0);
    expect(child.copied).toEqual([]);
    markActive(node, true);
    expect(await read(node, 0, CLUSTER)).toBe(0);
    expect(child.copied).toEqual([[0, CLUSTER]]);
  });

  test("reads from a child without layers", async () => {
    const below = new FakeNode(reactor, BYTES);
    const node = await open(Infinity, below);
    expect(await read(node, 0, BYTES)).toBe(0);
    expect(node.resolve(OP_CACHE, 0, BYTES, out)).toBe(ZERO);
    below.status = (_offset, bytes, status) => {
      Object.assign(status, { flags: 0, bytes, depth: 0 } satisfies BlockStatus);
      return 0;
    };
    expect(await read(await open(Infinity, below), 0, BYTES)).toBe(0);
  });

  test("asks again about what was discarded, and about all after a drained section", async () => {
    const node = await copyOnRead.open(
      openContext(reactor, { bound: Infinity, discardUnmap: true, children: { file: child } }),
    );
    expect(await read(node, 0, BYTES)).toBe(0);
    expect(node.resolve(OP_CACHE, 0, BYTES, out)).toBe(ZERO);
    expect(await runOn(reactor, () => node.discard(CLUSTER, CLUSTER))).toBe(0);
    expect(node.resolve(OP_CACHE, 0, CLUSTER, out)).toBe(ZERO);
    expect(node.resolve(OP_CACHE, CLUSTER, 1, out)).toBe(SLOW);
    expect(await runOn(reactor, () => node.writeZeroes(0, 1, 0))).toBe(0);
    expect(node.resolve(OP_CACHE, 0, 1, out)).toBe(SLOW);
    node.drainBegin!();
    node.drainEnd!();
    expect(node.resolve(OP_CACHE, 10 * CLUSTER, 1, out)).toBe(SLOW);
  });

  test("any reads leave exactly the clusters copied that were read", async () => {
    const random = new Random(randomSeed());
    for (let round = 0; round < 30; round++) {
      const depthMax = [Infinity, 1, 2, 3][random.below(4)]!;
      for (let i = 0; i < CLUSTERS; i++) child.depths[i] = random.below(5);
      const node = await open(depthMax);
      const model = child.depths.slice();
      for (let i = 0; i < 10; i++) {
        const offset = random.below(BYTES);
        const bytes = 1 + random.below(Math.min(BYTES - offset, 10 * CLUSTER));
        expect(await read(node, offset, bytes)).toBe(0);
        const data = child.data.subarray(offset, offset + bytes);
        expect(Buffer.compare(payload.u8.subarray(0, bytes), data)).toBe(0);
        const last = Math.floor((offset + bytes - 1) / CLUSTER);
        for (let cluster = Math.floor(offset / CLUSTER); cluster <= last; cluster++) {
          const depth = model[cluster]!;
          if (depthMax === Infinity || (depth > 0 && depth <= depthMax)) model[cluster] = 1;
        }
      }
      expect([...child.depths]).toEqual([...model]);
    }
  });

  test("childPermissions() writes what is there already, and lets others do it", () => {
    const of = { used: PERM_CONSISTENT_READ, shared: PERM_ALL & ~PERM_WRITE_UNCHANGED };
    const expected = { used: PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, shared: PERM_ALL };
    expect(copyOnRead.childPermissions!("file", of, {}, true)).toEqual(expected);
    const other = { used: PERM_WRITE_UNCHANGED, shared: PERM_WRITE };
    expect(copyOnRead.childPermissions!("file", other, {}, true)).toEqual({
      used: PERM_WRITE_UNCHANGED,
      shared: PERM_WRITE | PERM_WRITE_UNCHANGED,
    });
  });
});

describe("copy-on-read's bottom", () => {
  const view = (nodeName: string, children: Record<string, NodeView>, filtered?: string) => ({
    nodeName,
    driver: { ...raw, ...(filtered === undefined ? {} : { filtered }) },
    children: Object.entries(children).map(([role, child]) => ({ role, child })),
  });
  const base = view("base", {});
  const middle = view("middle", { backing: base });
  const filter = view("filter", { file: middle }, "file");
  const top = view("top", { file: view("top-file", {}), backing: filter });
  const node = view("cor", { file: top }, "file");
  const nodes = [base, middle, filter, top, node, view("elsewhere", {})];

  const bind = (options: Record<string, unknown>) =>
    copyOnRead.bind!({
      node,
      options,
      findNode: (name) => nodes.find(({ nodeName }) => nodeName === name),
      findObject: () => undefined,
      servedDevices: () => [],
    } satisfies Surroundings);

  test("is counted in nodes, as block status counts them", () => {
    expect(bind({})).toBe(Infinity);
    expect(["top", "middle", "base"].map((bottom) => bind({ bottom }))).toEqual([1, 3, 4]);
  });

  test("is refused in QSD's words, or ours where it loops", () => {
    expect(() => bind({ bottom: "zz" })).toThrow("Bottom node 'zz' not found");
    expect(() => bind({ bottom: "" })).toThrow("Bottom node '' not found");
    expect(() => bind({ bottom: "filter" })).toThrow("Bottom node 'filter' is a filter");
    expect(() => bind({ bottom: "elsewhere" })).toThrow(
      "Bottom node 'elsewhere' is not below 'cor'",
    );
  });
});
