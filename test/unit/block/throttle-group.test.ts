import { describe, expect, test } from "bun:test";
import { THROTTLE_READ, THROTTLE_WRITE, ThrottleGroup } from "../../../src/block/throttle-group.ts";
import { type LimitName, mergeLimits, NO_LIMITS } from "../../../src/block/throttle-limits.ts";
import { Random, randomSeed } from "../../support/random.ts";

const SECOND = 1e9;
type Limits = Partial<Record<LimitName, number>>;

/** A group at a time of its own. */
function groupOf(limits: Limits, startNs = 0): ThrottleGroup {
  const group = new ThrottleGroup();
  group.configure(mergeLimits(NO_LIMITS, limits), startNs);
  return group;
}

/** One client that sends a request as soon as the one before may go; ends after `seconds`. */
function unitsIn(group: ThrottleGroup, bytes: number, seconds: number, startNs = 0): number {
  let nowNs = startNs;
  let count = 0;
  for (;;) {
    nowNs += group.take(THROTTLE_READ, bytes, nowNs);
    if (nowNs >= startNs + seconds * SECOND) return count;
    count++;
  }
}

describe("ThrottleGroup", () => {
  test("lets everything through without limits", () => {
    const group = groupOf({});
    expect([group.isLimited(THROTTLE_READ), group.isLimited(THROTTLE_WRITE)]).toEqual([
      false,
      false,
    ]);
    expect(group.take(THROTTLE_READ, 2 ** 40, 0)).toBe(0);
    expect(group.take(THROTTLE_READ, 2 ** 40, 0)).toBe(0);
  });

  test("limits only the directions that have limits", () => {
    const directions = (limits: Limits) => {
      const group = groupOf(limits);
      return [group.isLimited(THROTTLE_READ), group.isLimited(THROTTLE_WRITE)];
    };
    expect(directions({ "bps-read": 1 })).toEqual([true, false]);
    expect(directions({ "iops-write": 1 })).toEqual([false, true]);
    expect(directions({ "iops-total": 1 })).toEqual([true, true]);
    const group = groupOf({ "bps-write": 1000 });
    for (let i = 0; i < 10; i++) expect(group.take(THROTTLE_READ, 1e6, 0)).toBe(0);
    expect(group.take(THROTTLE_WRITE, 1000, 0)).toBe(0);
    expect(group.take(THROTTLE_WRITE, 1000, 0)).toBeGreaterThan(0);
  });

  test("takes a tenth of a second in at once, and then keeps to the rate", () => {
    const group = groupOf({ "iops-total": 100 });
    const waits = Array.from({ length: 14 }, () => group.take(THROTTLE_READ, 512, 0));
    // A request goes while no more than 10 are in the bucket, and they leave it at 100 a second.
    const expected = [...new Array(11).fill(0), 0.01 * SECOND, 0.02 * SECOND, 0.03 * SECOND];
    for (const [index, wait] of waits.entries()) expect(wait).toBeCloseTo(expected[index]!, 0);
    // All have left it after that, and nothing is saved up for later.
    for (let i = 0; i < 11; i++) expect(group.take(THROTTLE_READ, 512, 100 * SECOND)).toBe(0);
    expect(group.take(THROTTLE_READ, 512, 100 * SECOND)).toBeCloseTo(0.01 * SECOND, 0);
  });

  test("counts total limits over both directions", () => {
    const group = groupOf({ "bps-total": 1000 });
    expect(group.take(THROTTLE_READ, 1100, 0)).toBe(0);
    expect(group.take(THROTTLE_WRITE, 500, 0)).toBeCloseTo(SECOND, 0);
    expect(group.take(THROTTLE_READ, 1, 0)).toBeCloseTo(1.5 * SECOND, 0);
  });

  test("bursts: max at once, then the rate", () => {
    const group = groupOf({ "iops-read": 10, "iops-read-max": 50 });
    for (let i = 0; i < 51; i++) expect(group.take(THROTTLE_READ, 1, 0)).toBe(0);
    expect(group.take(THROTTLE_READ, 1, 0)).toBeCloseTo(0.1 * SECOND, 0);
  });

  test("long bursts: at the burst rate for that long, then the rate", () => {
    const limits: Limits = { "iops-read": 10, "iops-read-max": 100, "iops-read-max-length": 5 };
    const group = groupOf(limits);
    let nowNs = 0;
    let burst = 0;
    for (;;) {
      const wait = group.take(THROTTLE_READ, 1, nowNs);
      if (wait > 0.05 * SECOND) break;
      nowNs += wait;
      burst++;
    }
    // 500 fit, and 10 a second leave meanwhile.
    expect(nowNs / SECOND).toBeGreaterThan(5.3);
    expect(nowNs / SECOND).toBeLessThan(5.7);
    expect(burst).toBeGreaterThan(545);
    expect(burst).toBeLessThan(575);
  });

  test("iops-size: a large request is several", () => {
    const limits: Limits = { "iops-total": 100, "iops-size": 4096 };
    const large = groupOf(limits);
    expect(large.take(THROTTLE_WRITE, 4096 * 12, 0)).toBe(0);
    expect(large.take(THROTTLE_WRITE, 1, 0)).toBeCloseTo(0.02 * SECOND, 0);
    const unsigned = groupOf({ ...limits, "iops-size": -1 });
    expect(unsigned.take(THROTTLE_WRITE, 4096 * 12, 0)).toBe(0);
    expect(unsigned.take(THROTTLE_WRITE, 1, 0)).toBe(0);
  });

  test("the limit that makes a request wait longest decides", () => {
    const group = groupOf({ "iops-read": 10, "bps-read": 1000 });
    expect(group.take(THROTTLE_READ, 2100, 0)).toBe(0);
    expect(group.take(THROTTLE_READ, 0, 0)).toBeCloseTo(2 * SECOND, 0);
  });

  test("new limits begin with empty buckets and a new generation", () => {
    const group = groupOf({ "bps-read": 1 });
    group.take(THROTTLE_READ, 1e9, 0);
    const { generation } = group;
    group.configure(mergeLimits(NO_LIMITS, { "bps-read": 1 }), SECOND);
    expect(group.generation).not.toBe(generation);
    expect(group.take(THROTTLE_READ, 1, SECOND)).toBe(0);
  });

  test("a clock that another thread read earlier leaks nothing twice", () => {
    const group = groupOf({ "iops-read": 10 });
    for (let i = 0; i < 12; i++) group.take(THROTTLE_READ, 1, SECOND);
    const before = group.take(THROTTLE_READ, 1, 0.5 * SECOND);
    const after = group.take(THROTTLE_READ, 1, SECOND);
    expect(after - before).toBeCloseTo(0.1 * SECOND, 0);
  });

  test("is shared memory", () => {
    const group = groupOf({ "iops-read": 10 });
    const other = new ThrottleGroup(group.shared);
    group.take(THROTTLE_READ, 1, 0);
    group.take(THROTTLE_READ, 1, 0);
    expect(other.take(THROTTLE_READ, 1, 0)).toBeCloseTo(0.1 * SECOND, 0);
  });

  test("close() only without members, and nobody joins later", () => {
    const group = groupOf({});
    expect([group.join(), group.close(), group.join()]).toEqual([true, false, true]);
    group.leave();
    expect(group.close()).toBe(false);
    group.leave();
    expect([group.close(), group.join()]).toEqual([true, false]);
  });

  test("keeps to any rate in the long run", () => {
    const random = new Random(randomSeed());
    for (let round = 0; round < 50; round++) {
      const kind = random.below(2) === 0 ? "iops" : "bps";
      const rate = 1 + random.below(1_000_000);
      const bytes = 1 + random.below(100_000);
      const units = kind === "iops" ? 1 : bytes;
      const startNs = random.below(1e6) * SECOND;
      const seconds = Math.max(20, (50 * units) / rate);
      const limits: Limits = { [`${kind}-read`]: rate };
      if (random.below(2) === 0) limits[`${kind}-read-max`] = rate * 2;
      // Faster calls would only make the test slow.
      if ((rate / units) * seconds > 200_000) continue;
      const done = unitsIn(groupOf(limits, startNs), bytes, seconds, startNs) * units;
      const room = (limits[`${kind}-read-max`] ?? rate / 10) + 2 * units;
      expect(done).toBeLessThanOrEqual(rate * seconds + room);
      expect(done).toBeGreaterThanOrEqual(rate * seconds - 2 * units);
    }
  });
});
