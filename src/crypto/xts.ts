/**
 * AES-XTS over sectors of 512 bytes, each with its number as the tweak ("plain64"): made of the
 * runtime's AES in ECB mode, one call for many sectors. Pure. Thread: any.
 * Spec: IEEE 1619-2007 "5. XTS-AES transform"
 */
import { type Cipheriv, createCipheriv, createDecipheriv, type Decipheriv } from "node:crypto";
import { assert } from "../util/error.ts";

export const SECTOR_BYTES = 512;
const SECTOR_U32 = SECTOR_BYTES / 4;
const BLOCK_BYTES = 16;
const BLOCK_U32 = BLOCK_BYTES / 4;
/** Sectors at a time: fits into the processor's cache, and calls don't count any more. */
const BATCH_BYTES = 64 * 1024;

// Of this thread: nothing suspends while they are in use.
const words = new Int32Array(BATCH_BYTES / 4);
const wordBytes = new Uint8Array(words.buffer);
const tweaks = new Int32Array(BATCH_BYTES / 4);
const sectorNumbers = new Uint32Array((BATCH_BYTES / SECTOR_BYTES) * BLOCK_U32);
const sectorBytes = new Uint8Array(sectorNumbers.buffer);

export class XtsCipher {
  #encrypt: Cipheriv;
  #decrypt: Decipheriv;
  #tweak: Cipheriv;

  /** `key`: two AES keys of 16 or 32 bytes each; a copy is kept out of reach. */
  constructor(key: Uint8Array) {
    assert(key.length === 32 || key.length === 64, "a key of AES-128 or AES-256, twice");
    const name = `aes-${key.length * 4}-ecb`;
    const dataKey = key.subarray(0, key.length / 2);
    const tweakKey = key.subarray(key.length / 2);
    this.#encrypt = createCipheriv(name, dataKey, null).setAutoPadding(false);
    this.#decrypt = createDecipheriv(name, dataKey, null).setAutoPadding(false);
    this.#tweak = createCipheriv(name, tweakKey, null).setAutoPadding(false);
  }

  /**
   * `source` and `target`: whole sectors, as many; they may be the same memory. `sector`: number of
   * the first one.
   */
  encrypt(source: Uint8Array, target: Uint8Array, sector: number): void {
    this.#transform(this.#encrypt, source, target, sector);
  }

  /** The opposite. */
  decrypt(source: Uint8Array, target: Uint8Array, sector: number): void {
    this.#transform(this.#decrypt, source, target, sector);
  }

  #transform(
    cipher: Cipheriv | Decipheriv,
    source: Uint8Array,
    target: Uint8Array,
    sector: number,
  ): void {
    assert(source.length % SECTOR_BYTES === 0, "sectors are encrypted as a whole");
    assert(target.length === source.length, "it is as long as before");
    for (let done = 0; done < source.length; done += BATCH_BYTES) {
      const bytes = Math.min(BATCH_BYTES, source.length - done);
      const first = this.#firstTweaks(sector + done / SECTOR_BYTES, bytes / SECTOR_BYTES);
      wordBytes.set(source.subarray(done, done + bytes));
      addTweaks(first, words, tweaks, bytes / SECTOR_BYTES);
      const result = wordsOf(cipher.update(wordBytes.subarray(0, bytes)), bytes);
      for (let i = 0; i < bytes / 4; i++) words[i] = result[i]! ^ tweaks[i]!;
      target.set(wordBytes.subarray(0, bytes), done);
    }
  }

  /** Of the first block of each sector: [a, b, c, d] × count, little-endian. */
  #firstTweaks(sector: number, count: number): Int32Array {
    for (let i = 0; i < count; i++) {
      sectorNumbers[i * BLOCK_U32] = sector + i;
      sectorNumbers[i * BLOCK_U32 + 1] = (sector + i) / 0x1_0000_0000;
    }
    const bytes = count * BLOCK_BYTES;
    return wordsOf(this.#tweak.update(sectorBytes.subarray(0, bytes)), bytes);
  }
}

/** XORs the tweak of each block into `data`, and keeps it in `all`. */
function addTweaks(first: Int32Array, data: Int32Array, all: Int32Array, count: number): void {
  let at = 0;
  for (let i = 0; i < count; i++) {
    let a = first[i * BLOCK_U32]!;
    let b = first[i * BLOCK_U32 + 1]!;
    let c = first[i * BLOCK_U32 + 2]!;
    let d = first[i * BLOCK_U32 + 3]!;
    for (const end = at + SECTOR_U32; at < end; at += BLOCK_U32) {
      all[at] = a;
      all[at + 1] = b;
      all[at + 2] = c;
      all[at + 3] = d;
      data[at]! ^= a;
      data[at + 1]! ^= b;
      data[at + 2]! ^= c;
      data[at + 3]! ^= d;
      // Times x in GF(2^128).
      const carry = (d >> 31) & 0x87;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
  }
}

function wordsOf(result: Uint8Array<ArrayBufferLike>, bytes: number): Int32Array {
  assert(result.length === bytes, "ECB without padding keeps nothing back");
  if (result.byteOffset % 4 === 0) {
    return new Int32Array(result.buffer, result.byteOffset, bytes / 4);
  }
  return new Int32Array(result.slice().buffer, 0, bytes / 4);
}
