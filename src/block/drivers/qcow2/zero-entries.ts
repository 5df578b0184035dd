/** Marks of zeroes in L2 entries. Thread: iothread; everything async may suspend. */
import * as abi from "../../../abi/qcow2.ts";
import { EIO, ENOTSUP } from "../../../runtime/errno.ts";
import { REQ_MAY_UNMAP } from "../../node.ts";
import { bitRange, type Change, wordOf } from "./change.ts";
import { freeEntry } from "./free-entry.ts";
import type { Image } from "./image.ts";
import type { L2Slice } from "./l2-tables.ts";
import { hostOf, INVALID, newMapping } from "./mapping.ts";

export const ALL_SUBCLUSTERS = 0xffff_ffff;

/** Whole subclusters, or up to the end of the disk. `flags`: REQ_*. 0 or -errno. */
export async function zeroInSlice(image: Image, change: Change, flags: number): Promise<number> {
  const { clusterBytes } = image.layout;
  const { slice, offset, bytes } = change;
  while (image.writer.isCommitting) await image.writer.settled();
  if (image.isBroken) return -EIO;
  const mapping = newMapping();
  const end = offset + bytes;
  for (let at = offset; at < end; ) {
    const clusterEnd = Math.min(at - (at % clusterBytes) + clusterBytes, end);
    if (image.map.lookup(at, clusterEnd - at, mapping) === INVALID) {
      return image.loader.reportEntry(at);
    }
    if (!zeroCluster(image, slice, at, clusterEnd, flags)) return -ENOTSUP;
    at = clusterEnd;
  }
  return 0;
}

/** [start, end) of one cluster. False when it can't be marked. */
function zeroCluster(
  image: Image,
  slice: L2Slice,
  start: number,
  end: number,
  flags: number,
): boolean {
  const { layout, settings, tables } = image;
  const { clusterBytes, subclusterBytes, hasSubclusters } = layout;
  const cluster = start - (start % clusterBytes);
  const isWhole = start === cluster && (end - cluster >= clusterBytes || isDiskEnd(image, end));
  const word = wordOf(image, slice, cluster);
  const { words } = slice;
  const hi = words[word]!;
  const lo = words[word + 1]!;
  const isCompressed = (hi & abi.QCOW_OFLAG_COMPRESSED_HI) !== 0;
  if (!isWhole) {
    if (isCompressed) return false;
    const from = (start - cluster) / subclusterBytes;
    const bits = bitRange(from, Math.ceil((end - cluster) / subclusterBytes));
    words[word + 2]! |= bits;
    words[word + 3]! &= ~bits;
  } else {
    const isPlaced = isCompressed || hostOf(hi, lo) !== 0;
    const unmaps = isCompressed || ((flags & REQ_MAY_UNMAP) !== 0 && isPlaced);
    const drops = unmaps && (isCompressed || !settings.discardNoUnref);
    const zeroLo = hasSubclusters ? 0 : abi.QCOW_OFLAG_ZERO_LO;
    if (drops) freeEntry(image, hi, lo, "request");
    if (drops) words[word] = 0;
    words[word + 1] = (drops ? zeroLo : lo | zeroLo) >>> 0;
    if (hasSubclusters) {
      words[word + 2] = ALL_SUBCLUSTERS;
      words[word + 3] = 0;
    }
  }
  tables.markDirty(slice, word, word + layout.l2EntryBytes / 4);
  return true;
}

export function isDiskEnd(image: Image, end: number): boolean {
  return end >= image.header.bytes;
}
