/** The kind main-loop. Words are those of QSD 11.1. */
import { beforeEach, describe, expect, test } from "bun:test";
import { ObjectRig } from "../../../support/objects.ts";

let rig: ObjectRig;
beforeEach(() => {
  rig = new ObjectRig();
});

const POOL = "bad thread-pool-min/thread-pool-max values";

describe("main-loop", () => {
  test("exists once, and stays", async () => {
    await rig.add("main-loop", "a");
    const again = (options: object) => rig.messageOf(rig.add("main-loop", "b", options));
    expect(await again({ "aio-max-batch": -1 })).toContain("aio-max-batch value must be in range");
    expect(await again({ "thread-pool-max": 0 })).toBe(POOL);
    expect(await again({})).toBe("only one main-loop instance allowed");
    expect(await rig.messageOf(rig.run("object-del", { id: "a" }))).toBe(
      "Deleting main loop 'a' is not supported",
    );
    expect(await rig.values("a")).toEqual({
      type: "main-loop",
      "aio-max-batch": 0,
      "thread-pool-min": 0,
      "thread-pool-max": 64,
    });
  });

  test("may be made after a failure", async () => {
    expect(await rig.messageOf(rig.add("main-loop", "a", { "thread-pool-max": 0 }))).toBe(POOL);
    await rig.add("main-loop", "a", { "thread-pool-max": 3 });
    expect(await rig.get("a", "thread-pool-max")).toBe(3);
  });

  test("takes new values, or keeps the old ones", async () => {
    await rig.add("main-loop", "a");
    await rig.set("a", "aio-max-batch", 9);
    expect(await rig.messageOf(rig.set("a", "thread-pool-min", 65))).toBe(POOL);
    expect(await rig.messageOf(rig.set("a", "aio-max-batch", -1))).toBe(
      "aio-max-batch value must be in range [0, 9223372036854775807]",
    );
    expect(await rig.values("a")).toMatchObject({ "aio-max-batch": 9, "thread-pool-min": 0 });
  });
});
