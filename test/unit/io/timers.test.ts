import { describe, expect, test } from "bun:test";
import { type Timer, Timers } from "../../../src/io/timers.ts";
import { Random } from "../../support/random.ts";

describe("Timers", () => {
  test("runs what is due, in order, and nothing that was cleared", () => {
    const random = new Random(1);
    const timers = new Timers();
    const ran: number[] = [];
    const expected: number[] = [];
    const set: { timer: Timer; deadline: number }[] = [];
    for (let i = 0; i < 500; i++) {
      const deadline = random.below(1000);
      set.push({ deadline, timer: timers.set(deadline, () => ran.push(deadline)) });
    }
    for (const { timer, deadline } of set) {
      if (random.chance(0.4)) timers.clear(timer);
      else expected.push(deadline);
    }
    expected.sort((a, b) => a - b);
    expect(timers.nextNs).toBe(expected[0]!);
    timers.run(500);
    expect(ran).toEqual(expected.filter((deadline) => deadline <= 500));
    timers.run(1000);
    expect(ran).toEqual(expected);
    expect(timers.nextNs).toBe(Infinity);
    for (const { timer } of set) timers.clear(timer);
  });

  test("keeps what is set meanwhile for the next time", () => {
    const timers = new Timers();
    let count = 0;
    const again = () => {
      count++;
      timers.set(0, again);
    };
    timers.set(0, again);
    timers.run(10);
    expect(count).toBe(1);
    timers.run(10);
    expect(count).toBe(2);
  });
});
