/**
 * The refcount table and the refcount blocks in memory. Changes are marked here and written by
 * MetadataWriter. Thread: iothread.
 * Spec: QEMU docs/interop/qcow2.rst "Host cluster management"
 */
import { ENTRY_BYTES, REFT_OFFSET_MASK_LO } from "../../../abi/qcow2.ts";
import { EINVAL } from "../../../runtime/errno.ts";
import { assert } from "../../../util/error.ts";
import { getU64, setU64, viewOf } from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import type { Layout } from "./layout.ts";

/** The refcounts of a run of clusters, as in the image. */
export class RefcountBlock {
  /** In the refcount table. */
  readonly index: number;
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Bytes changed since they were last written: [from, to). */
  dirtyFrom = Number.POSITIVE_INFINITY;
  dirtyTo = 0;
  /** It is on its way to the disk, which does not have it yet. */
  isBeingWritten = false;

  constructor(index: number, offset: number, bytes: Uint8Array) {
    this.index = index;
    this.offset = offset;
    this.bytes = bytes;
    this.view = viewOf(bytes);
  }
}

export class Refcounts {
  readonly layout: Layout;
  blocksMax: number;
  /** Blocks that have to be written. */
  readonly dirty = new Set<RefcountBlock>();
  /** Of these, those that the table on the disk does not point to yet. */
  readonly fresh = new Set<RefcountBlock>();
  /** Where the blocks lie; 0: there is none. */
  #table: Float64Array;
  #file: ImageFile;
  #blocks = new Map<number, RefcountBlock>();
  #loading = new Map<number, Promise<RefcountBlock | number>>();

  constructor(file: ImageFile, layout: Layout, table: Float64Array, blocksMax: number) {
    this.#file = file;
    this.layout = layout;
    this.#table = table;
    this.blocksMax = blocksMax;
  }

  get table(): Float64Array {
    return this.#table;
  }

  /** Where the block for a cluster is in the table. */
  blockIndexOf(cluster: number): number {
    return Math.floor(cluster / this.layout.refcountBlockEntries);
  }

  /** Null when it is not in memory. */
  find(blockIndex: number): RefcountBlock | null {
    return this.#blocks.get(blockIndex) ?? null;
  }

  /** The table has an entry for it, or might have. */
  has(blockIndex: number): boolean {
    return blockIndex < this.#table.length && this.#table[blockIndex] !== 0;
  }

  /** A block that exists, or -errno; -EINVAL: it can't lie there. May suspend. */
  load(blockIndex: number): Promise<RefcountBlock | number> {
    const known = this.#blocks.get(blockIndex);
    if (known !== undefined) return Promise.resolve(known);
    let loading = this.#loading.get(blockIndex);
    if (loading === undefined) {
      loading = this.#load(blockIndex).finally(() => this.#loading.delete(blockIndex));
      this.#loading.set(blockIndex, loading);
    }
    return loading;
  }

  async #load(blockIndex: number): Promise<RefcountBlock | number> {
    const { clusterBytes } = this.layout;
    const offset = this.#table[blockIndex]!;
    assert(offset > 0, "only blocks that exist are loaded");
    if (offset % clusterBytes !== 0 || offset >= this.#file.node.bytes) return -EINVAL;
    const bytes = await this.#file.readBytes(offset, clusterBytes);
    if (typeof bytes === "number") return bytes;
    // Who still had it from before may have changed it meanwhile: then the file's is an old one.
    const changed = this.#blocks.get(blockIndex);
    if (changed !== undefined) return changed;
    const block = new RefcountBlock(blockIndex, offset, bytes);
    this.#add(block);
    return block;
  }

  #add(block: RefcountBlock): void {
    if (this.#blocks.size >= this.blocksMax) {
      for (const other of this.#blocks.values()) {
        if (this.dirty.has(other) || other.isBeingWritten) continue;
        this.#blocks.delete(other.index);
        break;
      }
    }
    this.#blocks.set(block.index, block);
  }

  /** A block of zeroes at a place of the image that nobody uses. */
  addBlock(blockIndex: number, offset: number): RefcountBlock {
    assert(this.#table[blockIndex] === 0, "the block does not exist");
    const block = new RefcountBlock(blockIndex, offset, new Uint8Array(this.layout.clusterBytes));
    this.#table[blockIndex] = offset;
    this.markDirty(block, 0, block.bytes.length);
    this.fresh.add(block);
    this.#add(block);
    return block;
  }

  /** A longer table, with `blocks`: both are on the disk. */
  growTable(entries: number, blocks: readonly RefcountBlock[]): void {
    const table = new Float64Array(entries);
    table.set(this.#table);
    this.#table = table;
    for (const block of blocks) {
      table[block.index] = block.offset;
      this.#add(block);
    }
  }

  /** A block of its own with the same counts. */
  copyOf({ index, offset, bytes }: RefcountBlock): RefcountBlock {
    return new RefcountBlock(index, offset, bytes.slice());
  }

  /** The block lies elsewhere and has other counts: all of it is on the disk. */
  replaceBlock(index: number, offset: number, bytes: Uint8Array): void {
    const before = this.#blocks.get(index);
    assert(before === undefined || !this.dirty.has(before), "nothing is lost");
    this.#blocks.delete(index);
    this.#table[index] = offset;
    this.#add(new RefcountBlock(index, offset, bytes));
  }

  get(block: RefcountBlock, entry: number): number {
    const { refcountBits } = this.layout;
    switch (refcountBits) {
      case 8:
        return block.bytes[entry]!;
      case 16:
        return block.view.getUint16(entry * 2);
      case 32:
        return block.view.getUint32(entry * 4);
      case 64:
        return getU64(block.view, entry * 8);
      default: {
        const bit = entry * refcountBits;
        return (block.bytes[bit >>> 3]! >>> (bit & 7)) & ((1 << refcountBits) - 1);
      }
    }
  }

  /** `value` fits. */
  set(block: RefcountBlock, entry: number, value: number): void {
    this.fill(block, entry, value);
    const at = (entry * this.layout.refcountBits) >>> 3;
    this.markDirty(block, at, at + Math.max(this.layout.refcountBits >>> 3, 1));
  }

  /** The same in a block that is not one of these yet. */
  fill(block: RefcountBlock, entry: number, value: number): void {
    const { refcountBits, refcountMax } = this.layout;
    assert(value >= 0 && value <= refcountMax, "a refcount fits its entry");
    const bit = entry * refcountBits;
    const at = bit >>> 3;
    switch (refcountBits) {
      case 8:
        block.bytes[at] = value;
        break;
      case 16:
        block.view.setUint16(at, value);
        break;
      case 32:
        block.view.setUint32(at, value);
        break;
      case 64:
        setU64(block.view, at, value);
        break;
      default: {
        const mask = ((1 << refcountBits) - 1) << (bit & 7);
        block.bytes[at] = (block.bytes[at]! & ~mask) | (value << (bit & 7));
      }
    }
  }

  /** Of any cluster: -errno where its block can't be read. May suspend. */
  async refcountOf(cluster: number): Promise<number> {
    const blockIndex = this.blockIndexOf(cluster);
    if (!this.has(blockIndex)) return 0;
    const block = await this.load(blockIndex);
    if (typeof block === "number") return block;
    return this.get(block, cluster % this.layout.refcountBlockEntries);
  }

  /** Bytes [from, to). */
  markDirty(block: RefcountBlock, from: number, to: number): void {
    block.dirtyFrom = Math.min(block.dirtyFrom, from);
    block.dirtyTo = Math.max(block.dirtyTo, to);
    this.dirty.add(block);
    // It may have had to make room while its user waited for it.
    this.#blocks.set(block.index, block);
  }

  /** It is written, as it was when that began: nothing has changed meanwhile. */
  markClean(block: RefcountBlock): void {
    block.dirtyFrom = Number.POSITIVE_INFINITY;
    block.dirtyTo = 0;
    this.dirty.delete(block);
  }

  /** Forgets all of it. */
  forget(): void {
    assert(this.dirty.size === 0, "nothing is lost");
    this.#blocks.clear();
  }
}

/** Entries as offsets. A bad one is no multiple of the cluster size, or lies behind every file. */
export function parseRefcountTable(bytes: Uint8Array): Float64Array {
  const view = viewOf(bytes);
  const table = new Float64Array(bytes.length / ENTRY_BYTES);
  for (let i = 0; i < table.length; i++) {
    const hi = view.getUint32(i * ENTRY_BYTES);
    const lo = view.getUint32(i * ENTRY_BYTES + 4) & REFT_OFFSET_MASK_LO;
    table[i] = hi * 0x1_0000_0000 + (lo >>> 0);
  }
  return table;
}
