/**
 * The bits of a dirty bitmap in its image, and the table that tells where they are.
 * Thread: iothread; everything may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Bitmap table", "Bitmap data"
 */

import * as abi from "../../../abi/qcow2.ts";
import type { HBitmap } from "../../../bitmaps/hbitmap.ts";
import { EINVAL, ENOENT } from "../../../runtime/errno.ts";
import type { BitmapTable } from "./bitmap-directory.ts";
import { setU64, viewOf } from "./header.ts";
import type { Image } from "./image.ts";

/** Clusters next to each other are read and written together, up to so much. */
const RUN_BYTES = 1024 * 1024;

/** Of a part of the bits: where its cluster is, or what all of them are. */
const NO_BITS = 0;
const ALL_BITS = 1;

/** Clusters that bitmaps of one image take: each is one's. */
export type ClaimedClusters = Set<number>;

/**
 * Puts the bits that `entries` of `table` lead to into `bits`, which are clear. 0 or -errno;
 * -ENOENT: they are not where they should be, or what is there is something else's, too.
 */
export async function loadBits(
  image: Image,
  { offset, size }: BitmapTable,
  entries: Float64Array,
  bits: HBitmap,
  claimed: ClaimedClusters,
): Promise<number> {
  const { clusterBytes } = image.layout;
  const { serializedBytes } = bits;
  if (size !== Math.ceil(serializedBytes / clusterBytes)) return -EINVAL;
  if (!claim(image, offset, size * abi.ENTRY_BYTES, claimed)) return -ENOENT;
  for (let i = 0; i < entries.length; ) {
    const entry = entries[i]!;
    const at = i * clusterBytes;
    let count = 1;
    if (entry === ALL_BITS) {
      const span = 8 * bits.granularity;
      bits.set(at * span, clusterBytes * span);
    } else if (entry !== NO_BITS) {
      const most = Math.min(entries.length - i, Math.max(1, RUN_BYTES / clusterBytes));
      while (count < most && entries[i + count] === entry + count * clusterBytes) count++;
      const length = Math.min(count * clusterBytes, serializedBytes - at);
      if (!claim(image, entry, length, claimed)) return -ENOENT;
      const bytes = await image.file.readBytes(entry, length);
      if (typeof bytes === "number") return bytes;
      bits.deserialize(at, bytes);
    }
    i += count;
  }
  return 0;
}

/** Inside the file, and nobody else's that is known. */
function claim(image: Image, offset: number, bytes: number, claimed: ClaimedClusters): boolean {
  const { clusterBytes } = image.layout;
  if (!(offset + bytes <= image.file.node.bytes)) return false;
  for (let at = offset; at < offset + bytes; at += clusterBytes) {
    if (image.metadata.has(at) || claimed.has(at / clusterBytes)) return false;
    claimed.add(at / clusterBytes);
  }
  return true;
}

/** Offsets, NO_BITS or ALL_BITS; or -errno. */
export async function readTable(
  { file, layout }: Image,
  { offset, size }: BitmapTable,
): Promise<Float64Array | number> {
  const bytes = await file.readBytes(offset, size * abi.ENTRY_BYTES);
  if (typeof bytes === "number") return bytes;
  const view = viewOf(bytes);
  const entries = new Float64Array(size);
  for (let i = 0; i < size; i++) {
    const hi = view.getUint32(i * abi.ENTRY_BYTES);
    const lo = view.getUint32(i * abi.ENTRY_BYTES + 4);
    const isReserved =
      (hi & abi.BME_TABLE_ENTRY_RESERVED_HI) !== 0 || (lo & abi.BME_TABLE_ENTRY_RESERVED_LO) !== 0;
    const entry = hi * 0x1_0000_0000 + lo;
    if (isReserved || (entry !== ALL_BITS && entry % layout.clusterBytes !== 0)) return -EINVAL;
    entries[i] = entry;
  }
  return entries;
}

/** Writes the bits to new clusters. Returns their table, or -errno: then nothing is taken. */
export async function storeBits(image: Image, bits: HBitmap): Promise<BitmapTable | number> {
  const { layout, allocator, file } = image;
  const { clusterBytes } = layout;
  const size = Math.ceil(bits.serializedBytes / clusterBytes);
  const entries = new Float64Array(size);
  let result = await storeData(image, bits, entries);
  if (result === 0) {
    const bytes = new Uint8Array(size * abi.ENTRY_BYTES);
    for (let i = 0; i < size; i++) setU64(viewOf(bytes), i * abi.ENTRY_BYTES, entries[i]!);
    const count = Math.ceil(bytes.length / clusterBytes);
    const place = await allocator.allocateContiguous(count);
    if (typeof place === "number") {
      result = place;
    } else {
      result = await file.writeBytes(place.offset, bytes);
      if (result === 0) return { offset: place.offset, size };
      allocator.free(place.offset, count, "never");
    }
  }
  freeData(image, entries);
  return result;
}

/** Fills `entries`, also as far as it comes. 0 or -errno. */
async function storeData(image: Image, bits: HBitmap, entries: Float64Array): Promise<number> {
  const { clusterBytes } = image.layout;
  const most = Math.max(1, RUN_BYTES / clusterBytes);
  const has = (index: number): boolean => bits.hasBits(index * clusterBytes, clusterBytes);
  for (let i = 0; i < entries.length; ) {
    let count = 0;
    while (count < most && i + count < entries.length && has(i + count)) count++;
    if (count === 0) {
      i++;
      continue;
    }
    const place = await image.allocator.allocate(count);
    if (typeof place === "number") return place;
    for (let j = 0; j < place.count; j++) entries[i + j] = place.offset + j * clusterBytes;
    const bytes = new Uint8Array(place.count * clusterBytes);
    bits.serialize(i * clusterBytes, bytes);
    const result = await image.file.writeBytes(place.offset, bytes);
    if (result < 0) return result;
    i += place.count;
  }
  return 0;
}

/** Clusters of a bitmap that nothing on the disk leads to any more, as far as they are known. */
export async function freeBits(image: Image, table: BitmapTable): Promise<void> {
  const { clusterBytes } = image.layout;
  const entries = await readTable(image, table);
  if (typeof entries !== "number") freeData(image, entries);
  const count = Math.ceil((table.size * abi.ENTRY_BYTES) / clusterBytes);
  image.allocator.free(table.offset, count, "other");
}

function freeData({ allocator }: Image, entries: Float64Array): void {
  for (const entry of entries) if (entry > ALL_BITS) allocator.free(entry, 1, "other");
}
