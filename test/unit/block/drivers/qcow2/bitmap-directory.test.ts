import { describe, expect, test } from "bun:test";
import * as abi from "../../../../../src/abi/qcow2.ts";
import {
  encodeDirectory,
  parseDirectory,
  type StoredBitmap,
} from "../../../../../src/block/drivers/qcow2/bitmap-directory.ts";

const LIMITS = { clusterBytes: 65536, diskBytes: 64 * 1024 * 1024 };
const nameOf = (name: string) => ({ name, nameBytes: new TextEncoder().encode(name) });
const bitmap = (name: string, more: Partial<StoredBitmap> = {}): StoredBitmap => ({
  ...nameOf(name),
  granularityBits: 16,
  isAuto: true,
  isInUse: false,
  table: { offset: 0x50000, size: 1 },
  ...more,
});

/** What is said of a directory of `a` and `b` in which something is changed. */
function refusal(change: (view: DataView, bytes: Uint8Array) => void, count = 2): string {
  const bytes = encodeDirectory([bitmap("a"), bitmap("b")]);
  change(new DataView(bytes.buffer), bytes);
  try {
    parseDirectory(bytes, count, LIMITS);
  } catch (error) {
    return (error as Error).message;
  }
  return "";
}

describe("a bitmap directory", () => {
  test("comes back as it was written, in whole words", () => {
    const list = [
      bitmap("a"),
      bitmap("", { isAuto: false, isInUse: true }),
      bitmap("ü".repeat(500), { granularityBits: 31, table: { offset: 2 ** 40, size: 7 } }),
    ];
    const bytes = encodeDirectory(list);
    expect(bytes.length % 8).toBe(0);
    expect(parseDirectory(bytes, 3, LIMITS)).toEqual(list);
  });

  test("keeps names that are no text", () => {
    const nameBytes = new Uint8Array([0xff, 0xfe, 0x41]);
    const bytes = encodeDirectory([bitmap("x", { nameBytes })]);
    const [found] = parseDirectory(bytes, 1, LIMITS);
    expect(encodeDirectory([found!])).toEqual(bytes);
  });

  test("is refused when it does not hold what the header tells", () => {
    expect(refusal(() => {}, 3)).toBe("Less bitmaps found than specified in header extension");
    expect(refusal(() => {}, 1)).toBe("More bitmaps found than specified in header extension");
    const short = encodeDirectory([bitmap("a"), bitmap("b")]).slice(0, -8);
    expect(() => parseDirectory(short, 2, LIMITS)).toThrow("Broken bitmap directory");
  });

  test("is refused with an entry that can't be", () => {
    const what = "Bitmap 'a' doesn't satisfy the constraints";
    const changes: ((view: DataView) => void)[] = [
      (view) => view.setUint32(abi.BITMAP_TABLE_OFFSET + 4, 0),
      (view) => view.setUint32(abi.BITMAP_TABLE_OFFSET + 4, 0x50200),
      (view) => view.setUint32(abi.BITMAP_TABLE_SIZE, 0),
      (view) => view.setUint32(abi.BITMAP_TABLE_SIZE, 8193),
      (view) => view.setUint32(abi.BITMAP_FLAGS, 4),
      (view) => view.setUint8(abi.BITMAP_TYPE, 2),
      (view) => view.setUint8(abi.BITMAP_GRANULARITY_BITS, 8),
      (view) => view.setUint8(abi.BITMAP_GRANULARITY_BITS, 32),
    ];
    for (const change of changes) expect(refusal(change)).toBe(what);
    expect(refusal((view) => view.setUint16(abi.BITMAP_NAME_SIZE, 0xffff))).toBe(
      "Broken bitmap directory",
    );
    expect(refusal((view) => view.setUint32(abi.BITMAP_EXTRA_DATA_SIZE, 0xffff_ffff))).toBe(
      "Bitmap extra data is not supported",
    );
    expect(refusal((_view, bytes) => bytes.fill(0x61, 56, 57))).toBe("Bitmap already exists: a");
  });

  test("may have tables that are too small only for bitmaps in use", () => {
    const large = { ...LIMITS, diskBytes: 2 ** 40 };
    const bytes = (isInUse: boolean) =>
      encodeDirectory([bitmap("a", { isInUse, granularityBits: 9 })]);
    expect(parseDirectory(bytes(true), 1, large).length).toBe(1);
    expect(() => parseDirectory(bytes(false), 1, large)).toThrow("doesn't satisfy");
  });
});
