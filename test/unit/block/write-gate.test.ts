import { describe, expect, test } from "bun:test";
import { acquireWriteGate, WriteGate, writeGateOf } from "../../../src/block/write-gate.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { makeReactor } from "../../support/reactor.ts";

const settle = () => new Promise((resolve) => setTimeout(resolve, 0));

function makeGate() {
  const log: string[] = [];
  const reactor = makeReactor("epoll");
  const gate = new WriteGate(reactor);
  const ask = (name: string, alone: boolean) => {
    void (alone ? gate.enterAlone() : gate.enter()).then(() => log.push(name));
  };
  return { gate, log, ask, reactor };
}

describe("WriteGate", () => {
  test("lets ordinary writes in together, and who is alone after all of them", async () => {
    const { gate, log, ask } = makeGate();
    expect([gate.tryEnter(), gate.tryEnter()]).toEqual([true, true]);
    ask("alone", true);
    await settle();
    expect(log).toEqual([]);
    gate.leave();
    await settle();
    expect(log).toEqual([]);
    gate.leave();
    await settle();
    expect(log).toEqual(["alone"]);
    expect(gate.tryEnter()).toBe(false);
    gate.leaveAlone();
    expect(gate.tryEnter()).toBe(true);
  });

  test("keeps the order of arrival: nobody starves", async () => {
    const { gate, log, ask } = makeGate();
    ask("a", true);
    ask("b", false);
    ask("c", false);
    ask("d", true);
    ask("e", false);
    await settle();
    expect(log).toEqual(["a"]);
    gate.leaveAlone();
    await settle();
    expect(log).toEqual(["a", "b", "c"]);
    expect(gate.tryEnter()).toBe(false);
    gate.leave();
    gate.leave();
    await settle();
    expect(log).toEqual(["a", "b", "c", "d"]);
    gate.leaveAlone();
    await settle();
    expect(log).toEqual(["a", "b", "c", "d", "e"]);
  });
});

describe("writeGateOf()", () => {
  test("gives each reactor its own, always the same, for nodes without a host file", () => {
    const [one, other] = [makeReactor("epoll"), makeReactor("epoll")];
    const nodes = [new FakeNode(one, 512), new FakeNode(one, 512)] as const;
    expect(writeGateOf(one, nodes[0])).toBe(writeGateOf(one, nodes[1]));
    expect(writeGateOf(one, nodes[0])).not.toBe(writeGateOf(other, nodes[0]));
  });

  test("is one for all nodes on a host file, while one of them has it", () => {
    const reactor = makeReactor("epoll");
    const one = acquireWriteGate(reactor, "a");
    const two = acquireWriteGate(reactor, "a");
    const other = acquireWriteGate(reactor, "b");
    expect(one.gate).toBe(two.gate);
    expect(one.gate).not.toBe(other.gate);
    one.release();
    expect(acquireWriteGate(reactor, "a").gate).toBe(two.gate);
    const node = Object.assign(new FakeNode(reactor, 512), { writeGate: two.gate });
    expect(writeGateOf(reactor, node)).toBe(two.gate);
  });

  test("starts anew when nobody has the file open", () => {
    const reactor = makeReactor("epoll");
    const one = acquireWriteGate(reactor, "a");
    one.release();
    expect(acquireWriteGate(reactor, "a").gate).not.toBe(one.gate);
  });
});
