/**
 * Compressed clusters in L2 entries: where one lies. Pure. Thread: iothread.
 * Spec: QEMU docs/interop/qcow2.rst "Compressed Clusters Descriptor"
 */
import { QCOW_OFLAG_COMPRESSED_HI } from "../../../abi/qcow2.ts";
import { assert } from "../../../util/error.ts";

export const COMPRESSED_SECTOR_BYTES = 512;

export interface CompressedPlace {
  readonly offset: number;
  /** Up to the end of its last sector. */
  readonly bytes: number;
}

/** Of an entry's halves. */
export function compressedPlace(hi: number, lo: number, clusterBits: number): CompressedPlace {
  // The lower 62 bits: the offset, and above it the number of additional sectors.
  const offsetBitsHi = offsetBits(clusterBits) - 32;
  const low62 = hi & 0x3fff_ffff;
  const offset = (low62 & (2 ** offsetBitsHi - 1)) * 0x1_0000_0000 + lo;
  const sectors = (low62 >>> offsetBitsHi) + 1;
  return {
    offset,
    bytes: sectors * COMPRESSED_SECTOR_BYTES - (offset % COMPRESSED_SECTOR_BYTES),
  };
}

/** The opposite: the halves of the entry for [offset, offset + bytes). It never says "copied". */
export function compressedEntry(
  offset: number,
  bytes: number,
  clusterBits: number,
): { readonly hi: number; readonly lo: number } {
  assert(bytes > 0 && bytes < 2 ** clusterBits, "what is compressed is shorter than a cluster");
  assert(offset > 0 && offset + bytes <= compressedEndMax(clusterBits), "the offset fits its bits");
  const first = Math.floor(offset / COMPRESSED_SECTOR_BYTES);
  const additional = Math.floor((offset + bytes - 1) / COMPRESSED_SECTOR_BYTES) - first;
  const high = additional * 2 ** (offsetBits(clusterBits) - 32) + Math.floor(offset / 2 ** 32);
  return { hi: QCOW_OFLAG_COMPRESSED_HI + high, lo: offset % 2 ** 32 };
}

/** No compressed cluster ends behind it. */
export function compressedEndMax(clusterBits: number): number {
  return Math.min(2 ** offsetBits(clusterBits), Number.MAX_SAFE_INTEGER);
}

function offsetBits(clusterBits: number): number {
  return 62 - (clusterBits - 8);
}
