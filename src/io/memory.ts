/**
 * Native memory that the kernel and JavaScript share: one mapping per thread, known by address,
 * looked at through views that are made once. Positions inside are byte offsets ("at"); the
 * kernel gets `address + at`. Thread: iothread.
 */
import {
  IOVEC_LEN,
  IOVEC_SIZE,
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_FIXED_NOREPLACE,
  MAP_NORESERVE,
  MAP_PRIVATE,
  PROT_READ,
  PROT_WRITE,
} from "../abi/linux.ts";
import type { Linux } from "../runtime/linux.ts";
import { assert, OutportError } from "../util/error.ts";

const LOW_START = 0x1000_0000;
const LOW_END = 0x8000_0000;
const LOW_STEP = 0x0800_0000;

export class Memory {
  /** Of the first byte. Page-aligned. */
  readonly address: number;
  readonly bytes: number;
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly f64: Float64Array;
  readonly view: DataView;
  #linux: Linux;

  /**
   * Maps `bytes` (a multiple of the page size, at most 4 GiB) of zeroes; pages cost when touched.
   */
  constructor(linux: Linux, bytes: number) {
    const address = mapLow(linux, bytes);
    if (address < 0) throw new OutportError("limit", `Cannot map ${bytes} bytes of memory`);
    this.#linux = linux;
    this.address = address;
    this.bytes = bytes;
    // SAFETY: the mapping lives as long as the process or until unmap(), which its owner calls
    // last.
    const buffer = linux.ffi.view(address, bytes);
    this.u8 = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.i32 = new Int32Array(buffer);
    this.f64 = new Float64Array(buffer);
    this.view = new DataView(buffer);
  }

  /** The same for the data plane; null: the host has no room. */
  static map(linux: Linux, bytes: number): Memory | null {
    try {
      return new Memory(linux, bytes);
    } catch (error) {
      if (error instanceof OutportError) return null;
      throw error;
    }
  }

  /** Zeroes memory inside this mapping. */
  zero(address: number, bytes: number): void {
    const at = address - this.address;
    assert(at >= 0 && at + bytes <= this.bytes, "zero() stays inside the mapping");
    this.u8.fill(0, at, at + bytes);
  }

  /** Copies within this mapping. */
  copy(target: number, source: number, bytes: number): void {
    const to = target - this.address;
    const from = source - this.address;
    assert(to >= 0 && to + bytes <= this.bytes, "copy() stays inside the mapping");
    assert(from >= 0 && from + bytes <= this.bytes, "copy() stays inside the mapping");
    this.u8.copyWithin(to, from, from + bytes);
  }

  /**
   * Gives the pages of [at, at + bytes) back to the host; they read as zeroes then. Page-aligned.
   */
  release(at: number, bytes: number): void {
    assert(at >= 0 && at + bytes <= this.bytes, "release() stays inside the mapping");
    this.#linux.madvise(this.address + at, bytes, MADV_DONTNEED);
  }

  /** Writes a u64 as a pair of u32, little-endian. `at` is a multiple of 4. */
  setU64(at: number, value: number): void {
    this.u32[at >>> 2] = value >>> 0;
    this.u32[(at >>> 2) + 1] = (value / 0x1_0000_0000) >>> 0;
  }

  /** The opposite. Inexact from 2^53 on, which is beyond every disk. */
  getU64(at: number): number {
    return this.u32[at >>> 2]! + this.u32[(at >>> 2) + 1]! * 0x1_0000_0000;
  }

  /** Sum of the lengths of `count` struct iovec at this address; 0 when they are elsewhere. */
  iovBytes(iov: number, count: number): number {
    const at = iov - this.address;
    if (at < 0 || at + count * IOVEC_SIZE > this.bytes) return 0;
    let sum = 0;
    for (let i = 0; i < count; i++) sum += this.u32[(at + i * IOVEC_SIZE + IOVEC_LEN) >>> 2]!;
    return sum;
  }

  /** Ends the mapping. No view may be touched and nothing may be in flight afterwards. */
  unmap(): void {
    this.#linux.munmap(this.address, this.bytes);
  }
}

/**
 * Below 2 GiB if there is room: addresses are small integers then, and every use of one is quicker
 * in JavaScript than one that only fits a double. Returns the address or -errno.
 */
function mapLow(linux: Linux, bytes: number): number {
  const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const protection = PROT_READ | PROT_WRITE;
  for (let hint = LOW_START; hint + bytes <= LOW_END; hint += LOW_STEP) {
    const address = linux.mmap(hint, bytes, protection, flags | MAP_FIXED_NOREPLACE, -1, 0);
    if (address === hint) return address;
    // An older kernel takes the flag for nothing and maps somewhere.
    if (address > 0) linux.munmap(address, bytes);
  }
  return linux.mmap(0, bytes, protection, flags, -1, 0);
}
