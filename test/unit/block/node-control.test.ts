import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import type { BlockNode } from "../../../src/block/node.ts";
import { OP_READ, OP_WRITE, type Resolution } from "../../../src/block/node.ts";
import { NodeControl } from "../../../src/block/node-control.ts";
import { statisticsOf } from "../../../src/block/statistics.ts";
import type { IothreadEvent } from "../../../src/iothread/messages.ts";
import { OutportError } from "../../../src/util/error.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { messageOf } from "../../support/iothread.ts";
import { makeReactor } from "../../support/reactor.ts";

const reactor = makeReactor("epoll");
const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

let nodes: Map<string, BlockNode>;
let events: IothreadEvent[];
let calls: NodeControl["calls"];

beforeEach(() => {
  nodes = new Map([
    ["a", new FakeNode(reactor, 4096)],
    ["b", new FakeNode(reactor, 4096)],
  ]);
  for (const node of nodes.values()) Object.assign(node, { fd: 3 });
  events = [];
  ({ calls } = new NodeControl({
    reactor,
    getNode: (name) => nodes.get(name)!,
    infoOf: ({ bytes, writable }) => ({ bytes, writable, description: {} }),
    send: (event) => events.push(event),
  }));
});

const a = () => nodes.get("a")!;

describe("NodeControl", () => {
  test("tells what was counted, and what only the node knows", async () => {
    statisticsOf(a()).count(OP_READ, 512, 0, 10, reactor.nowNs());
    const ask = () => calls["nodes-statistics"]({ nodeNames: ["b", "a"] });
    const [, before] = await ask();
    expect([before?.stats.rd_bytes, before?.driverSpecific]).toEqual([512, null]);
    Object.assign(a(), { highestWrite: 99, describeStatistics: () => ({ discards: 1 }) });
    const [b, after] = await ask();
    expect([after?.stats.wr_highest_offset, after?.driverSpecific]).toEqual([99, { discards: 1 }]);
    expect([b?.stats.rd_bytes, b?.stats.wr_highest_offset, b?.driverSpecific]).toEqual([
      0,
      0,
      null,
    ]);
  });

  test("truncates, then lets all look at their lengths", async () => {
    const done: string[] = [];
    Object.assign(a(), {
      truncate: async (bytes: number) => done.push(`truncate ${bytes}`),
      refreshLength: () => done.push("a"),
    });
    Object.assign(nodes.get("b")!, { refreshLength: () => done.push("b") });
    const infos = await calls["node-truncate"]({
      ...{ nodeName: "a", bytes: 512, connected: ["a", "b"] },
    });
    expect(done).toEqual(["truncate 512", "a", "b"]);
    expect(infos).toHaveLength(2);
  });

  test("makes nothing shorter that is to have a length at least", async () => {
    const done: number[] = [];
    Object.assign(a(), { truncate: async (bytes: number) => done.push(bytes) });
    const { bytes } = a();
    const truncate = { nodeName: "a", atLeast: true, connected: ["a"] };
    await calls["node-truncate"]({ ...truncate, bytes: bytes - 512 });
    await calls["node-truncate"]({ ...truncate, bytes: bytes + 512 });
    expect(done).toEqual([bytes + 512]);
  });

  test("refuses to truncate what can't be, and looks at nothing then", async () => {
    const truncate = { nodeName: "a", bytes: 512, connected: ["a"] };
    Object.assign(a(), { refreshLength: () => expect.unreachable() });
    expect(await messageOf(calls["node-truncate"](truncate))).toBe(
      "Image format driver does not support resize",
    );
    Object.assign(a(), { truncate: async () => Promise.reject(new OutportError("io", "no")) });
    expect(await messageOf(calls["node-truncate"](truncate))).toBe("no");
    Object.assign(a(), { writable: false });
    expect(await messageOf(calls["node-truncate"](truncate))).toBe("Image is read-only");
  });

  test("sends one event when a threshold is exceeded", async () => {
    await calls["node-write-threshold"]({ nodeName: "a", offset: 1024 });
    a().resolve(OP_WRITE, 1024, 512, out);
    a().resolve(OP_WRITE, 2048, 512, out);
    expect(events).toEqual([
      {
        event: "write-threshold",
        nodeName: a().nodeName,
        amountExceeded: 512,
        writeThreshold: 1024,
      },
    ]);
  });

  test("hands a node's history on", async () => {
    statisticsOf(a()).count(OP_READ, 512, 0, 10, 1000);
    await calls["node-write-threshold"]({ nodeName: "a", offset: 1024 });
    Object.assign(a(), { highestWrite: 99 });
    const history = structuredClone(await calls["node-history"]({ nodeName: "a" }));
    await calls["node-history-restore"]({ nodeName: "b", history });
    const [b] = await calls["nodes-statistics"]({ nodeNames: ["b"] });
    expect([b?.stats.rd_operations, b?.stats.wr_highest_offset]).toEqual([1, 99]);
    nodes.get("b")!.resolve(OP_WRITE, 4096, 1, out);
    expect(events).toHaveLength(1);
  });
});
