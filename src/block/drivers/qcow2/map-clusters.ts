/** Enters places of clusters into an L2 table. Thread: iothread. */
import { QCOW_OFLAG_COPIED_HI } from "../../../abi/qcow2.ts";
import { bitRange, wordOf } from "./change.ts";
import { freeEntry } from "./free-entry.ts";
import type { Image } from "./image.ts";
import type { L2Slice } from "./l2-tables.ts";

/** [start, end) of the guest has its data from `host` on. */
export interface Placed {
  readonly start: number;
  readonly end: number;
  readonly host: number;
  /** The clusters were not these before: what was there is given up. */
  readonly isNew: boolean;
}

/** Between commits. `slice` may be changed, and covers all of it. */
export function mapClusters(image: Image, slice: L2Slice, placed: Placed): void {
  const { start, end, isNew } = placed;
  const { tables, layout } = image;
  const { clusterBytes, subclusterBytes, hasSubclusters } = layout;
  const { words } = slice;
  const first = start - (start % clusterBytes);
  const hostFirst = placed.host - (start - first);
  for (let cluster = first; cluster < end; cluster += clusterBytes) {
    const word = wordOf(image, slice, cluster);
    const host = hostFirst + (cluster - first);
    if (isNew) freeEntry(image, words[word]!, words[word + 1]!, "never");
    words[word] = Math.floor(host / 0x1_0000_0000) + QCOW_OFLAG_COPIED_HI;
    words[word + 1] = host % 0x1_0000_0000;
    if (!hasSubclusters) continue;
    const from = Math.max(0, Math.floor((start - cluster) / subclusterBytes));
    const to = Math.min(32, Math.ceil((end - cluster) / subclusterBytes));
    const bits = bitRange(from, to);
    words[word + 2]! &= ~bits;
    words[word + 3]! |= bits;
  }
  const wordEnd = wordOf(image, slice, end - 1) + layout.l2EntryBytes / 4;
  tables.markDirty(slice, wordOf(image, slice, first), wordEnd);
}
