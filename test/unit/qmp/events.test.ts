/** EventHub: timestamps and rate limits. */
import { describe, expect, test } from "bun:test";
import { defineEvent } from "../../../src/qapi/define.ts";
import { int, object, str } from "../../../src/qapi/scalars.ts";
import { EventHub, type QmpEvent } from "../../../src/qmp/events.ts";

const definitions = [
  defineEvent({ name: "FREE", documentation: "", data: object("FREE", { n: int }) }),
  defineEvent({
    name: "LIMITED",
    documentation: "",
    data: object("LIMITED", { id: str, n: int }),
    rateLimit: { ms: 1000, by: ["id"] },
  }),
] as const;

function setUp() {
  const timers: (() => void)[] = [];
  let now = 0;
  const hub = new EventHub(definitions, {
    realTimeUs: () => ++now,
    setTimeout(action, ms) {
      expect(ms).toBe(1000);
      timers.push(action);
    },
  });
  const seen: QmpEvent[] = [];
  const unsubscribe = hub.subscribe((event) => seen.push(event));
  const fire = () => {
    for (const action of timers.splice(0)) action();
  };
  const numbers = () => seen.splice(0).map(({ data }) => data.n);
  return { hub, fire, numbers, seen, timers, unsubscribe };
}

describe("EventHub", () => {
  test("hands on every event without a limit", () => {
    const { hub, numbers, seen, unsubscribe } = setUp();
    hub.emit("FREE", { n: 1 });
    expect(seen[0]).toEqual({
      timestamp: { seconds: 0, microseconds: 1 },
      event: "FREE",
      data: { n: 1 },
    });
    hub.emit("FREE", { n: 2 });
    expect(numbers()).toEqual([1, 2]);
    unsubscribe();
    hub.emit("FREE", { n: 3 });
    expect(numbers()).toEqual([]);
  });

  test("keeps the last of those that come too soon, with its own time", () => {
    const { hub, fire, numbers, seen, timers } = setUp();
    for (const n of [1, 2, 3]) hub.emit("LIMITED", { id: "a", n });
    expect(numbers()).toEqual([1]);
    fire();
    expect(seen[0]?.timestamp.microseconds).toBe(3);
    expect(numbers()).toEqual([3]);
    // The one that waited starts the limit anew.
    hub.emit("LIMITED", { id: "a", n: 4 });
    expect(numbers()).toEqual([]);
    fire();
    expect(numbers()).toEqual([4]);
    fire();
    expect(timers).toEqual([]);
    hub.emit("LIMITED", { id: "a", n: 5 });
    expect(numbers()).toEqual([5]);
  });

  test("limits apart what differs in the members that count", () => {
    const { hub, numbers } = setUp();
    hub.emit("LIMITED", { id: "a", n: 1 });
    hub.emit("LIMITED", { id: "b", n: 2 });
    hub.emit("LIMITED", { id: "a", n: 3 });
    expect(numbers()).toEqual([1, 2]);
  });
});
