import { describe, expect, test } from "bun:test";
import {
  compressedEndMax,
  compressedEntry,
  compressedPlace,
} from "../../../../../src/block/drivers/qcow2/compressed.ts";
import { Random, randomSeed } from "../../../../support/random.ts";

/** By the specification: bits 0 to x - 1 the offset, x to 61 the additional sectors. */
function entryBits(offset: number, bytes: number, clusterBits: number): bigint {
  const x = BigInt(62 - (clusterBits - 8));
  const sectors = BigInt(Math.floor((offset + bytes - 1) / 512) - Math.floor(offset / 512));
  return (1n << 62n) | (sectors << x) | BigInt(offset);
}

describe("compressedEntry()", () => {
  test("says what the specification says, and compressedPlace() reads it", () => {
    const random = new Random(randomSeed());
    for (let clusterBits = 9; clusterBits <= 21; clusterBits++) {
      const offsetMax = Math.min(compressedEndMax(clusterBits), 2 ** 52) - 2 ** 22;
      for (let i = 0; i < 200; i++) {
        const bytes = 1 + random.below(2 ** clusterBits - 1);
        const offset = 1 + Math.floor((random.u32() / 2 ** 32) * offsetMax);
        const { hi, lo } = compressedEntry(offset, bytes, clusterBits);
        const wanted = entryBits(offset, bytes, clusterBits);
        expect((BigInt(hi) << 32n) | BigInt(lo)).toBe(wanted);
        const place = compressedPlace(hi, lo, clusterBits);
        expect(place.offset).toBe(offset);
        expect(place.bytes).toBeGreaterThanOrEqual(bytes);
        expect((offset + place.bytes) % 512).toBe(0);
        expect(place.bytes - bytes).toBeLessThan(512);
      }
    }
  });

  test("keeps to the offsets that fit", () => {
    expect(compressedEndMax(21)).toBe(2 ** 49);
    expect(compressedEndMax(9)).toBe(Number.MAX_SAFE_INTEGER);
    expect(() => compressedEntry(2 ** 49, 1, 21)).toThrow("the offset fits its bits");
  });
});
