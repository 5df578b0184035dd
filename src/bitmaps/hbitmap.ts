/**
 * One bit per piece of a disk. Memory is taken in chunks, for those with a bit set only; their
 * counts make large clean or dirty parts cheap to pass over. Thread: any.
 *
 * A range of bytes that touches a piece sets its bit. The bits lie in the order in which QEMU keeps
 * and stores them: bit n is bit n % 8 of byte n / 8.
 */
import { assert, OutportError } from "../util/error.ts";

export const GRANULARITY_MIN = 512;
export const GRANULARITY_MAX = 2 ** 31;

const CHUNK_BITS = 65_536;
const CHUNK_WORDS = CHUNK_BITS / 32;
const CHUNK_BYTES = CHUNK_BITS / 8;
/** 2^38 bits; their memory when all are set, 32 GiB, is far more than anybody has for a bitmap. */
const CHUNKS_MAX = 2 ** 22;
/** The length of the bits as a whole is a multiple of what QEMU takes as a word. */
const SERIAL_BYTES = 8;

const NO_BITS = new Uint8Array(CHUNK_BYTES);
/** Stands for every chunk that is set as a whole: nobody changes it. */
const ALL_BITS = new Uint32Array(CHUNK_WORDS).fill(0xffff_ffff);

/** The contents of a bitmap, structured-cloneable. */
export interface HBitmapContent {
  readonly bytes: number;
  readonly granularity: number;
  /** Null: no bit is set. Words of 32 bits, little-endian. */
  readonly chunks: readonly (Uint32Array | null)[];
}

export class HBitmap {
  /** Bytes per bit: a power of two. */
  readonly granularity: number;
  #bytes: number;
  #bitCount: number;
  #chunks: (Uint32Array | null)[];
  /** Set bits of each chunk. */
  #counts: Uint32Array;
  #dirtyCount = 0;

  /** `bytes`: of the disk. Throws OutportError when there would be too many bits. */
  constructor(bytes: number, granularity: number) {
    assert(granularity >= GRANULARITY_MIN, "a bit stands for a sector at least");
    assert(granularity <= GRANULARITY_MAX && Number.isInteger(Math.log2(granularity)), "of 2^n");
    this.granularity = granularity;
    this.#bytes = bytes;
    this.#bitCount = Math.ceil(bytes / granularity);
    const chunkCount = chunksFor(this.#bitCount);
    this.#chunks = new Array(chunkCount).fill(null);
    this.#counts = new Uint32Array(chunkCount);
  }

  static from({ bytes, granularity, chunks }: HBitmapContent): HBitmap {
    const bitmap = new HBitmap(bytes, granularity);
    for (const [index, words] of chunks.entries()) {
      if (words !== null) bitmap.#putChunk(index, words.slice());
    }
    return bitmap;
  }

  /** Of the disk. */
  get bytes(): number {
    return this.#bytes;
  }

  get bitCount(): number {
    return this.#bitCount;
  }

  /** Whole pieces, also where the last one reaches beyond the disk. */
  get dirtyBytes(): number {
    return this.#dirtyCount * this.granularity;
  }

  /** As it is, for another thread: shared with the bitmap. */
  content(): HBitmapContent {
    return { bytes: this.#bytes, granularity: this.granularity, chunks: this.#chunks };
  }

  get(offset: number): boolean {
    const bit = Math.floor(offset / this.granularity);
    const words = this.#chunks[Math.floor(bit / CHUNK_BITS)] ?? null;
    if (words === null) return false;
    const within = bit % CHUNK_BITS;
    return ((words[within >>> 5]! >>> (within & 31)) & 1) !== 0;
  }

  /** Marks each piece that the range touches; what lies beyond the disk has no bit. */
  set(offset: number, bytes: number): void {
    const end = Math.min(offset + bytes, this.#bytes);
    if (bytes <= 0 || offset >= end) return;
    const first = Math.floor(offset / this.granularity);
    const last = Math.floor((end - 1) / this.granularity);
    // Most writes of a guest go where it has written before.
    if (first === last && this.get(offset)) return;
    this.#setBits(first, last + 1);
  }

  /** Clears each piece that lies in the range as a whole. */
  reset(offset: number, bytes: number): void {
    const first = Math.ceil(offset / this.granularity);
    const reachesEnd = offset + bytes >= this.#bytes;
    const end = reachesEnd ? this.#bitCount : Math.floor((offset + bytes) / this.granularity);
    this.#resetBits(first, end);
  }

  clear(): void {
    this.#chunks.fill(null);
    this.#counts.fill(0);
    this.#dirtyCount = 0;
  }

  /** Where the next marked byte of [offset, end) is; -1: there is none. */
  nextDirty(offset: number, end: number): number {
    return this.#next(offset, end, true);
  }

  /** Where the next unmarked byte of [offset, end) is; -1: there is none. */
  nextZero(offset: number, end: number): number {
    return this.#next(offset, end, false);
  }

  /** Marks all that `other` has marked, of whatever granularity. The disks are of one length. */
  merge(other: HBitmap): void {
    assert(other.#bytes === this.#bytes, "bitmaps of one length are merged");
    if (other.granularity !== this.granularity) {
      this.#mergeRanges(other);
      return;
    }
    for (const [index, theirs] of other.#chunks.entries()) {
      if (theirs === null) continue;
      const ours = this.#chunkFor(index);
      for (let i = 0; i < CHUNK_WORDS; i++) ours[i]! |= theirs[i]!;
      this.#putChunk(index, ours);
    }
  }

  /** The disk has another length: what is cut off is forgotten, what is new is clean. */
  resize(bytes: number): void {
    const bitCount = Math.ceil(bytes / this.granularity);
    const chunkCount = chunksFor(bitCount);
    if (bitCount < this.#bitCount) this.#resetBits(bitCount, this.#bitCount);
    const counts = new Uint32Array(chunkCount);
    counts.set(this.#counts.subarray(0, chunkCount));
    const before = this.#chunks.length;
    this.#chunks.length = chunkCount;
    if (chunkCount > before) this.#chunks.fill(null, before);
    this.#counts = counts;
    this.#bytes = bytes;
    this.#bitCount = bitCount;
  }

  /** Length of all bits as QEMU keeps and stores them: whole words of 64 bits, at least one. */
  get serializedBytes(): number {
    return Math.max(1, Math.ceil(this.#bitCount / (SERIAL_BYTES * 8))) * SERIAL_BYTES;
  }

  /** A bit is set in bytes [at, at + bytes) of them. */
  hasBits(at: number, bytes: number): boolean {
    const end = Math.min((at + bytes) * 8, this.#bitCount);
    return this.#nextBit(at * 8, end, true) >= 0;
  }

  /** Fills `target` with the bytes of them from `at` on; zeroes behind the end. */
  serialize(at: number, target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const within = (at + done) % CHUNK_BYTES;
      const part = Math.min(CHUNK_BYTES - within, target.length - done);
      const words = this.#chunks[Math.floor((at + done) / CHUNK_BYTES)] ?? null;
      const bytes = words === null ? NO_BITS : new Uint8Array(words.buffer);
      target.set(bytes.subarray(within, within + part), done);
      done += part;
    }
  }

  /** The opposite, where no bit is set yet; what lies behind the end is ignored. */
  deserialize(at: number, source: Uint8Array): void {
    const length = Math.min(source.length, Math.ceil(this.#bitCount / 8) - at);
    for (let done = 0; done < length; ) {
      const index = Math.floor((at + done) / CHUNK_BYTES);
      const within = (at + done) % CHUNK_BYTES;
      const part = Math.min(CHUNK_BYTES - within, length - done);
      const bytes = source.subarray(done, done + part);
      done += part;
      if (isZero(bytes)) continue;
      const words = this.#chunkFor(index);
      new Uint8Array(words.buffer).set(bytes, within);
      const bitsLeft = this.#bitCount - index * CHUNK_BITS;
      if (bitsLeft < CHUNK_BITS) fillBits(words, bitsLeft, CHUNK_BITS, false);
      this.#putChunk(index, words);
    }
  }

  /** All bits as QEMU keeps them in memory, in pieces. */
  *serialized(): Generator<Uint8Array> {
    let left = this.serializedBytes;
    for (let index = 0; left > 0; index++) {
      const words = this.#chunks[index] ?? null;
      const bytes = words === null ? NO_BITS : new Uint8Array(words.buffer);
      const part = Math.min(left, CHUNK_BYTES);
      yield bytes.subarray(0, part);
      left -= part;
    }
  }

  #mergeRanges(other: HBitmap): void {
    for (let at = 0; at < other.#bytes; ) {
      const start = other.nextDirty(at, other.#bytes);
      if (start < 0) return;
      const end = other.nextZero(start, other.#bytes);
      at = end < 0 ? other.#bytes : end;
      this.set(start, at - start);
    }
  }

  #next(offset: number, end: number, wanted: boolean): number {
    const limit = Math.min(end, this.#bytes);
    if (offset >= limit) return -1;
    const first = Math.floor(offset / this.granularity);
    const bit = this.#nextBit(first, Math.ceil(limit / this.granularity), wanted);
    // The piece may begin before the range.
    return bit < 0 ? -1 : Math.max(bit * this.granularity, offset);
  }

  #nextBit(first: number, end: number, wanted: boolean): number {
    for (let bit = first; bit < end; ) {
      const index = Math.floor(bit / CHUNK_BITS);
      const words = this.#chunks[index]!;
      const hasNone = wanted ? words === null : this.#counts[index] === CHUNK_BITS;
      const chunkStart = index * CHUNK_BITS;
      if (!hasNone) {
        const within = words === null ? bit - chunkStart : scan(words, bit - chunkStart, wanted);
        if (within >= 0) return chunkStart + within < end ? chunkStart + within : -1;
      }
      bit = chunkStart + CHUNK_BITS;
    }
    return -1;
  }

  #setBits(first: number, end: number): void {
    for (let bit = first; bit < end; ) {
      const index = Math.floor(bit / CHUNK_BITS);
      const start = index * CHUNK_BITS;
      const partEnd = Math.min(end, start + CHUNK_BITS);
      if (partEnd - bit === CHUNK_BITS) {
        this.#dirtyCount += CHUNK_BITS - this.#counts[index]!;
        this.#counts[index] = CHUNK_BITS;
        this.#chunks[index] = ALL_BITS;
      } else if (this.#counts[index] !== CHUNK_BITS) {
        const added = fillBits(this.#chunkFor(index), bit - start, partEnd - start, true);
        this.#counts[index]! += added;
        this.#dirtyCount += added;
      }
      bit = partEnd;
    }
  }

  #resetBits(first: number, end: number): void {
    for (let bit = first; bit < end; ) {
      const index = Math.floor(bit / CHUNK_BITS);
      const start = index * CHUNK_BITS;
      const partEnd = Math.min(end, start + CHUNK_BITS);
      if ((this.#chunks[index] ?? null) !== null) {
        const words = this.#chunkFor(index);
        const removed = fillBits(words, bit - start, partEnd - start, false);
        this.#counts[index]! -= removed;
        this.#dirtyCount -= removed;
        if (this.#counts[index] === 0) this.#chunks[index] = null;
      }
      bit = partEnd;
    }
  }

  #chunkFor(index: number): Uint32Array {
    const known = this.#chunks[index] ?? null;
    if (known !== null && known !== ALL_BITS) return known;
    const words = known === null ? new Uint32Array(CHUNK_WORDS) : known.slice();
    this.#chunks[index] = words;
    return words;
  }

  #putChunk(index: number, words: Uint32Array): void {
    let count = 0;
    for (let i = 0; i < CHUNK_WORDS; i++) count += popcount(words[i]!);
    this.#dirtyCount += count - this.#counts[index]!;
    this.#counts[index] = count;
    this.#chunks[index] = count === 0 ? null : count === CHUNK_BITS ? ALL_BITS : words;
  }
}

function chunksFor(bitCount: number): number {
  const count = Math.ceil(bitCount / CHUNK_BITS);
  if (count <= CHUNKS_MAX) return count;
  throw new OutportError("limit", "The granularity is too small for a disk of this size");
}

/** Sets or clears bits [first, end) of a chunk. Returns how many have changed. */
function fillBits(words: Uint32Array, first: number, end: number, value: boolean): number {
  let changed = 0;
  for (let bit = first; bit < end; ) {
    const index = bit >>> 5;
    const low = bit & 31;
    const high = Math.min(32, low + (end - bit));
    const mask = ((high === 32 ? 0xffffffff : (1 << high) - 1) & (0xffffffff << low)) >>> 0;
    const before = words[index]!;
    const after = value ? before | mask : before & ~mask;
    changed += popcount(before ^ after);
    words[index] = after;
    bit += high - low;
  }
  return changed;
}

/** The first bit of a chunk from `first` on that has the value wanted; -1: none. */
function scan(words: Uint32Array, first: number, wanted: boolean): number {
  let mask = 0xffffffff << (first & 31);
  for (let index = first >>> 5; index < CHUNK_WORDS; index++) {
    const found = (wanted ? words[index]! : ~words[index]!) & mask;
    if (found !== 0) return index * 32 + 31 - Math.clz32(found & -found);
    mask = 0xffffffff;
  }
  return -1;
}

/** `bytes`: part of a buffer of whole words, if it is long. */
function isZero(bytes: Uint8Array): boolean {
  const { buffer, byteOffset, length } = bytes;
  if (byteOffset % 4 !== 0 || length % 4 !== 0) return bytes.every((byte) => byte === 0);
  const words = new Uint32Array(buffer, byteOffset, length / 4);
  for (let i = 0; i < words.length; i++) if (words[i] !== 0) return false;
  return true;
}

function popcount(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  return Math.imul((bits + (bits >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
