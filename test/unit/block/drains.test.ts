import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BlockBackend } from "../../../src/block/backend.ts";
import { backendsOf, Drains } from "../../../src/block/drains.ts";
import { type BlockLimits, OP_READ, OP_WRITE } from "../../../src/block/node.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { Payload } from "../../support/block.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";

class HookedNode extends FakeNode {
  override readonly nodeName: string;
  readonly hooks: string[];

  constructor(reactor: Reactor, nodeName: string, hooks: string[]) {
    super(reactor, 4096);
    this.nodeName = nodeName;
    this.hooks = hooks;
  }

  drainBegin(): void {
    this.hooks.push(`begin ${this.nodeName}`);
  }

  drainEnd(): void {
    this.hooks.push(`end ${this.nodeName}`);
  }
}

describe("Drains", () => {
  let reactor: Reactor;
  let hooks: string[];
  let nodes: Map<string, HookedNode>;
  let drains: Drains;
  let payload: Payload;

  beforeEach(() => {
    reactor = makeReactor(ENGINES[0]!);
    hooks = [];
    nodes = new Map(["a", "b", "c"].map((name) => [name, new HookedNode(reactor, name, hooks)]));
    drains = new Drains({ reactor, findNode: (name) => nodes.get(name) });
    payload = new Payload(reactor, 4096);
  });

  afterEach(() => {
    reactor.engine.close();
    reactor.memory.unmap();
  });

  const backendOf = (name: string) =>
    new BlockBackend(reactor, nodes.get(name)!, { writable: true, writethrough: false });
  const drain = (...nodeNames: string[]) => drains.calls["nodes-drain"]({ nodeNames });
  const resume = (section: number) => drains.calls["nodes-resume"]({ section });
  const read = (backend: BlockBackend) => backend.request(OP_READ, 0, 512, payload.address, 0);

  test("wait for what is in flight on their nodes, and on no others", async () => {
    const [a, c] = [backendOf("a"), backendOf("c")];
    nodes.get("a")!.hold();
    nodes.get("c")!.hold();
    const reads = [read(a), read(c)];
    let done = false;
    const section = drain("b", "a").then((reply) => {
      done = true;
      return reply.section;
    });
    await runOn(reactor, () => reactor.sleep(1_000_000));
    expect([done, hooks]).toEqual([false, ["begin b", "begin a"]]);
    nodes.get("a")!.go();
    const number = await runOn(reactor, () => section);
    expect([a.inFlight, c.inFlight]).toEqual([0, 1]);
    const late = read(a);
    await runOn(reactor, () => reactor.sleep(1_000_000));
    expect(nodes.get("a")!.calls.length).toBe(1);
    await resume(number);
    nodes.get("c")!.go();
    expect(await runOn(reactor, () => Promise.all([...reads, late]))).toEqual([0, 0, 0]);
    expect(hooks.slice(2)).toEqual(["end a", "end b"]);
  });

  test("overlap", async () => {
    const a = backendOf("a");
    const first = await drain("a");
    const second = await drain("a", "b");
    const waits = read(a);
    await resume(first.section);
    expect(nodes.get("a")!.calls).toEqual([]);
    await resume(second.section);
    expect(await runOn(reactor, () => waits)).toBe(0);
  });

  test("leave alone what was closed meanwhile", async () => {
    const a = backendOf("a");
    const { section } = await drain("a");
    await runOn(reactor, () => a.close());
    nodes.delete("a");
    hooks.length = 0;
    await resume(section);
    expect([hooks, backendsOf(reactor).size]).toEqual([[], 0]);
  });

  test("let the node's alignment change", async () => {
    const a = backendOf("a");
    const node = nodes.get("a")! as unknown as { limits: BlockLimits };
    const { section } = await drain("a");
    node.limits = { ...node.limits, requestAlignment: 512, memoryAlignment: 1 };
    await resume(section);
    // Part of a block: read, changed, and written back, apart from a write of all of it.
    const writes = [
      a.request(OP_WRITE, 0, 512, payload.address, 0),
      a.request(OP_WRITE, 1, 4, payload.address, 0),
    ];
    expect(await runOn(reactor, () => Promise.all(writes))).toEqual([0, 0]);
    const ops = nodes.get("a")!.calls.map(({ op, bytes }) => `${op} ${bytes}`);
    expect(ops).toEqual([`${OP_WRITE} 512`, `${OP_READ} 512`, `${OP_WRITE} 512`]);
  });
});
