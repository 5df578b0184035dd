import { describe, expect, test } from "bun:test";
import { THROTTLE_READ, ThrottleGroup } from "../../../src/block/throttle-group.ts";
import { ObjectRegistry } from "../../../src/objects/registry.ts";
import { throttleGroupKind } from "../../../src/objects/throttle-group.ts";
import { messageOf } from "../../support/iothread.ts";

const BOTH = "bps/iops/max total values and read/write values cannot be used at the same time";
const RANGE = "bps/iops/max values must be within [0, 1000000000000000]";

function registryOf(): ObjectRegistry {
  return new ObjectRegistry([throttleGroupKind({ monotonicNs: () => 0 })]);
}

async function add(options: Record<string, unknown>, registry = registryOf()) {
  await registry.add({ "qom-type": "throttle-group", id: "tg", ...options });
  const object = registry.find("tg")!;
  const group = new ThrottleGroup(object.throttleGroup!);
  const set = async (limits: unknown) => object.set!("limits", limits);
  return { registry, object, group, set };
}

describe("throttle-group", () => {
  test("has every limit as its own property and in limits", async () => {
    const { object, group } = await add({
      limits: { "bps-read": 1000, "iops-write": 7 },
      "x-bps-read": 2000,
      "x-bps-read-max": 3000,
      "x-bps-read-max-length": 4,
    });
    const limits = object.get("limits") as Record<string, number>;
    expect(Object.keys(limits).length).toBe(19);
    expect(limits).toMatchObject({
      "bps-read": 2000,
      "bps-read-max": 3000,
      "bps-read-max-length": 4,
      "iops-write": 7,
      "iops-write-max-length": 1,
      "iops-size": 0,
    });
    expect([object.get("x-bps-read"), object.get("x-iops-size")]).toEqual([2000, 0]);
    expect(object.type.properties.length).toBe(20);
    expect(group.isLimited(THROTTLE_READ)).toBe(true);
  });

  test("refuses what QSD refuses, in its words", async () => {
    const cases: [Record<string, unknown>, string][] = [
      [{ "x-bps-total": -1 }, "Property values cannot be negative"],
      [
        { "x-bps-total-max-length": 4294967296 },
        "x-bps-total-max-length value must be in therange [0, 4294967295]",
      ],
      [{ "x-bps-total": 1, "x-bps-read": 1 }, BOTH],
      [{ limits: { "bps-total": 5 }, "x-bps-read": 100 }, BOTH],
      [{ "x-bps-total-max-length": 0 }, "the burst length cannot be 0"],
      [{ "x-iops-size": 5 }, "iops size requires an iops value to be set"],
    ];
    for (const [options, message] of cases) expect(await messageOf(add(options))).toBe(message);
  });

  test("qom-set takes changes of limits, all or nothing", async () => {
    const { object, set } = await add({});
    const cases: [Record<string, number>, string][] = [
      [{ "bps-total": -1 }, RANGE],
      [{ "bps-total": 1e15 + 1 }, RANGE],
      [{ "bps-total": 1, "bps-read": 1 }, BOTH],
      [{ "iops-total": 1, "iops-total-max": 1, "iops-write-max": 1 }, BOTH],
      [{ "bps-total-max": 10 }, "bps_max/iops_max require corresponding bps/iops values"],
      [{ "bps-total": 20, "bps-total-max": 10 }, "bps_max/iops_max cannot be lower than bps/iops"],
      [{ "bps-total": 20, "bps-total-max-length": 2 }, "burst length set without burst rate"],
      [{ "bps-total": 20, "bps-total-max-length": -1 }, "burst length set without burst rate"],
      [{ "bps-total": 20, "bps-total-max-length": 0 }, "the burst length cannot be 0"],
      [
        { "bps-total": 20, "bps-total-max-length": 4294967296 },
        "bps-total-max-length value must be in the range [0, 4294967295]",
      ],
      [
        { "bps-total": 20, "bps-total-max": 1e12, "bps-total-max-length": 4e9 },
        "burst length too high for this burst rate",
      ],
      [{ "iops-size": 20 }, "iops size requires an iops value to be set"],
    ];
    const before = object.get("limits");
    for (const [limits, message] of cases) expect(await messageOf(set(limits))).toBe(message);
    expect(object.get("limits")).toEqual(before);
    await set({ "iops-total": 1, "iops-size": -1 });
    await set({ "bps-total": 7 });
    expect(object.get("limits")).toMatchObject({
      "iops-total": 1,
      "iops-size": -1,
      "bps-total": 7,
    });
    expect(await messageOf((async () => object.set!("x-bps-total", 1))())).toBe(
      "Property cannot be set after initialization",
    );
  });

  test("stays while a node uses it", async () => {
    const { registry, group } = await add({});
    group.join();
    expect(await messageOf(registry.delete("tg"))).toBe(
      "Cannot delete throttle group 'tg' with active references",
    );
    expect(registry.find("tg")?.throttleGroup).toBe(group.shared);
    group.leave();
    await registry.delete("tg");
    expect(group.join()).toBe(false);
    await add({}, registry);
  });
});
