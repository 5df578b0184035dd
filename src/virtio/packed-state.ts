/**
 * Which chains of a packed virtqueue are in flight, with their descriptors, which the ring no
 * longer has: in memory of our own, or in a region that outlives the process, from which the next
 * one goes on. What the region says is checked: others can write to it. Thread: iothread.
 * Spec: vhost-user.rst "Inflight I/O tracking"
 */
import {
  DESC_STATE_PACKED_ADDR,
  DESC_STATE_PACKED_COUNTER,
  DESC_STATE_PACKED_ID,
  DESC_STATE_PACKED_INFLIGHT,
  DESC_STATE_PACKED_LAST,
  DESC_STATE_PACKED_LEN,
  DESC_STATE_PACKED_NEXT,
  DESC_STATE_PACKED_NUM,
  DESC_STATE_PACKED_SIZE,
  INFLIGHT_VERSION,
  QUEUE_REGION_PACKED_DESC_NUM,
  QUEUE_REGION_PACKED_FREE_HEAD,
  QUEUE_REGION_PACKED_OLD_FREE_HEAD,
  QUEUE_REGION_PACKED_OLD_USED_IDX,
  QUEUE_REGION_PACKED_OLD_USED_WRAP_COUNTER,
  QUEUE_REGION_PACKED_SIZE,
  QUEUE_REGION_PACKED_USED_IDX,
  QUEUE_REGION_PACKED_USED_WRAP_COUNTER,
  QUEUE_REGION_PACKED_VERSION,
} from "../abi/vhost-user-inflight.ts";
import { orderByCounter } from "./inflight-order.ts";

const FIRST = QUEUE_REGION_PACKED_SIZE;
const DESC = DESC_STATE_PACKED_SIZE;
// Header fields by u16, and an entry's fields by u16 and u32 from its start.
const FREE_HEAD = QUEUE_REGION_PACKED_FREE_HEAD >>> 1;
const OLD_FREE_HEAD = QUEUE_REGION_PACKED_OLD_FREE_HEAD >>> 1;
const USED_IDX = QUEUE_REGION_PACKED_USED_IDX >>> 1;
const OLD_USED_IDX = QUEUE_REGION_PACKED_OLD_USED_IDX >>> 1;
const NEXT_U16 = DESC_STATE_PACKED_NEXT >>> 1;
const LAST_U16 = DESC_STATE_PACKED_LAST >>> 1;
const NUM_U16 = DESC_STATE_PACKED_NUM >>> 1;
const ID_U16 = DESC_STATE_PACKED_ID >>> 1;
const COUNTER_U32 = DESC_STATE_PACKED_COUNTER >>> 2;
const ID_FLAGS_U32 = DESC_STATE_PACKED_ID >>> 2;
const LEN_U32 = DESC_STATE_PACKED_LEN >>> 2;
const ADDR_U32 = DESC_STATE_PACKED_ADDR >>> 2;

export function packedStateBytes(size: number): number {
  return FIRST + size * DESC;
}

export class PackedState {
  readonly size: number;
  readonly #u8: Uint8Array;
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  #counter = 0;
  /** Entries staged since the last publish. */
  #batch: Uint16Array;
  #batchCount = 0;

  /** `region` of packedStateBytes(size). */
  constructor(region: ArrayBuffer, size: number) {
    this.size = size;
    this.#u8 = new Uint8Array(region);
    this.#u16 = new Uint16Array(region, 0, packedStateBytes(size) >>> 1);
    this.#u32 = new Uint32Array(region, 0, packedStateBytes(size) >>> 2);
    this.#batch = new Uint16Array(size);
  }

  get usedIdx(): number {
    return this.#u16[USED_IDX]!;
  }

  get usedWrap(): number {
    return this.#u8[QUEUE_REGION_PACKED_USED_WRAP_COUNTER]! & 1;
  }

  /** Ring descriptors of the chain at `entry`. */
  countOf(entry: number): number {
    return this.#u16[at16(entry) + NUM_U16]!;
  }

  /** Its buffer ID: that of its last descriptor. */
  idOf(entry: number): number {
    const last = this.#u16[at16(entry) + LAST_U16]!;
    return last < this.size ? this.#u16[at16(last) + ID_U16]! : 0;
  }

  /**
   * Takes over what an earlier back-end left in the region: the entries in flight, oldest first,
   * or none from a new region, which begins at `usedIdx` and `usedWrap`. `hasUsed` says whether the
   * ring had a used element there, and rids it of those from there to `end` if it has not. Null:
   * the region is no good.
   */
  recover(
    usedIdx: number,
    usedWrap: number,
    hasUsed: (index: number, wrap: number, end: number) => boolean,
  ): Uint16Array | null {
    const { size } = this;
    const u8 = this.#u8;
    const u16 = this.#u16;
    const version = u16[QUEUE_REGION_PACKED_VERSION >>> 1]!;
    if (version === 0) {
      this.#format(usedIdx, usedWrap);
      return new Uint16Array(0);
    }
    if (version !== INFLIGHT_VERSION) return null;
    if (u16[QUEUE_REGION_PACKED_DESC_NUM >>> 1] !== size) return null;
    const oldUsedIdx = u16[OLD_USED_IDX]!;
    if (oldUsedIdx >= size || this.usedIdx >= size) return null;
    const oldWrap = u8[QUEUE_REGION_PACKED_OLD_USED_WRAP_COUNTER]! & 1;
    const wrap = this.usedWrap;
    const isCommitted = this.usedIdx !== oldUsedIdx || wrap !== oldWrap;
    // It can't go back within a lap: #settle() was interrupted.
    const isSettled = wrap === oldWrap && this.usedIdx < oldUsedIdx;
    if (isSettled || (isCommitted && hasUsed(oldUsedIdx, oldWrap, this.usedIdx))) {
      // The last batch was published, but not settled here.
      this.#settle();
    } else {
      u16[FREE_HEAD] = u16[OLD_FREE_HEAD]!;
      u16[USED_IDX] = oldUsedIdx;
      u8[QUEUE_REGION_PACKED_USED_WRAP_COUNTER] = oldWrap;
    }
    let free = u16[FREE_HEAD]!;
    for (let steps = 0; steps < size && free < size; steps++) {
      u8[at8(free) + DESC_STATE_PACKED_INFLIGHT] = 0;
      free = u16[at16(free) + NEXT_U16]!;
    }
    const order = orderByCounter(size, (entry) => this.#counterOf(entry));
    this.#counter = order.next;
    return order.indexes;
  }

  /** Takes an entry for a chain: append() its descriptors, then begin(). -1: there is none. */
  allocate(): number {
    const entry = this.#u16[OLD_FREE_HEAD]!;
    if (entry >= this.size || this.#u16[FREE_HEAD] !== entry) return -1;
    this.#u16[at16(entry) + NUM_U16] = 0;
    return entry;
  }

  /** One descriptor of the ring. False: the list of free entries is broken. */
  append(entry: number, low: number, high: number, bytes: number, idFlags: number): boolean {
    const u16 = this.#u16;
    const free = u16[FREE_HEAD]!;
    if (free >= this.size) return false;
    const word = at32(free);
    this.#u32[word + ADDR_U32] = low;
    this.#u32[word + ADDR_U32 + 1] = high;
    this.#u32[word + LEN_U32] = bytes;
    this.#u32[word + ID_FLAGS_U32] = idFlags;
    u16[at16(entry) + LAST_U16] = free;
    u16[at16(entry) + NUM_U16]!++;
    u16[FREE_HEAD] = u16[at16(free) + NEXT_U16]!;
    return true;
  }

  begin(entry: number): void {
    const counter = this.#counter++;
    this.#u32[at32(entry) + COUNTER_U32] = counter >>> 0;
    this.#u32[at32(entry) + COUNTER_U32 + 1] = counter / 0x1_0000_0000;
    Atomics.store(this.#u8, at8(entry) + DESC_STATE_PACKED_INFLIGHT, 1);
    this.#u16[OLD_FREE_HEAD] = this.#u16[FREE_HEAD]!;
  }

  /** At most `size` times between two calls of published(). */
  stage(entry: number): void {
    this.#batch[this.#batchCount++] = entry;
  }

  /** Before the driver sees what was staged: the way back is kept until published(). */
  commit(usedIdx: number, usedWrap: number): void {
    const u16 = this.#u16;
    for (let i = 0; i < this.#batchCount; i++) {
      const entry = this.#batch[i]!;
      const last = u16[at16(entry) + LAST_U16]!;
      if (last < this.size) u16[at16(last) + NEXT_U16] = u16[FREE_HEAD]!;
      u16[FREE_HEAD] = entry;
    }
    this.#u8[QUEUE_REGION_PACKED_USED_WRAP_COUNTER] = usedWrap;
    Atomics.store(u16, USED_IDX, usedIdx);
  }

  /** The driver sees it. */
  published(): void {
    for (let i = 0; i < this.#batchCount; i++) {
      this.#u8[at8(this.#batch[i]!) + DESC_STATE_PACKED_INFLIGHT] = 0;
    }
    this.#batchCount = 0;
    this.#settle();
  }

  /** The entry behind `entry` in its chain's list; `size` or more: there is none. */
  nextOf(entry: number): number {
    return this.#u16[at16(entry) + NEXT_U16]!;
  }

  /** One descriptor as append() got it, from `at` of `out` on: low, high, bytes, id and flags. */
  read(entry: number, out: Uint32Array, at: number): void {
    const word = at32(entry);
    out[at] = this.#u32[word + ADDR_U32]!;
    out[at + 1] = this.#u32[word + ADDR_U32 + 1]!;
    out[at + 2] = this.#u32[word + LEN_U32]!;
    out[at + 3] = this.#u32[word + ID_FLAGS_U32]!;
  }

  #format(usedIdx: number, usedWrap: number): void {
    const u8 = this.#u8;
    const u16 = this.#u16;
    u8.fill(0, 0, packedStateBytes(this.size));
    u16[QUEUE_REGION_PACKED_DESC_NUM >>> 1] = this.size;
    for (let entry = 0; entry < this.size; entry++) u16[at16(entry) + NEXT_U16] = entry + 1;
    u16[USED_IDX] = usedIdx;
    u8[QUEUE_REGION_PACKED_USED_WRAP_COUNTER] = usedWrap;
    this.#settle();
    Atomics.store(u16, QUEUE_REGION_PACKED_VERSION >>> 1, INFLIGHT_VERSION);
  }

  #settle(): void {
    const u16 = this.#u16;
    u16[OLD_FREE_HEAD] = u16[FREE_HEAD]!;
    // In this order: recover() relies on it.
    Atomics.store(
      this.#u8,
      QUEUE_REGION_PACKED_OLD_USED_WRAP_COUNTER,
      this.#u8[QUEUE_REGION_PACKED_USED_WRAP_COUNTER]!,
    );
    Atomics.store(u16, OLD_USED_IDX, u16[USED_IDX]!);
  }

  /** -1: not in flight. */
  #counterOf(entry: number): number {
    if (this.#u8[at8(entry) + DESC_STATE_PACKED_INFLIGHT] === 0) return -1;
    const word = at32(entry) + COUNTER_U32;
    return this.#u32[word]! + this.#u32[word + 1]! * 0x1_0000_0000;
  }
}

function at8(entry: number): number {
  return FIRST + entry * DESC;
}

function at16(entry: number): number {
  return (FIRST + entry * DESC) >>> 1;
}

function at32(entry: number): number {
  return (FIRST + entry * DESC) >>> 2;
}
