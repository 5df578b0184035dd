/**
 * What all changes of the mapping have in common: one slice of an L2 table at a time, in memory and
 * of a table that may be changed, with nobody else changing these clusters.
 * Thread: iothread; may suspend.
 */
import { roundUp } from "../../child-io.ts";
import type { Image } from "./image.ts";
import type { L2Slice } from "./l2-tables.ts";

/** A part of a request inside one slice. */
export interface Change {
  readonly slice: L2Slice;
  readonly offset: number;
  readonly bytes: number;
}

/** Runs `step` for each part. 0 or -errno; ends at the first error. */
export async function changeGuest(
  image: Image,
  offset: number,
  bytes: number,
  step: (change: Change) => Promise<number>,
): Promise<number> {
  const { tables, locks, loader } = image;
  for (let done = 0; done < bytes; ) {
    const at = offset + done;
    const part = Math.min(bytes - done, tables.sliceSpan - (at % tables.sliceSpan));
    const { clusterBytes } = image.layout;
    const lock = await locks.acquire(at - (at % clusterBytes), roundUp(at + part, clusterBytes));
    const slice = await loader.pin(at);
    let result: number;
    if (typeof slice === "number") {
      result = slice;
    } else {
      result = await step({ slice, offset: at, bytes: part });
      loader.unpin(slice);
    }
    locks.release(lock);
    if (result < 0) return result;
    done += part;
  }
  return 0;
}

/** Index of the first word of the entry for a guest offset. */
export function wordOf(image: Image, { key }: L2Slice, offset: number): number {
  const { clusterBytes, l2EntryBytes } = image.layout;
  const index = Math.floor((offset - key * image.tables.sliceSpan) / clusterBytes);
  return index * (l2EntryBytes / 4);
}

/** Bits [from, to). */
export function bitRange(from: number, to: number): number {
  if (from >= to) return 0;
  const upTo = to === 32 ? 0xffff_ffff : (1 << to) - 1;
  return upTo & ~((1 << from) - 1);
}
