import { describe, expect, test } from "bun:test";
import { WriteGate, writeGateOf } from "../../../src/block/write-gate.ts";
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
  test("gives each reactor its own, always the same", () => {
    const [one, other] = [makeReactor("epoll"), makeReactor("epoll")];
    expect(writeGateOf(one)).toBe(writeGateOf(one));
    expect(writeGateOf(one)).not.toBe(writeGateOf(other));
  });
});
