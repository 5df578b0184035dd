/** Gives up what an L2 entry refers to, which is no longer in its table. Thread: iothread. */
import { QCOW_OFLAG_COMPRESSED_HI } from "../../../abi/qcow2.ts";
import type { FreeReason } from "./allocator.ts";
import { compressedPlace } from "./compressed.ts";
import type { Image } from "./image.ts";
import { hostOf } from "./mapping.ts";

/** `hi`, `lo`: the entry's halves. What lies in a data file has no refcounts. */
export function freeEntry(image: Image, hi: number, lo: number, reason: FreeReason): void {
  const { allocator, layout, header } = image;
  const { clusterBytes } = layout;
  if ((hi & QCOW_OFLAG_COMPRESSED_HI) !== 0) {
    const { offset, bytes } = compressedPlace(hi, lo, header.clusterBits);
    if (!Number.isSafeInteger(offset)) return;
    image.inflated.forget(offset);
    const first = Math.floor(offset / clusterBytes);
    const last = Math.floor((offset + bytes - 1) / clusterBytes);
    allocator.free(first * clusterBytes, last - first + 1, reason);
    return;
  }
  const host = hostOf(hi, lo);
  if (host === 0 || layout.hasDataFile) return;
  if (host % clusterBytes === 0 && Number.isSafeInteger(host)) allocator.free(host, 1, reason);
}
