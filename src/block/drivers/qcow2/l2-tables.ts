/**
 * The L1 table and the L2 tables it points to, as far as they are in memory: slices of tables, by
 * the part of the guest's disk that they cover. Looking one up allocates nothing. Thread: iothread.
 *
 * Entries are pairs of u32, upper half first, as they are in the image but for the byte order; with
 * extended entries two pairs: the entry, then its bitmap.
 * Spec: QEMU docs/interop/qcow2.rst "Cluster mapping"
 */
import { OFFSET_MASK_HI, OFFSET_MASK_LO, QCOW_OFLAG_COPIED_HI } from "../../../abi/qcow2.ts";
import { assert } from "../../../util/error.ts";
import type { Layout } from "./layout.ts";

/** A part of an L2 table. */
export class L2Slice {
  /** Guest offset divided by what a slice covers. */
  readonly key: number;
  readonly words: Uint32Array;
  /** Users that wait for something else meanwhile: it stays where it is. */
  pins = 0;
  /** Looked at since the cache last needed room. */
  used = true;
  /** Words changed since they were last written: [from, to); empty when from is Infinity. */
  dirtyFrom = Number.POSITIVE_INFINITY;
  dirtyTo = 0;

  constructor(key: number, words: Uint32Array) {
    this.key = key;
    this.words = words;
  }
}

export interface L2TablesOptions {
  readonly layout: Layout;
  /** Entries as words; its length is the table's. */
  readonly l1: Uint32Array;
  readonly sliceBytes: number;
  readonly slicesMax: number;
}

export class L2Tables {
  readonly layout: Layout;
  /** Guest bytes that a slice covers. */
  readonly sliceSpan: number;
  readonly sliceBytes: number;
  slicesMax: number;
  /** Slices that have to be written. */
  readonly dirty = new Set<L2Slice>();
  /** Indexes of L1 entries that have to be written. */
  readonly dirtyL1 = new Set<number>();
  #l1: Uint32Array;
  #slices = new Map<number, L2Slice>();
  #last: L2Slice;

  constructor({ layout, l1, sliceBytes, slicesMax }: L2TablesOptions) {
    this.layout = layout;
    this.#l1 = l1;
    this.sliceBytes = sliceBytes;
    this.slicesMax = slicesMax;
    this.sliceSpan = (sliceBytes / layout.l2EntryBytes) * layout.clusterBytes;
    // Matches no offset.
    this.#last = new L2Slice(-1, new Uint32Array(0));
  }

  /** Entries as words. */
  get l1(): Uint32Array {
    return this.#l1;
  }

  get sliceCount(): number {
    return this.#slices.size;
  }

  /** The slice that covers `offset`; null when it is not in memory. */
  find(offset: number): L2Slice | null {
    const key = Math.floor(offset / this.sliceSpan);
    if (this.#last.key === key) return this.#last;
    const slice = this.#slices.get(key);
    if (slice === undefined) return null;
    slice.used = true;
    this.#last = slice;
    return slice;
  }

  /** Where the L2 table for `l1Index` lies; 0: there is none. May be anything in a bad image. */
  tableOffset(l1Index: number): number {
    const hi = this.#l1[l1Index * 2]! & OFFSET_MASK_HI;
    const lo = (this.#l1[l1Index * 2 + 1]! & OFFSET_MASK_LO) >>> 0;
    return hi * 0x1_0000_0000 + lo;
  }

  /** Nobody else uses the table: it may be changed. */
  isTableCopied(l1Index: number): boolean {
    return this.#l1[l1Index * 2]! >= QCOW_OFLAG_COPIED_HI;
  }

  setTable(l1Index: number, offset: number): void {
    const hi = Math.floor(offset / 0x1_0000_0000) + QCOW_OFLAG_COPIED_HI;
    this.#l1[l1Index * 2] = hi;
    this.#l1[l1Index * 2 + 1] = offset % 0x1_0000_0000;
    this.dirtyL1.add(l1Index);
  }

  /** The table is no longer part of the image. */
  dropTable(l1Index: number): void {
    this.#l1[l1Index * 2] = 0;
    this.#l1[l1Index * 2 + 1] = 0;
    this.dirtyL1.add(l1Index);
    const first = (l1Index * this.layout.tableSpan) / this.sliceSpan;
    const count = this.layout.tableSpan / this.sliceSpan;
    for (let key = first; key < first + count; key++) {
      const slice = this.#slices.get(key);
      if (slice === undefined) continue;
      assert(slice.pins === 0, "nobody changes what is dropped");
      this.#slices.delete(key);
      this.dirty.delete(slice);
    }
    this.#last = new L2Slice(-1, new Uint32Array(0));
  }

  /** A longer L1 table: entries that are new are empty. */
  growL1(size: number): void {
    assert(size * 2 >= this.#l1.length, "the table grows");
    const l1 = new Uint32Array(size * 2);
    l1.set(this.#l1);
    this.#l1 = l1;
  }

  /** Another L1 table, of the same size; nothing is dirty or in use. */
  replaceL1(l1: Uint32Array): void {
    assert(l1.length === this.#l1.length, "the disk has the same tables");
    this.#l1 = l1;
    this.forget();
  }

  /** Index in L1 of the table that the slice is part of. */
  l1IndexOf({ key }: L2Slice): number {
    return Math.floor((key * this.sliceSpan) / this.layout.tableSpan);
  }

  /** Where the slice lies in the image. */
  offsetOf(slice: L2Slice): number {
    const l1Index = this.l1IndexOf(slice);
    const first = (l1Index * this.layout.tableSpan) / this.sliceSpan;
    return this.tableOffset(l1Index) + (slice.key - first) * this.sliceBytes;
  }

  /** A slice of zeroes: of a table that is new. */
  emptyWords(): Uint32Array {
    return new Uint32Array(this.sliceBytes / 4);
  }

  /** There is room: see evict(). */
  add(key: number, words: Uint32Array): L2Slice {
    assert(!this.#slices.has(key), "a slice is in memory once");
    const slice = new L2Slice(key, words);
    this.#slices.set(key, slice);
    return slice;
  }

  markDirty(slice: L2Slice, fromWord: number, toWord: number): void {
    slice.dirtyFrom = Math.min(slice.dirtyFrom, fromWord);
    slice.dirtyTo = Math.max(slice.dirtyTo, toWord);
    this.dirty.add(slice);
  }

  /** They are written. */
  markClean(): void {
    for (const slice of this.dirty) {
      slice.dirtyFrom = Number.POSITIVE_INFINITY;
      slice.dirtyTo = 0;
    }
    this.dirty.clear();
    this.dirtyL1.clear();
  }

  get isFull(): boolean {
    return this.#slices.size >= this.slicesMax;
  }

  /** Makes room for one more. False when all are in use or have to be written first. */
  evict(): boolean {
    // Twice around: the first time may only take their marks of use away.
    for (let turns = this.#slices.size * 2; turns > 0; turns--) {
      const slice: L2Slice = this.#slices.values().next().value!;
      this.#slices.delete(slice.key);
      if (slice.pins === 0 && !slice.used && !this.dirty.has(slice)) {
        if (this.#last === slice) this.#last = new L2Slice(-1, slice.words);
        return true;
      }
      slice.used = false;
      this.#slices.set(slice.key, slice);
    }
    return false;
  }

  /** Forgets what has not been looked at since the last call. */
  clean(): void {
    for (const slice of [...this.#slices.values()]) {
      if (slice.pins === 0 && !slice.used && !this.dirty.has(slice)) {
        this.#slices.delete(slice.key);
      }
      slice.used = false;
    }
    this.#last = new L2Slice(-1, new Uint32Array(0));
  }

  /** Forgets all of it; nothing is dirty or in use. */
  forget(): void {
    assert(this.dirty.size === 0, "nothing is lost");
    this.#slices.clear();
    this.#last = new L2Slice(-1, new Uint32Array(0));
  }
}

/** Big-endian u32 to words of this machine, and back: in place. */
export function swapWords(words: Uint32Array): Uint32Array {
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    words[i] =
      (word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | ((word >>> 24) & 0xff);
  }
  return words;
}
