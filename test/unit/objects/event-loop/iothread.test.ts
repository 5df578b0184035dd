/** The kind iothread with faked threads. Words and order are those of QSD 11.1. */
import { beforeEach, describe, expect, test } from "bun:test";
import { OutportError } from "../../../../src/util/error.ts";
import { ObjectRig } from "../../../support/objects.ts";

let rig: ObjectRig;
beforeEach(() => {
  rig = new ObjectRig();
});

const RANGE = "value must be in range [0, 9223372036854775807]";
const POOL = "bad thread-pool-min/thread-pool-max values";

describe("iothread", () => {
  test("has defaults", async () => {
    await rig.add("iothread", "a");
    expect(await rig.values("a")).toEqual({
      type: "iothread",
      "aio-max-batch": 0,
      "thread-pool-min": 0,
      "thread-pool-max": 64,
      "poll-max-ns": 32_768,
      "poll-grow": 2,
      "poll-shrink": 2,
      "poll-weight": 3,
    });
    expect(rig.log).toEqual([["start", "a", { pollMaxNs: 32_768, pollGrow: 2, pollShrink: 2 }]]);
  });

  test("starts its thread as it is told", async () => {
    const options = { "poll-max-ns": 0, "poll-grow": 3, "poll-shrink": 4, "poll-weight": 63 };
    await rig.add("iothread", "a", options);
    expect(rig.log).toEqual([["start", "a", { pollMaxNs: 0, pollGrow: 3, pollShrink: 4 }]]);
    expect(await rig.values("a")).toMatchObject(options);
  });

  test("refuses values out of range, in creation and afterwards", async () => {
    await rig.add("iothread", "b");
    for (const name of ["poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"]) {
      const message = `${name} ${RANGE}`;
      expect(await rig.messageOf(rig.add("iothread", "a", { [name]: -1 }))).toBe(message);
      expect(await rig.messageOf(rig.set("b", name, -1))).toBe(message);
    }
    for (const weight of [-1, 64]) {
      const message = "poll-weight value must be in range [0, 63]";
      const adding = rig.add("iothread", "a", { "poll-weight": weight });
      expect(await rig.messageOf(adding)).toBe(message);
      expect(await rig.messageOf(rig.set("b", "poll-weight", weight))).toBe(message);
    }
    for (const bad of [
      { "thread-pool-max": 0 },
      { "thread-pool-max": 2 ** 31 },
      { "thread-pool-min": 65 },
      { "thread-pool-min": 5, "thread-pool-max": 2 },
    ]) {
      expect(await rig.messageOf(rig.add("iothread", "a", bad))).toBe(POOL);
    }
    expect(rig.log.length).toBe(1);
  });

  test("looks at several bad values in the order of QSD", async () => {
    const order = [
      "poll-shrink",
      "poll-weight",
      "aio-max-batch",
      "poll-grow",
      "thread-pool-max",
      "thread-pool-min",
      "poll-max-ns",
    ];
    for (let count = order.length; count > 0; count -= 1) {
      const bad = order.slice(-count);
      const options = Object.fromEntries(bad.toReversed().map((name) => [name, -1]));
      const message = await rig.messageOf(rig.add("iothread", "a", options));
      expect(message?.split(" ")[0]).toBe(bad[0]);
    }
  });

  test("tells its thread when polling changes, and only then", async () => {
    await rig.add("iothread", "a");
    await rig.set("a", "poll-max-ns", 5);
    await rig.set("a", "poll-shrink", 7);
    await rig.set("a", "aio-max-batch", 9);
    await rig.set("a", "thread-pool-max", 2 ** 31 - 1);
    expect(rig.log.slice(1)).toEqual([
      ["configure", "a", { pollMaxNs: 5, pollGrow: 2, pollShrink: 2 }],
      ["configure", "a", { pollMaxNs: 5, pollGrow: 2, pollShrink: 7 }],
    ]);
    expect(await rig.values("a")).toMatchObject({
      "poll-max-ns": 5,
      "poll-shrink": 7,
      "aio-max-batch": 9,
      "thread-pool-max": 2 ** 31 - 1,
    });
  });

  test("keeps its values when new ones are refused", async () => {
    await rig.add("iothread", "a");
    const before = await rig.values("a");
    expect(await rig.messageOf(rig.set("a", "thread-pool-min", 65))).toBe(POOL);
    expect(await rig.messageOf(rig.set("a", "thread-pool-max", 0))).toBe(POOL);
    expect(await rig.messageOf(rig.set("a", "poll-grow", 1.5))).toBe(
      "Invalid parameter type for 'poll-grow', expected: integer",
    );
    rig.failure = new OutportError("io", "the thread is gone");
    expect(await rig.messageOf(rig.set("a", "poll-grow", 9))).toBe("the thread is gone");
    expect(await rig.values("a")).toEqual(before);
  });
});
