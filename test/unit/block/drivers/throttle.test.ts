import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BlockBackend } from "../../../../src/block/backend.ts";
import type { Surroundings } from "../../../../src/block/driver.ts";
import { throttle } from "../../../../src/block/drivers/throttle.ts";
import {
  type BlockNode,
  MAPPED,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  PERM_ALL,
  PERM_WRITE,
  type Resolution,
  SLOW,
  ZERO,
} from "../../../../src/block/node.ts";
import { ThrottleGroup } from "../../../../src/block/throttle-group.ts";
import { type LimitName, mergeLimits, NO_LIMITS } from "../../../../src/block/throttle-limits.ts";
import type { Reactor } from "../../../../src/io/reactor.ts";
import { openContext, Payload } from "../../../support/block.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { pattern } from "../../../support/images.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";

const BYTES = 1024 * 1024;
const OPTIONS = { "throttle-group": "tg" };
const out: Resolution = { fd: -1, offset: 0, bytes: 0 };

let reactor: Reactor;
let child: FakeNode;
let group: ThrottleGroup;
let node: BlockNode;

beforeEach(async () => {
  reactor = makeReactor("epoll");
  child = new FakeNode(reactor, BYTES);
  child.data.set(pattern(BYTES));
  group = new ThrottleGroup();
  node = await open();
});

afterEach(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

function open(some: Parameters<typeof openContext>[1] = {}): Promise<BlockNode> {
  const bound = group.shared;
  const children = { file: child };
  return throttle.open(openContext(reactor, { options: OPTIONS, bound, children, ...some }));
}

function configure(limits: Partial<Record<LimitName, number>>): void {
  group.configure(mergeLimits(NO_LIMITS, limits), reactor.linux.monotonicNs());
}

describe("throttle", () => {
  test("is its child where there are no limits", async () => {
    child.fd = 7;
    expect(node.resolve(OP_READ, 512, 1024, out)).toBe(MAPPED);
    expect(out).toEqual({ fd: 7, offset: 512, bytes: 1024 });
    expect([node.bytes, node.limits, node.driver]).toEqual([BYTES, child.limits, "throttle"]);
    configure({ "bps-write": 1 });
    expect(node.resolve(OP_READ, 0, 512, out)).toBe(MAPPED);
    expect(node.resolve(OP_FLUSH, 0, 0, out)).toBe(MAPPED);
    expect(node.resolve(OP_CACHE, 0, 512, out)).toBe(ZERO);
    expect(node.resolve(OP_DISCARD, 0, 512, out)).toBe(ZERO);
    for (const op of [OP_WRITE, OP_WRITE_ZEROES] as const) {
      expect(node.resolve(op, 0, 512, out)).toBe(SLOW);
      expect(out.bytes).toBe(512);
    }
  });

  test("resolve() takes nothing from the group", async () => {
    configure({ "iops-total": 1, "iops-total-max": 1 });
    for (let i = 0; i < 10; i++) expect(node.resolve(OP_READ, 0, 512, out)).toBe(SLOW);
    const payload = new Payload(reactor, 512);
    const start = performance.now();
    await runOn(reactor, () => node.read(0, 512, payload.address));
    // One that waits for ten does so for nine seconds.
    expect(performance.now() - start).toBeLessThan(8000);
    expect(Buffer.compare(payload.u8, child.data.subarray(0, 512))).toBe(0);
  });

  test("makes every kind of request wait but a flush", async () => {
    node = await open({ discardUnmap: true });
    const payload = new Payload(reactor, 512);
    payload.u8.fill(1);
    for (const request of [
      () => node.read(0, 512, payload.address),
      () => node.write(0, 512, payload.address, 0),
      () => node.writeZeroes(0, 512, 0),
      () => node.discard(0, 512),
    ]) {
      configure({ "iops-total": 20, "iops-total-max": 20 });
      const start = performance.now();
      const wait = async () => {
        for (let i = 0; i < 20; i++) group.take(0, 1, reactor.linux.monotonicNs());
        const ended: string[] = [];
        const note = (what: string) => (result: number) => ended.push(`${what} ${result}`);
        await Promise.all([
          request().then(note("request")),
          request().then(note("request")),
          node.flush().then(note("flush")),
        ]);
        return ended;
      };
      expect(await runOn(reactor, wait)).toEqual(["flush 0", "request 0", "request 0"]);
      // Room for one of the two.
      expect(performance.now() - start).toBeGreaterThan(25);
    }
  });

  test("leaves errors as they are", async () => {
    configure({ "bps-total": 1e9 });
    child.fails = () => -5;
    const payload = new Payload(reactor, 512);
    expect(await runOn(reactor, () => node.read(0, 512, payload.address))).toBe(-5);
  });

  test("two nodes share a group", async () => {
    const other = await open({ nodeName: "node1" });
    configure({ "iops-read": 20, "iops-read-max": 20 });
    const payload = new Payload(reactor, 512);
    const start = performance.now();
    for (let i = 0; i < 20; i++) group.take(0, 1, reactor.linux.monotonicNs());
    const read = (from: BlockNode) => from.read(0, 512, payload.address);
    await runOn(reactor, () => Promise.all([read(node), read(other), read(node), read(other)]));
    expect(performance.now() - start).toBeGreaterThan(100);
  });

  test("a backend that is closed waits for no limit", async () => {
    configure({ "bps-total": 1, "bps-total-max": 1 });
    const backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
    const payload = new Payload(reactor, 4096);
    const reads = [0, 1, 2].map(() => backend.request(OP_READ, 0, 4096, payload.address, 0));
    const write = backend.request(OP_WRITE, 0, 4096, payload.address, 0);
    expect(await runOn(reactor, () => backend.close())).toBe(0);
    // Not in an hour, as the limit would have it.
    expect(await runOn(reactor, () => Promise.all([...reads, write]))).toEqual([0, 0, 0, 0]);
  });

  test("is a member of its group while it is open, and changes it when reopened", async () => {
    const other = new ThrottleGroup();
    expect(group.close()).toBe(false);
    const context = openContext(reactor, {
      options: { "throttle-group": "other" },
      bound: other.shared,
      children: { file: child },
    });
    const used = { used: 0, shared: PERM_ALL };
    const undone = await node.reopen!(context, used);
    expect([group.close(), other.close()]).toEqual([false, false]);
    undone.undo();
    expect(other.close()).toBe(true);
    await expect(node.reopen!(context, used)).rejects.toThrow(
      "Throttle group 'other' does not exist",
    );
    await node.close();
    expect(group.close()).toBe(true);
    await expect(open()).rejects.toThrow("Throttle group 'tg' does not exist");
  });

  test("reopen() keeps the new group", async () => {
    const other = new ThrottleGroup();
    const context = openContext(reactor, {
      options: OPTIONS,
      bound: other.shared,
      children: { file: child },
    });
    (await node.reopen!(context, { used: 0, shared: PERM_ALL })).commit();
    expect([group.close(), other.close()]).toEqual([true, false]);
  });

  test("bind() finds the group, childPermissions() passes on", () => {
    const surroundings = (found: { throttleGroup?: SharedArrayBuffer } | undefined) =>
      ({ options: OPTIONS, findObject: () => found }) as unknown as Surroundings;
    expect(throttle.bind!(surroundings({ throttleGroup: group.shared }))).toBe(group.shared);
    for (const found of [undefined, {}]) {
      expect(() => throttle.bind!(surroundings(found))).toThrow(
        "Throttle group 'tg' does not exist",
      );
    }
    const of = { used: PERM_WRITE, shared: PERM_ALL };
    expect(throttle.childPermissions!("file", of, OPTIONS, true)).toEqual(of);
  });
});
