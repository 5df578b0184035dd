/**
 * Repairs the refcounts of an image that was not closed: counts what its tables refer to, and
 * writes that. Thread: iothread; may suspend.
 */
import { QCOW_OFLAG_COPIED_HI, QCOW2_INCOMPAT_DIRTY } from "../../../abi/qcow2.ts";
import { EFBIG, EIO } from "../../../runtime/errno.ts";
import type { Image } from "./image.ts";
import { hostOf } from "./mapping.ts";
import { ReferenceCounter } from "./references.ts";

/** What the image's clusters are used for. */
interface Found {
  readonly counts: Uint16Array;
  /** Clusters behind the file's end that refcount blocks were put into. */
  readonly behind: Set<number>;
}

/** Before anybody uses the image. 0 or -errno. */
export async function repairImage(image: Image): Promise<number> {
  const counter = new ReferenceCounter(image);
  let result = await counter.count();
  const { counts } = counter;
  const found: Found = { counts, behind: new Set() };
  for (const blockIndex of blocksOf(image, counts)) {
    if (result === 0) result = await repairBlock(image, found, blockIndex);
  }
  if (result === 0) result = await repairFlags(image, counts);
  if (result === 0) result = await image.writer.commitAll();
  return result < 0 ? result : image.setIncompatible(QCOW2_INCOMPAT_DIRTY, false);
}

/** Blocks that there are, or that must be. */
function blocksOf(image: Image, counts: Uint16Array): Set<number> {
  const { refcounts } = image;
  const blocks = new Set<number>();
  for (let i = 0; i < refcounts.table.length; i++) if (refcounts.has(i)) blocks.add(i);
  for (let i = 0; i < counts.length; i++) {
    if (counts[i] !== 0) blocks.add(refcounts.blockIndexOf(i));
  }
  return blocks;
}

async function repairBlock(image: Image, found: Found, blockIndex: number): Promise<number> {
  const { refcounts, layout } = image;
  const entries = layout.refcountBlockEntries;
  const first = blockIndex * entries;
  if (!refcounts.has(blockIndex)) {
    const made = await makeBlock(image, found, blockIndex);
    if (made < 0) return made;
  }
  const block = await refcounts.load(blockIndex);
  if (typeof block === "number") return block;
  for (let entry = 0; entry < entries; entry++) {
    const cluster = first + entry;
    const count = found.counts[cluster] ?? Number(found.behind.has(cluster));
    if (count > layout.refcountMax) return -EIO;
    if (refcounts.get(block, entry) !== count) refcounts.set(block, entry, count);
  }
  return 0;
}

/** In the first unused cluster that the block itself describes. */
async function makeBlock(
  image: Image,
  { counts, behind }: Found,
  blockIndex: number,
): Promise<number> {
  const { refcounts, layout, allocator, metadata } = image;
  if (blockIndex >= refcounts.table.length) return -EFBIG;
  const first = blockIndex * layout.refcountBlockEntries;
  const end = first + layout.refcountBlockEntries;
  let cluster = first;
  while (cluster < end && cluster < counts.length && counts[cluster] !== 0) cluster++;
  if (cluster === end) return -EFBIG;
  const offset = cluster * layout.clusterBytes;
  refcounts.addBlock(blockIndex, offset);
  metadata.add("refcount-block", offset, layout.clusterBytes);
  if (cluster < counts.length) counts[cluster] = 1;
  else behind.add(cluster);
  return allocator.lengthen(offset + layout.clusterBytes);
}

/** An entry may say that nobody else uses its cluster only where that is so. */
async function repairFlags(image: Image, counts: Uint16Array): Promise<number> {
  const { tables, layout, loader } = image;
  if (layout.hasDataFile || !counts.some((count) => count > 1)) return 0;
  const isShared = (hi: number, lo: number): boolean => {
    const host = hostOf(hi, lo);
    return host !== 0 && counts[host / layout.clusterBytes] !== 1;
  };
  for (let i = 0; i < tables.l1.length / 2; i++) {
    const [hi, lo] = [tables.l1[i * 2]!, tables.l1[i * 2 + 1]!];
    if (hostOf(hi, lo) === 0) continue;
    if (hi >= QCOW_OFLAG_COPIED_HI && isShared(hi, lo)) {
      tables.l1[i * 2] = hi - QCOW_OFLAG_COPIED_HI;
      tables.dirtyL1.add(i);
    }
    // A table that is shared has no such entries, or none that anybody would believe.
    if (tables.l1[i * 2]! < QCOW_OFLAG_COPIED_HI) continue;
    const start = i * layout.tableSpan;
    for (let at = start; at < start + layout.tableSpan; at += tables.sliceSpan) {
      const slice = await loader.pin(at);
      if (typeof slice === "number") return slice;
      const { words } = slice;
      const step = layout.l2EntryBytes / 4;
      for (let word = 0; word < words.length; word += step) {
        const entryHi = words[word]!;
        if (entryHi < QCOW_OFLAG_COPIED_HI || !isShared(entryHi, words[word + 1]!)) continue;
        words[word] = entryHi - QCOW_OFLAG_COPIED_HI;
        tables.markDirty(slice, word, word + 1);
      }
      loader.unpin(slice);
    }
  }
  return 0;
}
