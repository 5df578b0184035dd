/**
 * Writes that are not simply over clusters of this image alone: allocates clusters, brings along
 * what the write does not cover of them, writes, and only then maps them. Thread: iothread;
 * everything async may suspend.
 */
import * as abi from "../../../abi/qcow2.ts";
import { EIO } from "../../../runtime/errno.ts";
import { roundUp } from "../../child-io.ts";
import { type BlockStatus, STATUS_ZERO } from "../../node.ts";
import { allocateNow } from "./allocate-now.ts";
import { type Change, changeGuest, wordOf } from "./change.ts";
import { hex } from "./hex.ts";
import type { Image } from "./image.ts";
import type { L2Slice } from "./l2-tables.ts";
import { mapClusters } from "./map-clusters.ts";
import {
  hostOf,
  INVALID,
  type Mapping,
  NORMAL,
  newMapping,
  UNALLOCATED_PLACED,
  ZERO_PLACED,
} from "./mapping.ts";
import { isKnownZero, readGuest } from "./read.ts";

/** What is brought along goes through a buffer of this size. */
const COPY_BYTES = 256 * 1024;

/** A part of a write with one place in the data file. */
interface Piece {
  readonly slice: L2Slice;
  readonly offset: number;
  readonly bytes: number;
  readonly address: number;
  /** Of `offset`. */
  readonly host: number;
  /** The clusters have just been allocated. */
  readonly isNew: boolean;
  /** They read as zeroes. */
  readonly isZero: boolean;
}

/** 0 or -errno. `address`: in the reactor's memory. */
export async function writeGuest(
  image: Image,
  offset: number,
  bytes: number,
  address: number,
): Promise<number> {
  const mapping = newMapping();
  const { sliceSpan } = image.tables;
  for (let done = 0; done < bytes; ) {
    const at = offset + done;
    if (image.isBroken) return -EIO;
    image.map.lookup(at, bytes - done, mapping);
    let result: number;
    if (isOurs(mapping) || allocateNow(image, at, mapping)) {
      result = await overwrite(image, mapping.host, mapping.bytes, address + done);
    } else {
      const part = Math.min(bytes - done, sliceSpan - (at % sliceSpan));
      result = await writeLocked(image, at, part, address + done);
    }
    if (result < 0) return result;
    done += result;
  }
  return 0;
}

/** It may be written to where it is. */
function isOurs({ kind, copied }: Mapping): boolean {
  return kind === NORMAL && copied;
}

/** Inside one slice. Returns the bytes done, or -errno. */
async function writeLocked(
  image: Image,
  offset: number,
  bytes: number,
  address: number,
): Promise<number> {
  let written = bytes;
  const result = await changeGuest(image, offset, bytes, async (change) => {
    const mapping = newMapping();
    image.map.lookup(offset, bytes, mapping);
    if (!isOurs(mapping)) return writeInSlice(image, change, address);
    // Others did it meanwhile: nobody needs to wait for this one then.
    written = 0;
    return 0;
  });
  return result < 0 ? result : written;
}

/** The clusters are the caller's to change. 0 or -errno. */
export async function writeInSlice(image: Image, change: Change, address: number): Promise<number> {
  const mapping = newMapping();
  for (let done = 0; done < change.bytes; ) {
    const at = change.offset + done;
    const kind = image.map.lookup(at, change.bytes - done, mapping);
    if (kind === INVALID) return image.loader.reportEntry(at, true);
    const isPlaced = kind === NORMAL || kind === ZERO_PLACED || kind === UNALLOCATED_PLACED;
    let result: number;
    if (kind === NORMAL && mapping.copied) {
      result = await overwrite(image, mapping.host, mapping.bytes, address + done);
    } else if (isPlaced && mapping.copied) {
      const { host, bytes } = mapping;
      const place = { host, isNew: false, isZero: false };
      const piece = { slice: change.slice, offset: at, bytes, address: address + done, ...place };
      result = await writePiece(image, piece);
    } else {
      result = await writeNew(image, change, at, address + done);
    }
    if (result < 0) return result;
    done += result;
  }
  return 0;
}

/** Returns the bytes done, or -errno. */
async function overwrite(
  image: Image,
  host: number,
  bytes: number,
  address: number,
): Promise<number> {
  const check = await prepareHost(image, host, bytes);
  if (check < 0) return check;
  return (await image.data.write(host, bytes, address)) || bytes;
}

/** The image may write there, and the file is long enough. 0 or -errno. */
async function prepareHost(image: Image, host: number, bytes: number): Promise<number> {
  if (image.dataFile !== null) return image.dataFile.lengthen(roundUp(host + bytes, 512), 0);
  const check = image.checkOverlap(host, bytes);
  if (check < 0) return check;
  const end = host + bytes;
  return end <= image.allocator.usedEnd ? 0 : lengthenTo(image, host, end);
}

/** Clusters may be allocated without that the file reaches there, but not without a refcount. */
async function lengthenTo(image: Image, start: number, end: number): Promise<number> {
  const { clusterBytes } = image.layout;
  const first = Math.floor(start / clusterBytes);
  for (let cluster = first; cluster * clusterBytes < end; cluster++) {
    const refcount = await image.refcounts.refcountOf(cluster);
    if (refcount < 0) return refcount;
    if (refcount > 0) continue;
    // QSD differs: it writes there, however far that is.
    const at = hex(cluster * clusterBytes);
    return image.corrupt(`Data cluster offset ${at} outside of the image`);
  }
  return image.allocator.lengthen(end);
}

/** To clusters that are allocated for it. Returns the bytes done, or -errno. */
async function writeNew(
  image: Image,
  { slice, offset, bytes }: Change,
  at: number,
  address: number,
): Promise<number> {
  const { clusterBytes } = image.layout;
  const inCluster = at % clusterBytes;
  const end = offset + bytes;
  let count = 1;
  while (at - inCluster + count * clusterBytes < end) {
    if (!needsPlace(image, slice, at - inCluster + count * clusterBytes)) break;
    count++;
  }
  const place =
    image.dataFile === null
      ? await image.allocator.allocate(count)
      : { offset: at - inCluster, count, isZero: false };
  if (typeof place === "number") return place;
  const part = Math.min(end - at, place.count * clusterBytes - inCluster);
  const host = place.offset + inCluster;
  const isZero = place.isZero;
  const piece = { slice, offset: at, bytes: part, address, host, isNew: true, isZero };
  const result = await writePiece(image, piece);
  if (result < 0 && image.dataFile === null) {
    image.allocator.free(place.offset, place.count, "never");
  }
  return result;
}

/** The cluster at `offset` has no place that may be written to. */
export function needsPlace(image: Image, slice: L2Slice, offset: number): boolean {
  const word = wordOf(image, slice, offset);
  const hi = slice.words[word]!;
  if ((hi & abi.QCOW_OFLAG_COMPRESSED_HI) !== 0) return true;
  if (hi < abi.QCOW_OFLAG_COPIED_HI) return true;
  return hostOf(hi, slice.words[word + 1]!) === 0 && image.dataFile === null;
}

/** Returns the bytes done, or -errno: then nothing is mapped. */
async function writePiece(image: Image, piece: Piece): Promise<number> {
  const { offset, bytes, host } = piece;
  const { start, end } = coverOf(image, piece);
  const readEnd = Math.max(offset + bytes, Math.min(end, roundUp(image.header.bytes, 512)));
  if (!piece.isNew || image.dataFile !== null) {
    const check = await prepareHost(image, host - (offset - start), end - start);
    if (check < 0) return check;
  }
  const result = await writeCovered(image, piece, start, readEnd);
  if (result < 0) return result;
  while (image.writer.isCommitting) await image.writer.settled();
  if (image.isBroken) return -EIO;
  const hostStart = host - (offset - start);
  mapClusters(image, piece.slice, { start, end, host: hostStart, isNew: piece.isNew });
  return bytes;
}

/** What gets a place with the piece: whole subclusters, and those that come along. */
function coverOf(image: Image, piece: Piece): { start: number; end: number } {
  const { clusterBytes, subclusterBytes, hasSubclusters } = image.layout;
  const { offset, bytes, isNew, slice } = piece;
  let start = offset - (offset % subclusterBytes);
  let end = roundUp(offset + bytes, subclusterBytes);
  if (!isNew || !hasSubclusters) return { start, end };
  // Subclusters with data move with the cluster.
  const firstCluster = offset - (offset % clusterBytes);
  const lastCluster = end - subclusterBytes - ((end - subclusterBytes) % clusterBytes);
  const first = dataOf(image, slice, firstCluster);
  const last = dataOf(image, slice, lastCluster);
  const lowest = first === 0 ? 32 : 31 - Math.clz32(first & -first);
  const highest = last === 0 ? 0 : 32 - Math.clz32(last);
  start = Math.min(start, firstCluster + lowest * subclusterBytes);
  end = Math.max(end, lastCluster + highest * subclusterBytes);
  return { start, end };
}

/** Bitmap of the subclusters with data. */
function dataOf(image: Image, slice: L2Slice, cluster: number): number {
  const word = wordOf(image, slice, cluster);
  const isCompressed = (slice.words[word]! & abi.QCOW_OFLAG_COMPRESSED_HI) !== 0;
  return isCompressed ? 0xffff_ffff : slice.words[word + 3]!;
}

/** Writes [start, end): the piece, and around it what was there before. 0 or -errno. */
async function writeCovered(
  image: Image,
  piece: Piece,
  start: number,
  end: number,
): Promise<number> {
  const { offset, bytes, address, host } = piece;
  const after = offset + bytes;
  const { data, reactor } = image;
  const needsHead = start < offset && (await needsFill(image, piece, start, offset));
  const needsTail = after < end && (await needsFill(image, piece, after, end));
  if (!needsHead && !needsTail) return data.write(host, bytes, address);
  const from = needsHead ? start : offset;
  const to = needsTail ? end : after;
  if (to - from > COPY_BYTES) {
    let result = await copyOld(image, from, offset, host - offset);
    if (result === 0) result = await data.write(host, bytes, address);
    return result < 0 ? result : copyOld(image, after, to, host - offset);
  }
  const { memory } = reactor;
  return image.copyPlaces.withBuffer(to - from, async (at) => {
    const buffer = memory.address + at;
    let result = await readGuest(image, from, offset - from, buffer);
    if (result === 0) {
      memory.copy(buffer + (offset - from), address, bytes);
      result = await readGuest(image, after, to - after, buffer + (after - from));
    }
    return result < 0 ? result : data.write(host - (offset - from), to - from, buffer);
  });
}

/** [start, end) of the guest is not yet in the piece's clusters as it must be. */
async function needsFill(
  image: Image,
  { host, offset, isNew, isZero: isFresh }: Piece,
  start: number,
  end: number,
): Promise<boolean> {
  if (!isKnownZero(image, start, end - start)) return true;
  // Zeroes of the host are no zeroes of a guest whose data is encrypted.
  if (image.encryption !== null) return true;
  if (isNew && isFresh) return false;
  const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
  const at = host + (start - offset);
  const { node } = image.data;
  if (at >= node.bytes) return true;
  const result = await node.blockStatus(at, Math.min(end - start, node.bytes - at), status);
  const isHole = result === 0 && (status.flags & STATUS_ZERO) !== 0;
  return !(isHole && status.bytes >= end - start);
}

/** Copies [start, end) of the guest to its new place. 0 or -errno. */
async function copyOld(
  image: Image,
  start: number,
  end: number,
  distance: number,
): Promise<number> {
  if (start >= end) return 0;
  const { reactor, data } = image;
  return image.copyPlaces.withBuffer(Math.min(COPY_BYTES, end - start), async (at) => {
    const buffer = reactor.memory.address + at;
    let result = 0;
    for (let from = start; from < end && result === 0; from += COPY_BYTES) {
      const part = Math.min(COPY_BYTES, end - from);
      result = await readGuest(image, from, part, buffer);
      if (result === 0) result = await data.write(from + distance, part, buffer);
    }
    return result;
  });
}
