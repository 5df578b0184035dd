import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  THROTTLE_READ,
  THROTTLE_WRITE,
  type ThrottleDirection,
  ThrottleGroup,
} from "../../../src/block/throttle-group.ts";
import { type LimitName, mergeLimits, NO_LIMITS } from "../../../src/block/throttle-limits.ts";
import { ThrottleQueue } from "../../../src/block/throttle-queue.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { Timers } from "../../../src/io/timers.ts";

const SECOND = 1e9;
/** What one request per second needs. */
const LIMITS = { "iops-read": 1, "iops-read-max": 1 };

let nowNs: number;
let timers: Timers;
let group: ThrottleGroup;
let done: string[];

beforeEach(() => {
  nowNs = 1000 * SECOND;
  timers = new Timers();
  group = new ThrottleGroup();
  configure(LIMITS);
  done = [];
});

afterEach(() => expect(timers.nextNs).toBe(Infinity));

function configure(limits: Partial<Record<LimitName, number>>): void {
  group.configure(mergeLimits(NO_LIMITS, limits), nowNs);
}

/** The reactor's own clock begins elsewhere. */
function queueOf(): ThrottleQueue {
  const reactor = { timers, nowNs: () => nowNs - 900 * SECOND, asyncResumed: () => {} };
  return new ThrottleQueue(reactor as unknown as Reactor, group, () => nowNs);
}

function enter(
  queue: ThrottleQueue,
  name: string,
  direction: ThrottleDirection = THROTTLE_READ,
): void {
  queue.enter(direction, 1).then(() => done.push(name));
}

/** Lets time pass, timer by timer; returns what may go on by then. */
async function pass(seconds: number): Promise<string[]> {
  const endNs = nowNs + seconds * SECOND;
  while (timers.nextNs + 900 * SECOND <= endNs) {
    nowNs = Math.max(nowNs, timers.nextNs + 900 * SECOND);
    timers.run(nowNs - 900 * SECOND);
    await Promise.resolve();
  }
  nowNs = endNs;
  for (let i = 0; i < 5; i++) await Promise.resolve();
  return done.splice(0);
}

describe("ThrottleQueue", () => {
  test("lets requests of one direction go in their order, at the rate", async () => {
    const queue = queueOf();
    for (const name of ["a", "b", "c", "d"]) enter(queue, name);
    enter(queue, "w", THROTTLE_WRITE);
    expect(await pass(0)).toEqual(["a", "b", "w"]);
    expect(queue.waitingCount).toBe(2);
    expect(await pass(0.99)).toEqual([]);
    expect(await pass(0.02)).toEqual(["c"]);
    expect(await pass(1)).toEqual(["d"]);
  });

  test("takes turns with other nodes of the group, however many requests they have", async () => {
    const [one, other, third] = [queueOf(), queueOf(), queueOf()];
    for (let i = 0; i < 6; i++) enter(one, `one${i}`);
    expect(await pass(0)).toEqual(["one0", "one1"]);
    for (let i = 0; i < 3; i++) enter(other, `other${i}`);
    enter(third, "third0");
    const order: string[] = [];
    for (let i = 0; i < 8; i++) order.push(...(await pass(1.001)));
    expect(order).toEqual(["one2", "other0", "third0", "one3", "other1", "one4", "other2", "one5"]);
  });

  test("new limits hold for what waits, too", async () => {
    const queue = queueOf();
    for (const name of ["a", "b", "c", "d", "e"]) enter(queue, name);
    expect(await pass(0)).toEqual(["a", "b"]);
    configure({ "iops-read": 10, "iops-read-max": 10 });
    expect(await pass(0.11)).toEqual(["c", "d", "e"]);
    configure(LIMITS);
    for (const name of ["f", "g", "h"]) enter(queue, name);
    expect(await pass(0)).toEqual(["f", "g"]);
    configure({});
    expect(await pass(0.11)).toEqual(["h"]);
  });

  test("a drained section lets everything go on, and counts it", async () => {
    const queue = queueOf();
    for (const name of ["a", "b", "c", "d"]) enter(queue, name);
    expect(await pass(0)).toEqual(["a", "b"]);
    queue.drainBegin();
    queue.drainBegin();
    expect(await pass(0)).toEqual(["c", "d"]);
    enter(queue, "e");
    queue.drainEnd();
    enter(queue, "f");
    expect(await pass(0)).toEqual(["e", "f"]);
    queue.drainEnd();
    enter(queue, "g");
    expect(await pass(4.9)).toEqual([]);
    expect(await pass(0.2)).toEqual(["g"]);
  });
});
