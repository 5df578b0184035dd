import { describe, expect, test } from "bun:test";
import { KnownData, RANGES_MAX } from "../../../src/block/known-data.ts";
import { Random } from "../../support/random.ts";

describe("KnownData", () => {
  test("covers() only what one range holds", () => {
    const known = new KnownData();
    known.add(10, 20);
    known.add(30, 40);
    expect(known.covers(10, 20)).toBe(true);
    expect(known.covers(12, 13)).toBe(true);
    expect(known.covers(9, 11)).toBe(false);
    expect(known.covers(15, 35)).toBe(false);
    expect(known.covers(20, 21)).toBe(false);
  });

  test("add() merges with neighbours that touch", () => {
    const known = new KnownData();
    known.add(10, 20);
    known.add(30, 40);
    known.add(20, 30);
    expect(known.count).toBe(1);
    expect(known.covers(10, 40)).toBe(true);
  });

  test("cut() splits a range", () => {
    const known = new KnownData();
    known.add(0, 100);
    known.cut(40, 60);
    expect(known.count).toBe(2);
    expect(known.covers(0, 40)).toBe(true);
    expect(known.covers(60, 100)).toBe(true);
    expect(known.covers(39, 41)).toBe(false);
  });

  test("stays bounded, and gives the shortest up for a longer one", () => {
    const known = new KnownData();
    for (let i = 0; i < RANGES_MAX; i++) known.add(i * 100, i * 100 + 10 + (i % 7));
    known.add(1_000_000, 1_000_005);
    expect(known.covers(1_000_000, 1_000_005)).toBe(false);
    known.add(1_000_000, 1_000_050);
    expect(known.count).toBe(RANGES_MAX);
    expect(known.covers(1_000_000, 1_000_050)).toBe(true);
    expect(known.covers(0, 10)).toBe(false);
    expect(known.covers(100, 111)).toBe(true);
    known.cut(150_00, 150_05);
    expect(known.count).toBeLessThanOrEqual(RANGES_MAX);
  });

  test("agrees with a plain array under random operations", () => {
    const known = new KnownData();
    const bytes = 512;
    const model = new Uint8Array(bytes);
    const random = new Random(12345);
    for (let step = 0; step < 20_000; step++) {
      const start = random.below(bytes);
      const end = start + 1 + random.below(Math.min(40, bytes - start));
      const action = random.below(3);
      if (action === 0) {
        known.add(start, end);
        model.fill(1, start, end);
      } else if (action === 1) {
        known.cut(start, end);
        model.fill(0, start, end);
      }
      expect(known.covers(start, end)).toBe(!model.subarray(start, end).includes(0));
    }
  });
});
