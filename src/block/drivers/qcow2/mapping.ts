/**
 * Where the guest's clusters are, by what is in memory: runs of one kind. Allocates nothing.
 * Thread: iothread.
 * Spec: QEMU docs/interop/qcow2.rst "L2 table entry", "Extended L2 Entries"
 */
import {
  OFFSET_MASK_HI,
  OFFSET_MASK_LO,
  QCOW_OFLAG_COMPRESSED_HI,
  QCOW_OFLAG_COPIED_HI,
  QCOW_OFLAG_ZERO_LO,
} from "../../../abi/qcow2.ts";
import type { L2Tables } from "./l2-tables.ts";
import type { Layout } from "./layout.ts";

/** Nothing here: the backing file shows through. */
export const UNALLOCATED = 0;
/** The same, but the cluster has a place: another of its subclusters is allocated. */
export const UNALLOCATED_PLACED = 1;
/** Reads as zeroes. */
export const ZERO_PLAIN = 2;
/** Reads as zeroes; the cluster has a place. */
export const ZERO_PLACED = 3;
export const NORMAL = 4;
export const COMPRESSED = 5;
/** The image is damaged. */
export const INVALID = 6;
/** The table is not in memory. */
export const MISSING = 7;
export type MappingKind = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7;

/** One run, from the asked offset on; one per caller, reused. */
export interface Mapping {
  kind: MappingKind;
  /** In the data file, of the offset that was asked for. For kinds with a place. */
  host: number;
  bytes: number;
  /** Nobody else uses these clusters: they may be overwritten. */
  copied: boolean;
}

export function newMapping(): Mapping {
  return { kind: MISSING, host: 0, bytes: 0, copied: false };
}

/** Offsets that are no exact numbers any more lie outside of every file. */
const HOST_HI_MAX = 0x1f_ffff;

export class ClusterMap {
  #tables: L2Tables;
  #layout: Layout;

  constructor(tables: L2Tables) {
    this.#tables = tables;
    this.#layout = tables.layout;
  }

  /** The run at `offset`, at most `bytes` long; of the disk. */
  lookup(offset: number, bytes: number, out: Mapping): MappingKind {
    const slice = this.#tables.find(offset);
    if (slice === null) return this.#lookupTable(offset, bytes, out);
    const { clusterBytes } = this.#layout;
    const { sliceSpan } = this.#tables;
    const inSlice = offset - slice.key * sliceSpan;
    const index = Math.floor(inSlice / clusterBytes);
    const inCluster = inSlice - index * clusterBytes;
    const end = Math.min(bytes, sliceSpan - inSlice);
    return this.#layout.hasSubclusters
      ? this.#runExtended(slice.words, index, inCluster, end, offset, out)
      : this.#run(slice.words, index, inCluster, end, offset, out);
  }

  /** Without a slice: a table that does not exist, or is not in memory. */
  #lookupTable(offset: number, bytes: number, out: Mapping): MappingKind {
    const { tableSpan } = this.#layout;
    const l1Index = Math.floor(offset / tableSpan);
    out.bytes = Math.min(bytes, (l1Index + 1) * tableSpan - offset);
    out.copied = false;
    out.kind = this.#tables.tableOffset(l1Index) === 0 ? UNALLOCATED : MISSING;
    return out.kind;
  }

  /** `end`: bytes from the offset on that the slice has. */
  #run(
    words: Uint32Array,
    index: number,
    inCluster: number,
    end: number,
    offset: number,
    out: Mapping,
  ): MappingKind {
    const { clusterBytes } = this.#layout;
    let word = index * 2;
    const hi = words[word]!;
    const kind = this.#kindOf(hi, words[word + 1]!, offset - inCluster);
    const copied = hi >= QCOW_OFLAG_COPIED_HI;
    const host = hostOf(hi, words[word + 1]!);
    let run = clusterBytes - inCluster;
    out.kind = kind;
    out.copied = copied;
    out.host = host + inCluster;
    if (kind !== COMPRESSED && kind !== INVALID) {
      let next = host + clusterBytes;
      for (; run < end; run += clusterBytes, next += clusterBytes) {
        word += 2;
        const nextHi = words[word]!;
        const nextLo = words[word + 1]!;
        if (this.#kindOf(nextHi, nextLo, offset + run) !== kind) break;
        if (nextHi >= QCOW_OFLAG_COPIED_HI !== copied) break;
        if ((kind === NORMAL || kind === ZERO_PLACED) && hostOf(nextHi, nextLo) !== next) break;
      }
    }
    out.bytes = Math.min(run, end);
    return kind;
  }

  /** Of a standard entry. `guest`: offset of its cluster. */
  #kindOf(hi: number, lo: number, guest: number): MappingKind {
    if ((hi & QCOW_OFLAG_COMPRESSED_HI) !== 0) {
      return this.#layout.hasDataFile ? INVALID : COMPRESSED;
    }
    const isZero = (lo & QCOW_OFLAG_ZERO_LO) !== 0;
    // There are no zero clusters in version 2.
    if (isZero && this.#layout.version < 3) return INVALID;
    if ((hi & OFFSET_MASK_HI) === 0 && (lo & OFFSET_MASK_LO) === 0) {
      if (isZero) return ZERO_PLAIN;
      // Offset 0 of a data file is as good as any other.
      const isPlaced = this.#layout.hasDataFile && hi >= QCOW_OFLAG_COPIED_HI;
      if (!isPlaced) return UNALLOCATED;
    }
    if (!this.#isPlace(hi, lo, guest)) return INVALID;
    return isZero ? ZERO_PLACED : NORMAL;
  }

  /** A cluster may lie there. */
  #isPlace(hi: number, lo: number, guest: number): boolean {
    const { clusterBytes, hasDataFile } = this.#layout;
    if ((hi & OFFSET_MASK_HI) > HOST_HI_MAX) return false;
    if ((lo & OFFSET_MASK_LO & (clusterBytes - 1)) !== 0) return false;
    return !hasDataFile || hostOf(hi, lo) === guest;
  }

  #runExtended(
    words: Uint32Array,
    index: number,
    inCluster: number,
    end: number,
    offset: number,
    out: Mapping,
  ): MappingKind {
    const { clusterBytes, subclusterBytes } = this.#layout;
    let subcluster = Math.floor(inCluster / subclusterBytes);
    let word = index * 4;
    const kind = this.#kindExtended(words, word, subcluster, offset - inCluster);
    const hi = words[word]!;
    const copied = hi >= QCOW_OFLAG_COPIED_HI;
    const host = hostOf(hi, words[word + 1]!);
    const isPlaced = kind === NORMAL || kind === ZERO_PLACED || kind === UNALLOCATED_PLACED;
    let run = subclusterBytes - (inCluster - subcluster * subclusterBytes);
    out.kind = kind;
    out.copied = copied;
    out.host = host + inCluster;
    if (kind === COMPRESSED) run = clusterBytes - inCluster;
    if (kind !== COMPRESSED && kind !== INVALID) {
      let next = host;
      for (; run < end; run += subclusterBytes) {
        if (++subcluster === 32) {
          subcluster = 0;
          word += 4;
          next += clusterBytes;
          const nextHi = words[word]!;
          if (nextHi >= QCOW_OFLAG_COPIED_HI !== copied) break;
          if (isPlaced && hostOf(nextHi, words[word + 1]!) !== next) break;
        }
        const guest = offset + run - subcluster * subclusterBytes;
        if (this.#kindExtended(words, word, subcluster, guest) !== kind) break;
      }
    }
    out.bytes = Math.min(run, end);
    return kind;
  }

  #kindExtended(words: Uint32Array, word: number, subcluster: number, guest: number): MappingKind {
    const hi = words[word]!;
    const lo = words[word + 1]!;
    if ((hi & QCOW_OFLAG_COMPRESSED_HI) !== 0) {
      const isPlain = words[word + 2] === 0 && words[word + 3] === 0;
      return isPlain && !this.#layout.hasDataFile ? COMPRESSED : INVALID;
    }
    const bit = 1 << subcluster;
    const isZero = (words[word + 2]! & bit) !== 0;
    const isAllocated = (words[word + 3]! & bit) !== 0;
    if (isZero && isAllocated) return INVALID;
    if ((hi & OFFSET_MASK_HI) === 0 && (lo & OFFSET_MASK_LO) === 0) {
      if (!(this.#layout.hasDataFile && hi >= QCOW_OFLAG_COPIED_HI)) {
        if (isAllocated) return INVALID;
        return isZero ? ZERO_PLAIN : UNALLOCATED;
      }
    }
    if (!this.#isPlace(hi, lo, guest)) return INVALID;
    if (isZero) return ZERO_PLACED;
    return isAllocated ? NORMAL : UNALLOCATED_PLACED;
  }
}

/** Of an entry with a place; exact when #isPlace(). */
export function hostOf(hi: number, lo: number): number {
  return (hi & OFFSET_MASK_HI) * 0x1_0000_0000 + ((lo & OFFSET_MASK_LO) >>> 0);
}
