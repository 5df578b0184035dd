import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { nullCo } from "../../../src/block/drivers/null.ts";
import { raw } from "../../../src/block/drivers/raw.ts";
import {
  type BlockNode,
  OP_DISCARD,
  OP_READ,
  OP_WRITE,
  type Resolution,
} from "../../../src/block/node.ts";
import { setWriteThreshold, writeThresholdOf } from "../../../src/block/write-threshold.ts";
import { openContext } from "../../support/block.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

const reactor = makeReactor("epoll");
const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
const BYTES = 64 * 1024;
let node: FakeNode;
let amounts: number[];

afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

beforeEach(() => {
  node = new FakeNode(reactor, BYTES);
  amounts = [];
});

const set = (on: BlockNode, offset: number) =>
  setWriteThreshold(on, offset, (amount) => amounts.push(amount));
const run = (task: () => Promise<number>) => runOn(reactor, task);

describe("setWriteThreshold()", () => {
  test("tells once of a write beyond, by how much, and is over then", () => {
    node.fd = 3;
    set(node, 4096);
    expect(writeThresholdOf(node)).toBe(4096);
    node.resolve(OP_WRITE, 0, 4096, out);
    node.resolve(OP_READ, 8192, 4096, out);
    expect(amounts).toEqual([]);
    node.resolve(OP_WRITE, 4096, 512, out);
    expect(amounts).toEqual([512]);
    expect(writeThresholdOf(node)).toBe(0);
    node.resolve(OP_WRITE, 8192, 4096, out);
    expect(amounts).toEqual([512]);
  });

  test("leaves a node without one as it was", () => {
    const methods = () => [node.resolve, node.write, node.writeZeroes, node.discard];
    const before = methods();
    set(node, 4096);
    expect(methods()).not.toEqual(before);
    set(node, 0);
    expect(methods()).toEqual(before);
    expect(Object.hasOwn(node, "resolve")).toBe(false);
  });

  test("replaces the one before", () => {
    node.fd = 3;
    set(node, 4096);
    set(node, 8192);
    node.resolve(OP_WRITE, 4096, 4096, out);
    expect(amounts).toEqual([]);
    node.resolve(OP_WRITE, 4096, 4097, out);
    expect(amounts).toEqual([1]);
  });

  test("sees every way to write, and lets it do its work", async () => {
    set(node, 4096);
    expect(await run(() => node.writeZeroes(4096, 4096, 0))).toBe(0);
    set(node, 4096);
    expect(await run(() => node.write(8192, 512, reactor.memory.address, 0))).toBe(0);
    set(node, 4096);
    expect(await run(() => node.discard(16384, 512))).toBe(0);
    expect(amounts).toEqual([4096, 4608, 12800]);
    expect(node.calls.map(({ offset }) => offset)).toEqual([4096, 8192, 16384]);
  });

  test("does not count discards that do nothing", async () => {
    const zeroes = await nullCo.open(openContext(reactor));
    set(zeroes, 512);
    expect(zeroes.resolve(OP_DISCARD, 4096, 512, out)).toBe(1);
    expect(await run(() => zeroes.discard(4096, 512))).toBe(0);
    expect(amounts).toEqual([]);
  });

  test("notices writes of nodes above, at this node's offsets", async () => {
    node.fd = 7;
    const over = await raw.open(
      openContext(reactor, { options: { offset: 8192 }, children: { file: node } }),
    );
    set(node, 8192 + 4096);
    over.resolve(OP_WRITE, 0, 4096, out);
    expect(amounts).toEqual([]);
    over.resolve(OP_WRITE, 4096, 512, out);
    expect(amounts).toEqual([512]);
  });
});
