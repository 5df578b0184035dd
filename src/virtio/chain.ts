/**
 * One descriptor chain, checked and translated: what a virtqueue's peek() found. Thread: iothread.
 * Spec: VIRTIO 1.3 §2.7.4 "Message Framing", §2.7.5.3 "Indirect Descriptors"
 */
import { VIRTQ_DESC_SIZE } from "../abi/virtio-ring.ts";
import { assert } from "../util/error.ts";
import { type GuestMemory, WINDOW_OVERLAP_BYTES } from "./guest-memory.ts";

/** As many as one readv() or writev() takes. The largest seg_max plus header and status fit. */
export const CHAIN_PIECES_MAX = 1024;
/** A driver keeps to this; a descriptor's length is a u32. */
const CHAIN_BYTES_MAX = 2 ** 32;
/** Guest addresses are below 2^52: nothing else is mapped anywhere, and sums stay integers. */
const ADDRESS_HIGH_MAX = 2 ** 20;

export class Chain {
  /** Names the chain among those in flight, for complete(). */
  ticket = 0;
  /** Pieces, those that the device may only read first. Each lies in one region. */
  count = 0;
  readableCount = 0;
  readonly guestAddress = new Float64Array(CHAIN_PIECES_MAX);
  readonly hostAddress = new Float64Array(CHAIN_PIECES_MAX);
  readonly bytes = new Float64Array(CHAIN_PIECES_MAX);
  readableBytes = 0;
  writableBytes = 0;

  clear(): void {
    this.count = 0;
    this.readableCount = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
  }

  /**
   * Adds what one descriptor names. False: it may not be: no bytes, not the guest's memory, to be
   * read after some to be written, too many, too long.
   */
  add(
    memory: GuestMemory,
    addressLow: number,
    addressHigh: number,
    bytes: number,
    isWritable: boolean,
  ): boolean {
    if (bytes === 0 || addressHigh >= ADDRESS_HIGH_MAX) return false;
    if (isWritable) {
      this.writableBytes += bytes;
    } else {
      if (this.writableBytes > 0) return false;
      this.readableBytes += bytes;
    }
    if (this.readableBytes + this.writableBytes > CHAIN_BYTES_MAX) return false;
    let address = addressHigh * 0x1_0000_0000 + addressLow;
    for (let rest = bytes; rest > 0; ) {
      const region = memory.regionAt(address);
      if (region === null || this.count === CHAIN_PIECES_MAX) return false;
      const part = Math.min(rest, region.guestEnd - address);
      const at = this.count++;
      this.guestAddress[at] = address;
      this.hostAddress[at] = region.hostAddress + (address - region.guestAddress);
      this.bytes[at] = part;
      if (!isWritable) this.readableCount++;
      address += part;
      rest -= part;
    }
    return true;
  }
}

/** An indirect table in view: u32 words of `count` descriptors from `base` on. */
export class IndirectTable {
  words: Uint32Array = new Uint32Array(0);
  base = 0;
  count = 0;
  readonly #copy = new Uint32Array((CHAIN_PIECES_MAX * VIRTQ_DESC_SIZE) / 4);

  /** False: it may not be. */
  open(memory: GuestMemory, addressLow: number, addressHigh: number, bytes: number): boolean {
    if (bytes === 0 || bytes % VIRTQ_DESC_SIZE !== 0) return false;
    if (addressHigh >= ADDRESS_HIGH_MAX || bytes > WINDOW_OVERLAP_BYTES) return false;
    const address = addressHigh * 0x1_0000_0000 + addressLow;
    this.count = bytes / VIRTQ_DESC_SIZE;
    if (memory.find(address, bytes) && memory.at % 4 === 0) {
      this.words = memory.window.u32;
      this.base = memory.at >>> 2;
      return true;
    }
    // Nowhere aligned, or across regions.
    if (this.count > CHAIN_PIECES_MAX) return false;
    this.words = this.#copy;
    this.base = 0;
    return memory.copyOut(address, bytes, new Uint8Array(this.#copy.buffer, 0, bytes));
  }
}

/** Rings and tables are read as they lie in memory. */
assert(new Uint8Array(Uint32Array.of(1).buffer)[0] === 1, "the machine is little-endian");
