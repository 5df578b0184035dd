/**
 * Reads one virtio-blk request out of a descriptor chain, whatever its layout: header, payload,
 * place of the status byte. Everything is read once. Thread: iothread.
 * Spec: VIRTIO 1.3 §5.2.6 "Device Operation"
 */

import { IOVEC_BASE, IOVEC_LEN, IOVEC_SIZE } from "../abi/linux.ts";
import {
  VIRTIO_BLK_DISCARD_WRITE_ZEROES_FLAGS,
  VIRTIO_BLK_DISCARD_WRITE_ZEROES_NUM_SECTORS,
  VIRTIO_BLK_DISCARD_WRITE_ZEROES_SECTOR,
  VIRTIO_BLK_DISCARD_WRITE_ZEROES_SIZE,
  VIRTIO_BLK_OUTHDR_SECTOR,
  VIRTIO_BLK_OUTHDR_SIZE,
  VIRTIO_BLK_OUTHDR_TYPE,
  VIRTIO_BLK_SECTOR_BYTES,
} from "../abi/virtio-blk.ts";
import type { Memory } from "../io/memory.ts";
import type { Chain } from "./chain.ts";
import type { GuestMemory, Window } from "./guest-memory.ts";

/** A sector from here on is beyond every disk, and its offset no safe integer. */
const SECTOR_HIGH_MAX = 2 ** 12;
const TYPE_U32 = VIRTIO_BLK_OUTHDR_TYPE / 4;
const SECTOR_U32 = VIRTIO_BLK_OUTHDR_SECTOR / 4;
const SEGMENT_SECTOR_U32 = VIRTIO_BLK_DISCARD_WRITE_ZEROES_SECTOR / 4;
const SEGMENT_NUM_SECTORS_U32 = VIRTIO_BLK_DISCARD_WRITE_ZEROES_NUM_SECTORS / 4;
const SEGMENT_FLAGS_U32 = VIRTIO_BLK_DISCARD_WRITE_ZEROES_FLAGS / 4;
/** What is no offset of any disk. */
export const NOWHERE = -1;

export class BlkRequest {
  type = 0;
  /** Of the sector, in bytes; NOWHERE when no disk is as long. */
  offset = 0;
  /** Of DISCARD and WRITE_ZEROES, by readSegment(). */
  segmentBytes = 0;
  segmentFlags = 0;
  /** The payload: pieces [first, end) of the chain, less the bytes skipped and cut off. */
  first = 0;
  end = 0;
  firstSkipped = 0;
  lastCut = 0;
  /** The status byte: null when there is no room for one. */
  statusWindow: Window | null = null;
  statusAt = 0;
  statusGuestAddress = 0;
  #memory: GuestMemory;
  #scratch = new Uint32Array(VIRTIO_BLK_OUTHDR_SIZE / 4);
  #at = 0;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** False: the chain has no header. */
  readHeader(chain: Chain): boolean {
    const words = this.#words(chain, 0);
    if (words === null) return false;
    const at = this.#at;
    this.type = words[at + TYPE_U32]!;
    this.offset = offsetOf(words[at + SECTOR_U32]!, words[at + SECTOR_U32 + 1]!);
    return true;
  }

  /** One segment behind the header. False: it is not whole. */
  readSegment(chain: Chain): boolean {
    const words = this.#words(chain, VIRTIO_BLK_OUTHDR_SIZE);
    if (words === null) return false;
    const at = this.#at;
    this.offset = offsetOf(words[at + SEGMENT_SECTOR_U32]!, words[at + SEGMENT_SECTOR_U32 + 1]!);
    this.segmentBytes = words[at + SEGMENT_NUM_SECTORS_U32]! * VIRTIO_BLK_SECTOR_BYTES;
    this.segmentFlags = words[at + SEGMENT_FLAGS_U32]!;
    return true;
  }

  /** Finds the status byte, the last one that the device may write. */
  findStatus(chain: Chain): void {
    this.statusWindow = null;
    if (chain.writableBytes === 0) return;
    const last = chain.count - 1;
    const address = chain.guestAddress[last]! + chain.bytes[last]! - 1;
    if (!this.#memory.find(address, 1)) return;
    this.statusWindow = this.#memory.window;
    this.statusAt = this.#memory.at;
    this.statusGuestAddress = address;
  }

  /** The payload is what the device may write, but for the status byte. Returns its length. */
  findDataIn(chain: Chain): number {
    this.first = chain.readableCount;
    this.firstSkipped = 0;
    this.end = chain.count;
    this.lastCut = 1;
    if (chain.bytes[chain.count - 1] === 1) {
      this.end--;
      this.lastCut = 0;
    }
    return chain.writableBytes - 1;
  }

  /** The payload is what the device may read, but for the header. Returns its length. */
  findDataOut(chain: Chain): number {
    let first = 0;
    let skipped = VIRTIO_BLK_OUTHDR_SIZE;
    while (first < chain.readableCount && skipped >= chain.bytes[first]!) {
      skipped -= chain.bytes[first]!;
      first++;
    }
    this.first = first;
    this.firstSkipped = skipped;
    this.end = chain.readableCount;
    this.lastCut = 0;
    return chain.readableBytes - VIRTIO_BLK_OUTHDR_SIZE;
  }

  /** Of piece `index` of the payload. */
  addressOf(chain: Chain, index: number): number {
    return chain.hostAddress[index]! + (index === this.first ? this.firstSkipped : 0);
  }

  bytesOf(chain: Chain, index: number): number {
    const skipped = index === this.first ? this.firstSkipped : 0;
    const cut = index === this.end - 1 ? this.lastCut : 0;
    return chain.bytes[index]! - skipped - cut;
  }

  /** Writes the payload's pieces as struct iovec to position `at`. */
  writeIovec(chain: Chain, memory: Memory, at: number): void {
    for (let index = this.first; index < this.end; index++) {
      const target = at + (index - this.first) * IOVEC_SIZE;
      memory.setU64(target + IOVEC_BASE, this.addressOf(chain, index));
      memory.setU64(target + IOVEC_LEN, this.bytesOf(chain, index));
    }
  }

  /** Writes bytes to the front of the payload, as far as it reaches. */
  writeData(chain: Chain, bytes: Uint8Array): void {
    let done = 0;
    for (let index = this.first; index < this.end && done < bytes.length; index++) {
      const skipped = index === this.first ? this.firstSkipped : 0;
      const part = Math.min(this.bytesOf(chain, index), bytes.length - done);
      const address = chain.guestAddress[index]! + skipped;
      if (!this.#memory.find(address, part)) return;
      this.#memory.window.u8.set(bytes.subarray(done, done + part), this.#memory.at);
      this.#memory.log?.mark(address, part);
      done += part;
    }
  }

  /** The 16 readable bytes of the chain from `start` on: words, from #at on. Null: too few. */
  #words(chain: Chain, start: number): Uint32Array | null {
    if (chain.readableBytes < start + VIRTIO_BLK_OUTHDR_SIZE) return null;
    let piece = 0;
    let skipped = start;
    while (skipped >= chain.bytes[piece]!) skipped -= chain.bytes[piece++]!;
    const memory = this.#memory;
    if (chain.bytes[piece]! - skipped >= VIRTIO_BLK_OUTHDR_SIZE) {
      if (!memory.find(chain.guestAddress[piece]! + skipped, VIRTIO_BLK_OUTHDR_SIZE)) return null;
      if (memory.at % 4 === 0) {
        this.#at = memory.at >>> 2;
        return memory.window.u32;
      }
    }
    // In several pieces, or nowhere aligned.
    for (let done = 0; done < VIRTIO_BLK_OUTHDR_SIZE; piece++) {
      const part = Math.min(chain.bytes[piece]! - skipped, VIRTIO_BLK_OUTHDR_SIZE - done);
      const target = new Uint8Array(this.#scratch.buffer, done, part);
      if (!memory.copyOut(chain.guestAddress[piece]! + skipped, part, target)) return null;
      done += part;
      skipped = 0;
    }
    this.#at = 0;
    return this.#scratch;
  }
}

/** Of a sector, in bytes. */
function offsetOf(sectorLow: number, sectorHigh: number): number {
  if (sectorHigh >= SECTOR_HIGH_MAX) return NOWHERE;
  return (sectorHigh * 0x1_0000_0000 + sectorLow) * VIRTIO_BLK_SECTOR_BYTES;
}

/** A segment is as long as a header. */
export const SEGMENT_BYTES = VIRTIO_BLK_DISCARD_WRITE_ZEROES_SIZE;
