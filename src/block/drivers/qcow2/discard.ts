/** Zeroes and discards of the guest. Thread: iothread; everything async may suspend. */
import * as abi from "../../../abi/qcow2.ts";
import { EIO, ENOTSUP } from "../../../runtime/errno.ts";
import { roundUp } from "../../child-io.ts";
import { type BlockStatus, REQ_MAY_UNMAP, REQ_NO_FALLBACK, STATUS_ZERO } from "../../node.ts";
import { type Change, changeGuest, wordOf } from "./change.ts";
import { freeEntry } from "./free-entry.ts";
import type { Image } from "./image.ts";
import { hostOf, INVALID, MISSING, NORMAL, newMapping } from "./mapping.ts";
import { isKnownZero } from "./read.ts";
import { statusOfGuest } from "./status.ts";
import { writeGuest } from "./write.ts";
import { ALL_SUBCLUSTERS, isDiskEnd, zeroInSlice } from "./zero-entries.ts";

/** Zeroes that are written as data, at a time. */
const ZEROES_BYTES = 256 * 1024;

/** `flags`: REQ_*. 0 or -errno. */
export async function zeroGuest(
  image: Image,
  offset: number,
  bytes: number,
  flags: number,
): Promise<number> {
  const { version, subclusterBytes, clusterBytes } = image.layout;
  if (version < 3) {
    // Version 2 has no zero clusters; without a backing file, none at all reads as zeroes, too.
    if (image.backing !== null) return byHand(image, offset, bytes, flags);
  }
  const unit = version < 3 ? clusterBytes : subclusterBytes;
  const diskEnd = roundUp(image.header.bytes, 512);
  const end = offset + bytes;
  const first = Math.min(roundUp(offset, unit), end);
  const last = end === diskEnd ? end : Math.max(end - (end % unit), first);
  const result = await zeroPart(image, offset, first - offset, flags);
  if (result < 0) return result;
  if (last > first) {
    const middle = await zeroWhole(image, first, last - first, flags);
    if (middle < 0) return middle;
  }
  return zeroPart(image, last, end - last, flags);
}

/** Of one subcluster: all of it is marked where the rest reads as zeroes and has no data. */
async function zeroPart(
  image: Image,
  offset: number,
  bytes: number,
  flags: number,
): Promise<number> {
  if (bytes === 0) return 0;
  const { version, subclusterBytes } = image.layout;
  if (version < 3) {
    return isKnownZero(image, offset, bytes) ? 0 : byHand(image, offset, bytes, flags);
  }
  const start = offset - (offset % subclusterBytes);
  const end = Math.min(start + subclusterBytes, roundUp(image.header.bytes, 512));
  const after = offset + bytes;
  let isMarked = false;
  const result = await changeGuest(image, start, end - start, async (change) => {
    const mapping = newMapping();
    if (image.map.lookup(start, end - start, mapping) >= NORMAL) return 0;
    if (!(await readsAsZeroes(image, start, offset))) return 0;
    if (!(await readsAsZeroes(image, after, end))) return 0;
    isMarked = true;
    const data = await zeroRawData(image, start, end - start, flags);
    return data < 0 ? data : zeroInSlice(image, change, flags);
  });
  return isMarked || result < 0 ? result : byHand(image, offset, bytes, flags);
}

/** Through the whole chain. */
export async function readsAsZeroes(image: Image, start: number, end: number): Promise<boolean> {
  const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
  for (let at = start; at < end; at += status.bytes) {
    const result = await statusOfGuest(image, at, end - at, status);
    if (result < 0 || (status.flags & STATUS_ZERO) === 0) return false;
  }
  return true;
}

async function byHand(image: Image, offset: number, bytes: number, flags: number): Promise<number> {
  if ((flags & REQ_NO_FALLBACK) !== 0) return -ENOTSUP;
  const { memory } = image.reactor;
  const partBytes = Math.min(bytes, ZEROES_BYTES);
  return image.partPlaces.withBuffer(partBytes, async (at) => {
    const address = memory.address + at;
    memory.zero(address, partBytes);
    let result = 0;
    for (let done = 0; done < bytes && result === 0; done += ZEROES_BYTES) {
      const part = Math.min(bytes - done, ZEROES_BYTES);
      result = await writeGuest(image, offset + done, part, address);
    }
    return result;
  });
}

async function zeroWhole(
  image: Image,
  offset: number,
  bytes: number,
  flags: number,
): Promise<number> {
  const data = await zeroRawData(image, offset, bytes, flags);
  if (data < 0) return data;
  if (image.layout.version < 3) return discardWhole(image, offset, bytes);
  return changeGuest(image, offset, bytes, (change) => zeroInSlice(image, change, flags));
}

/** A raw data file must read the same without its image. 0 or -errno. */
async function zeroRawData(
  { layout, data }: Image,
  offset: number,
  bytes: number,
  flags: number,
): Promise<number> {
  if (!layout.isDataFileRaw || !layout.hasDataFile) return 0;
  const length = await data.lengthen(roundUp(offset + bytes, 512), 0);
  return length < 0 ? length : data.writeZeroes(offset, bytes, flags);
}

/** A hint: whole clusters, and the last one of the disk. 0 or -errno. */
export async function discardGuest(image: Image, offset: number, bytes: number): Promise<number> {
  const { version, clusterBytes } = image.layout;
  // What shows through from below must not come back.
  if (version < 3 && image.backing !== null) return -ENOTSUP;
  const end = offset + bytes;
  const first = roundUp(offset, clusterBytes);
  const last = isDiskEnd(image, end) ? end : end - (end % clusterBytes);
  return last > first ? discardWhole(image, first, last - first) : 0;
}

/** What is about to be no part of the disk, from the start of a cluster on. 0 or -errno. */
export function cropGuest(image: Image, offset: number): Promise<number> {
  return discardWhole(image, offset, image.header.bytes - offset, true);
}

/** `isCropped`: nobody is going to read it, so nothing keeps its place or needs to be marked. */
async function discardWhole(
  image: Image,
  offset: number,
  bytes: number,
  isCropped = false,
): Promise<number> {
  const { tables, layout, settings, dataFile } = image;
  const end = offset + bytes;
  for (let at = offset; at < end; ) {
    const tableEnd = (Math.floor(at / layout.tableSpan) + 1) * layout.tableSpan;
    const part = Math.min(end, tableEnd) - at;
    const hasTable = tables.tableOffset(Math.floor(at / layout.tableSpan)) !== 0;
    if (hasTable || (image.backing !== null && !isCropped)) {
      const result = await changeGuest(image, at, part, (one) => {
        return discardInSlice(image, one, !isCropped);
      });
      if (result < 0) return result;
    }
    at += part;
  }
  if (dataFile === null || !settings.passDiscardRequest) return 0;
  if (!layout.isDataFileRaw) return dataFile.discard(offset, bytes);
  // Behind its end there are zeroes.
  const inside = Math.min(bytes, dataFile.node.bytes - offset);
  return inside <= 0 ? 0 : dataFile.writeZeroes(offset, inside, REQ_MAY_UNMAP);
}

async function discardInSlice(
  image: Image,
  { slice, offset, bytes }: Change,
  mayKeep: boolean,
): Promise<number> {
  const { layout, settings, tables, backing } = image;
  while (image.writer.isCommitting) await image.writer.settled();
  if (image.isBroken) return -EIO;
  const { words } = slice;
  const mapping = newMapping();
  const canZero = layout.version >= 3;
  for (let at = offset; at < offset + bytes; at += layout.clusterBytes) {
    const kind = image.map.lookup(at, 1, mapping);
    if (kind === INVALID) return image.loader.reportEntry(at);
    if (kind === MISSING) return -EIO;
    const word = wordOf(image, slice, at);
    const hi = words[word]!;
    const lo = words[word + 1]!;
    const isCompressed = (hi & abi.QCOW_OFLAG_COMPRESSED_HI) !== 0;
    const isPlaced = isCompressed || hostOf(hi, lo) !== 0;
    // Where nothing was and nothing is below, nothing needs to be marked.
    if (!isPlaced && backing === null && !(layout.hasDataFile && hi !== 0)) continue;
    const keeps = mayKeep && settings.discardNoUnref && !isCompressed && isPlaced && canZero;
    if (!keeps) freeEntry(image, hi, lo, "request");
    const zeroLo = canZero && !layout.hasSubclusters ? abi.QCOW_OFLAG_ZERO_LO : 0;
    words[word] = keeps ? hi : 0;
    words[word + 1] = (keeps ? lo | zeroLo : zeroLo) >>> 0;
    if (layout.hasSubclusters) {
      words[word + 2] = ALL_SUBCLUSTERS;
      words[word + 3] = 0;
    }
    tables.markDirty(slice, word, word + layout.l2EntryBytes / 4);
  }
  return 0;
}
