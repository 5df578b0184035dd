import { describe, expect, test } from "bun:test";
import { HBitmap } from "../../../src/bitmaps/hbitmap.ts";
import { Random, randomSeed } from "../../support/random.ts";

const GRANULARITY = 512;
/** More than three chunks of 65536 bits. */
const BITS = 200_001;
const BYTES = BITS * GRANULARITY - 100;

/** One byte per bit. */
class Model {
  readonly bits = new Uint8Array(BITS);

  set(offset: number, bytes: number, value = 1): void {
    const last = Math.floor((Math.min(offset + bytes, BYTES) - 1) / GRANULARITY);
    this.bits.fill(value, Math.floor(offset / GRANULARITY), last + 1);
  }

  reset(offset: number, bytes: number): void {
    const first = Math.ceil(offset / GRANULARITY);
    const end = offset + bytes >= BYTES ? BITS : Math.floor((offset + bytes) / GRANULARITY);
    if (end > first) this.bits.fill(0, first, end);
  }

  next(offset: number, end: number, wanted: number): number {
    for (let at = offset; at < Math.min(end, BYTES); ) {
      if (this.bits[Math.floor(at / GRANULARITY)] === wanted) return at;
      at += GRANULARITY - (at % GRANULARITY);
    }
    return -1;
  }

  get serialized(): Uint8Array {
    const bytes = new Uint8Array(Math.ceil(BITS / 64) * 8);
    for (const [i, bit] of this.bits.entries()) bytes[i >> 3]! |= bit << (i & 7);
    return bytes;
  }
}

const serialized = (bitmap: HBitmap): Uint8Array =>
  Uint8Array.from(Buffer.concat([...bitmap.serialized()]));

function isSame(bitmap: HBitmap, model: Model): boolean {
  const count = model.bits.reduce((sum, bit) => sum + bit, 0);
  return (
    bitmap.dirtyBytes === count * GRANULARITY &&
    Buffer.compare(serialized(bitmap), model.serialized) === 0
  );
}

/** Short ones, long ones, and those that touch the borders of chunks and of the disk. */
function range(random: Random): [offset: number, bytes: number] {
  const border = random.below(4) * 65_536 * GRANULARITY;
  const offset = random.chance(0.3)
    ? Math.max(0, border - random.below(3) * 700)
    : random.below(BYTES);
  const bytes = 1 + random.below(random.pick([700, 50_000, 60_000_000]));
  return [Math.min(offset, BYTES - 1), bytes];
}

describe("HBitmap", () => {
  test("does what a simple model does", () => {
    const random = new Random(randomSeed());
    const bitmap = new HBitmap(BYTES, GRANULARITY);
    const model = new Model();
    for (let i = 0; i < 300; i++) {
      const [offset, bytes] = range(random);
      if (random.chance(0.6)) {
        bitmap.set(offset, bytes);
        model.set(offset, bytes);
      } else {
        bitmap.reset(offset, bytes);
        model.reset(offset, bytes);
      }
      const [from, length] = range(random);
      expect(bitmap.nextDirty(from, from + length)).toBe(model.next(from, from + length, 1));
      expect(bitmap.nextZero(from, from + length)).toBe(model.next(from, from + length, 0));
      expect(bitmap.get(from)).toBe(model.bits[Math.floor(from / GRANULARITY)] === 1);
      if (i % 30 === 0) expect(isSame(bitmap, model)).toBe(true);
    }
    expect(isSame(bitmap, model)).toBe(true);
    expect(isSame(HBitmap.from(structuredClone(bitmap.content())), model)).toBe(true);
    bitmap.clear();
    expect(isSame(bitmap, new Model())).toBe(true);
  });

  test("takes in another one", () => {
    const random = new Random(randomSeed());
    const model = new Model();
    const [one, other] = [new HBitmap(BYTES, GRANULARITY), new HBitmap(BYTES, GRANULARITY)];
    for (let i = 0; i < 20; i++) {
      const [offset, bytes] = range(random);
      (i % 2 === 0 ? one : other).set(offset, bytes);
      model.set(offset, bytes);
    }
    const before = serialized(other);
    one.merge(other);
    one.merge(one);
    expect(isSame(one, model)).toBe(true);
    expect(serialized(other)).toEqual(before);
  });

  test("takes in one of another granularity", () => {
    const [fine, coarse] = [new HBitmap(BYTES, 512), new HBitmap(BYTES, 65_536)];
    coarse.set(70_000, 1);
    coarse.set(BYTES - 1, 1);
    fine.merge(coarse);
    expect(fine.dirtyBytes).toBe(65_536 + (BITS * 512 - Math.floor(BYTES / 65_536) * 65_536));
    fine.set(0, 1);
    coarse.merge(fine);
    expect(coarse.nextZero(0, BYTES)).toBe(131_072);
  });

  test("keeps to the disk, whatever is written", () => {
    const bitmap = new HBitmap(1000, 512);
    bitmap.set(900, 5000);
    bitmap.set(5000, 10);
    bitmap.set(10, 0);
    expect([bitmap.bitCount, bitmap.dirtyBytes]).toEqual([2, 512]);
    expect([bitmap.nextDirty(0, 9999), bitmap.nextDirty(600, 9999)]).toEqual([512, 600]);
    expect(bitmap.nextZero(512, 9999)).toBe(-1);
    expect(bitmap.nextDirty(1000, 9999)).toBe(-1);
    expect(bitmap.get(5000)).toBe(false);
    expect(serialized(bitmap)).toEqual(new Uint8Array([2, 0, 0, 0, 0, 0, 0, 0]));
    expect(serialized(new HBitmap(0, 512)).length).toBe(8);
  });

  test("follows the length of its disk", () => {
    const bitmap = new HBitmap(BYTES, GRANULARITY);
    bitmap.set(0, BYTES);
    bitmap.resize(1000);
    expect([bitmap.bytes, bitmap.dirtyBytes]).toEqual([1000, 1024]);
    bitmap.resize(BYTES * 2);
    expect([bitmap.bytes, bitmap.dirtyBytes]).toEqual([BYTES * 2, 1024]);
    expect(bitmap.nextDirty(1024, BYTES * 2)).toBe(-1);
    bitmap.set(BYTES * 2 - 1, 1);
    expect(bitmap.nextDirty(1024, BYTES * 2)).toBe(
      Math.floor((BYTES * 2 - 1) / GRANULARITY) * GRANULARITY,
    );
  });

  test("costs little for a large disk, and has a limit", () => {
    const large = 2 ** 46;
    const bitmap = new HBitmap(large, 512);
    bitmap.set(large - 1, 1);
    bitmap.set(2 ** 43 + 512, 512);
    expect(bitmap.nextDirty(0, large)).toBe(2 ** 43 + 512);
    expect(bitmap.nextDirty(2 ** 43 + 1024, large)).toBe(large - 512);
    expect(bitmap.nextZero(2 ** 43 + 512, large)).toBe(2 ** 43 + 1024);
    expect(bitmap.content().chunks.filter((chunk) => chunk !== null)).toHaveLength(2);
    expect(() => new HBitmap(2 ** 52, 512)).toThrow("The granularity is too small");
    expect(new HBitmap(2 ** 52, 2 ** 31).bitCount).toBe(2 ** 21);
  });
});

describe("HBitmap parts", () => {
  test("are those that are stored, in pieces of any size", () => {
    const random = new Random(randomSeed());
    for (const pieceBytes of [512, 8192, 65_536]) {
      const bitmap = new HBitmap(BYTES, GRANULARITY);
      for (let i = 0; i < 20; i++) {
        bitmap.set(random.below(BYTES), random.below(40) * random.below(1_000_000));
      }
      const all = serialized(bitmap);
      expect(bitmap.serializedBytes).toBe(all.length);
      const copy = new HBitmap(BYTES, GRANULARITY);
      for (let at = 0; at < all.length; at += pieceBytes) {
        const piece = new Uint8Array(pieceBytes).fill(1);
        bitmap.serialize(at, piece);
        const expected = new Uint8Array(pieceBytes);
        expected.set(all.subarray(at, at + pieceBytes));
        expect(piece).toEqual(expected);
        expect(bitmap.hasBits(at, pieceBytes)).toBe(piece.some((byte) => byte !== 0));
        copy.deserialize(at, piece);
      }
      expect(serialized(copy)).toEqual(all);
      expect(copy.dirtyBytes).toBe(bitmap.dirtyBytes);
    }
  });

  test("have no bits behind the end", () => {
    const bitmap = new HBitmap(BYTES, GRANULARITY);
    for (let at = 0; at < bitmap.serializedBytes; at += 4096) {
      bitmap.deserialize(at, new Uint8Array(4096).fill(0xff));
    }
    expect(bitmap.dirtyBytes).toBe(BITS * GRANULARITY);
    const last = new Uint8Array(8);
    bitmap.serialize(bitmap.serializedBytes - 8, last);
    expect(last[7]).toBe(0);
  });

  test("that are set as a whole may still be changed, each on its own", () => {
    const [one, other] = [0, 1].map(() => new HBitmap(BYTES, GRANULARITY));
    for (const bitmap of [one!, other!]) bitmap.set(0, BYTES);
    one!.reset(0, GRANULARITY);
    one!.resize(BYTES / 2);
    expect([one!.get(0), other!.get(0)]).toEqual([false, true]);
    const copy = HBitmap.from(other!.content());
    copy.reset(512, 512);
    other!.merge(copy);
    expect([copy.get(512), other!.get(512), one!.get(512)]).toEqual([false, true, true]);
  });
});
