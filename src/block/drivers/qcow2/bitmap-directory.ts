/**
 * The directory of the dirty bitmaps that an image keeps: read and checked, in QSD's words where it
 * is wrong, and made. Pure. Thread: iothread.
 * Spec: QEMU docs/interop/qcow2.rst "Bitmaps"
 */
import * as abi from "../../../abi/qcow2.ts";
import { type ErrorKind, OutportError } from "../../../util/error.ts";
import { getU64, setU64, textOf, viewOf } from "./header.ts";

/** A dirty bitmap as its directory entry tells of it. */
export interface StoredBitmap {
  readonly name: string;
  /** As they are in the image. */
  readonly nameBytes: Uint8Array;
  readonly granularityBits: number;
  /** Writes mark it, once the image is open. */
  readonly isAuto: boolean;
  /** Somebody has the image open for writing, or failed to close it: the bits are out of date. */
  readonly isInUse: boolean;
  readonly table: BitmapTable;
}

/** Where the bits are: an entry for each cluster of them. */
export interface BitmapTable {
  readonly offset: number;
  /** Entries. */
  readonly size: number;
}

export interface ImageLimits {
  readonly clusterBytes: number;
  /** Of the guest's disk. */
  readonly diskBytes: number;
}

/** Throws OutportError. `count`: as the header tells. */
export function parseDirectory(
  bytes: Uint8Array,
  count: number,
  limits: ImageLimits,
): StoredBitmap[] {
  const view = viewOf(bytes);
  const list: StoredBitmap[] = [];
  for (let at = 0; at < bytes.length; ) {
    if (at + abi.BITMAP_HEADER_BYTES > bytes.length) fail("Broken bitmap directory");
    if (list.length === count) fail("More bitmaps found than specified in header extension");
    const nameBytes = view.getUint16(at + abi.BITMAP_NAME_SIZE);
    const extraBytes = view.getUint32(at + abi.BITMAP_EXTRA_DATA_SIZE);
    const next = at + entryBytes(nameBytes + extraBytes);
    if (extraBytes !== 0) fail("Bitmap extra data is not supported", "unsupported");
    if (next > bytes.length) fail("Broken bitmap directory");
    list.push(parseEntry(bytes.subarray(at, next), limits));
    at = next;
  }
  if (list.length < count) fail("Less bitmaps found than specified in header extension");
  const names = new Set<string>();
  for (const { name } of list) {
    if (names.has(name)) fail(`Bitmap already exists: ${name}`);
    names.add(name);
  }
  return list;
}

function parseEntry(bytes: Uint8Array, limits: ImageLimits): StoredBitmap {
  const view = viewOf(bytes);
  const flags = view.getUint32(abi.BITMAP_FLAGS);
  const start = abi.BITMAP_HEADER_BYTES;
  const nameBytes = bytes.slice(start, start + view.getUint16(abi.BITMAP_NAME_SIZE));
  const bitmap: StoredBitmap = {
    name: textOf(nameBytes),
    nameBytes,
    granularityBits: bytes[abi.BITMAP_GRANULARITY_BITS]!,
    isAuto: (flags & abi.BME_FLAG_AUTO) !== 0,
    isInUse: (flags & abi.BME_FLAG_IN_USE) !== 0,
    table: {
      offset: getU64(view, abi.BITMAP_TABLE_OFFSET),
      size: view.getUint32(abi.BITMAP_TABLE_SIZE),
    },
  };
  const isKnown =
    (flags & ~abi.BME_FLAGS_MASK) === 0 &&
    bytes[abi.BITMAP_TYPE] === abi.BT_DIRTY_TRACKING_BITMAP &&
    nameBytes.length <= abi.BME_MAX_NAME_SIZE;
  if (!isKnown || !isPossible(bitmap, limits)) {
    fail(`Bitmap '${bitmap.name}' doesn't satisfy the constraints`);
  }
  return bitmap;
}

function isPossible(
  { table, granularityBits, isInUse }: StoredBitmap,
  { clusterBytes, diskBytes }: ImageLimits,
): boolean {
  if (table.offset === 0 || table.offset % clusterBytes !== 0) return false;
  const { BME_MIN_GRANULARITY_BITS: lowest, BME_MAX_GRANULARITY_BITS: highest } = abi;
  if (granularityBits < lowest || granularityBits > highest) return false;
  const bytes = table.size * clusterBytes;
  if (table.size === 0 || bytes > abi.BME_MAX_PHYS_SIZE) return false;
  // One that was not stored again after a resize is of no use, but there it is.
  return isInUse || diskBytes <= bytes * 8 * 2 ** granularityBits;
}

export function encodeDirectory(list: readonly StoredBitmap[]): Uint8Array {
  const directory = new Uint8Array(directoryBytes(list));
  const view = viewOf(directory);
  let at = 0;
  for (const { nameBytes, granularityBits, isAuto, isInUse, table } of list) {
    setU64(view, at + abi.BITMAP_TABLE_OFFSET, table.offset);
    view.setUint32(at + abi.BITMAP_TABLE_SIZE, table.size);
    const flags = (isAuto ? abi.BME_FLAG_AUTO : 0) | (isInUse ? abi.BME_FLAG_IN_USE : 0);
    view.setUint32(at + abi.BITMAP_FLAGS, flags);
    view.setUint8(at + abi.BITMAP_TYPE, abi.BT_DIRTY_TRACKING_BITMAP);
    view.setUint8(at + abi.BITMAP_GRANULARITY_BITS, granularityBits);
    view.setUint16(at + abi.BITMAP_NAME_SIZE, nameBytes.length);
    directory.set(nameBytes, at + abi.BITMAP_HEADER_BYTES);
    at += entryBytes(nameBytes.length);
  }
  return directory;
}

export function directoryBytes(list: readonly Pick<StoredBitmap, "nameBytes">[]): number {
  return list.reduce((sum, { nameBytes }) => sum + entryBytes(nameBytes.length), 0);
}

function entryBytes(variableBytes: number): number {
  return Math.ceil((abi.BITMAP_HEADER_BYTES + variableBytes) / 8) * 8;
}

function fail(message: string, kind: ErrorKind = "corrupt"): never {
  throw new OutportError(kind, message);
}
