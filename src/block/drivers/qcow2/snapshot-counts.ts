/**
 * How taking or deleting a snapshot changes the refcounts of an image: what is counted more or less
 * often, before anything is written. Thread: iothread; may suspend.
 */
import * as abi from "../../../abi/qcow2.ts";
import { EFBIG, EINVAL, EIO } from "../../../runtime/errno.ts";
import { compressedPlace } from "./compressed.ts";
import type { Image } from "./image.ts";
import { swapWords } from "./l2-tables.ts";
import { hostOf } from "./mapping.ts";
import type { MetadataKind } from "./metadata-map.ts";
import type { RefcountBlock } from "./refcounts.ts";

/** More would take too much memory: 16 TiB of the usual clusters. */
const CLUSTERS_MAX = 2 ** 28;
/** Of one cluster's count, either way: what an entry of the arrays here can hold. */
const CHANGE_MAX = 32_000;

export class SnapshotCounts {
  /** Changes by cluster, by index of the refcount block. */
  readonly changes = new Map<number, Int16Array<ArrayBuffer>>();
  #image: Image;
  #clusterBytes: number;
  #perBlock: number;
  /** What was changed last. */
  #lastIndex = -1;
  #last = new Int16Array(0);

  constructor(image: Image) {
    this.#image = image;
    this.#clusterBytes = image.layout.clusterBytes;
    this.#perBlock = image.layout.refcountBlockEntries;
  }

  /** All that an L1 table leads to. `change`: 1 or -1. 0 or -errno. */
  async addTree(l1: Uint32Array, change: number): Promise<number> {
    if (this.#image.file.node.bytes / this.#clusterBytes > CLUSTERS_MAX) return -EFBIG;
    for (let i = 0; i < l1.length; i += 2) {
      const offset = hostOf(l1[i]!, l1[i + 1]!);
      if (offset === 0) continue;
      const words = await this.readTable(offset);
      if (typeof words === "number") return words;
      let result = this.add(offset, this.#clusterBytes, change);
      if (result === 0) result = this.#addTable(words, change);
      if (result < 0) return result;
    }
    return 0;
  }

  /** An L2 table, or -errno. */
  async readTable(offset: number): Promise<Uint32Array | number> {
    const { file } = this.#image;
    if (offset % this.#clusterBytes !== 0 || offset >= file.node.bytes) return -EIO;
    const bytes = await file.readBytes(offset, this.#clusterBytes);
    return typeof bytes === "number" ? bytes : swapWords(new Uint32Array(bytes.buffer));
  }

  #addTable(words: Uint32Array, change: number): number {
    const { layout, header } = this.#image;
    const step = layout.l2EntryBytes / 4;
    for (let word = 0; word < words.length; word += step) {
      const hi = words[word]!;
      const lo = words[word + 1]!;
      let result = 0;
      if ((hi & abi.QCOW_OFLAG_COMPRESSED_HI) !== 0) {
        const { offset, bytes } = compressedPlace(hi, lo, header.clusterBits);
        result = this.add(offset, bytes, change);
      } else {
        const host = hostOf(hi, lo);
        if (host % this.#clusterBytes !== 0) return -EIO;
        if (host !== 0) result = this.add(host, this.#clusterBytes, change);
      }
      if (result < 0) return result;
    }
    return 0;
  }

  /** Each cluster of a range. 0 or -errno. */
  add(offset: number, bytes: number, change: number): number {
    const { file } = this.#image;
    if (!(offset + bytes <= file.node.bytes + this.#clusterBytes)) return -EIO;
    const last = Math.floor((offset + bytes - 1) / this.#clusterBytes);
    for (let cluster = Math.floor(offset / this.#clusterBytes); cluster <= last; cluster++) {
      const index = Math.floor(cluster / this.#perBlock);
      if (index !== this.#lastIndex) this.#select(index);
      const entry = cluster - index * this.#perBlock;
      const next = this.#last[entry]! + change;
      if (next > CHANGE_MAX || next < -CHANGE_MAX) return -EFBIG;
      this.#last[entry] = next;
    }
    return 0;
  }

  #select(index: number): void {
    let block = this.changes.get(index);
    if (block === undefined) {
      block = new Int16Array(this.#perBlock);
      this.changes.set(index, block);
    }
    this.#lastIndex = index;
    this.#last = block;
  }

  /**
   * All counts stay in their bounds, what is said to be used is counted, and nothing else becomes
   * unused than what may. `mayEnd`: of metadata in a cluster at this offset. 0 or -errno.
   */
  async check(mayEnd: (kind: MetadataKind, offset: number) => boolean): Promise<number> {
    const { refcounts, layout, metadata } = this.#image;
    for (const [index, block] of this.changes) {
      const counts = await this.#blockOf(index);
      if (typeof counts === "number") return counts;
      for (let entry = 0; entry < block.length; entry++) {
        const change = block[entry]!;
        if (change === 0) continue;
        const before = refcounts.get(counts, entry);
        const after = before + change;
        if (before === 0 || after < 0 || after > layout.refcountMax) return -EINVAL;
        if (after > 0) continue;
        const offset = (index * this.#perBlock + entry) * this.#clusterBytes;
        const kind = metadata.kindOf(offset);
        if (kind !== null && !mayEnd(kind, offset)) return -EIO;
      }
    }
    return 0;
  }

  #blockOf(index: number): Promise<RefcountBlock | number> {
    const { refcounts } = this.#image;
    return refcounts.has(index) ? refcounts.load(index) : Promise.resolve(-EIO);
  }

  /**
   * One reference is all that a cluster in use has afterwards. -errno when it can't be told, or
   * the cluster has none.
   */
  async isAlone(offset: number): Promise<boolean | number> {
    const known = this.#isAlone(offset);
    if (known !== undefined) return known;
    const block = await this.#blockOf(Math.floor(offset / this.#clusterBytes / this.#perBlock));
    return typeof block === "number" ? block : (this.#isAlone(offset) ?? -EIO);
  }

  /** Undefined: its refcount block is not in memory. */
  #isAlone(offset: number): boolean | number | undefined {
    const { refcounts } = this.#image;
    const cluster = Math.floor(offset / this.#clusterBytes);
    const index = Math.floor(cluster / this.#perBlock);
    const block = refcounts.find(index);
    if (block === null) return undefined;
    const entry = cluster - index * this.#perBlock;
    const count = refcounts.get(block, entry) + (this.changes.get(index)?.[entry] ?? 0);
    return count < 1 ? -EIO : count === 1;
  }

  /**
   * Has the entries of a table of the active tree say who is alone. Returns whether that changed
   * any, or -errno.
   */
  async flag(words: Uint32Array): Promise<boolean | number> {
    const { layout } = this.#image;
    let hasChanged = false;
    for (let word = 0; word < words.length; word += layout.l2EntryBytes / 4) {
      const hi = words[word]!;
      const host = placeOf(hi, words[word + 1]!);
      if (host === 0) continue;
      const alone = this.#isAlone(host) ?? (await this.isAlone(host));
      if (typeof alone === "number") return alone;
      if (alone === hi >= abi.QCOW_OFLAG_COPIED_HI) continue;
      words[word] = flagged(hi, alone);
      hasChanged = true;
    }
    return hasChanged;
  }
}

/** Where the cluster of an entry lies; 0: nowhere, or compressed. */
function placeOf(hi: number, lo: number): number {
  return (hi & abi.QCOW_OFLAG_COMPRESSED_HI) !== 0 ? 0 : hostOf(hi, lo);
}

/** The upper half of an entry with or without QCOW_OFLAG_COPIED. */
export function flagged(hi: number, copied: boolean): number {
  const rest = hi >= abi.QCOW_OFLAG_COPIED_HI ? hi - abi.QCOW_OFLAG_COPIED_HI : hi;
  return copied ? rest + abi.QCOW_OFLAG_COPIED_HI : rest;
}
