/**
 * Which chains of a split virtqueue are in flight: in memory of our own, or in a region that
 * outlives the process, from which the next one goes on. Thread: iothread.
 * Spec: vhost-user.rst "Inflight I/O tracking"
 */
import {
  DESC_STATE_SPLIT_COUNTER,
  DESC_STATE_SPLIT_INFLIGHT,
  DESC_STATE_SPLIT_NEXT,
  DESC_STATE_SPLIT_SIZE,
  INFLIGHT_VERSION,
  QUEUE_REGION_SPLIT_DESC_NUM,
  QUEUE_REGION_SPLIT_LAST_BATCH_HEAD,
  QUEUE_REGION_SPLIT_SIZE,
  QUEUE_REGION_SPLIT_USED_IDX,
  QUEUE_REGION_SPLIT_VERSION,
} from "../abi/vhost-user-inflight.ts";
import { orderByCounter } from "./inflight-order.ts";

const FIRST = QUEUE_REGION_SPLIT_SIZE;
const DESC = DESC_STATE_SPLIT_SIZE;

export function splitStateBytes(size: number): number {
  return FIRST + size * DESC;
}

export class SplitState {
  readonly size: number;
  #u8: Uint8Array;
  #u16: Uint16Array;
  #u32: Uint32Array;
  #counter = 0;
  /** Staged since the last publish. */
  #batch: Uint16Array;
  #batchCount = 0;

  /** `region` of splitStateBytes(size). */
  constructor(region: ArrayBuffer, size: number) {
    this.size = size;
    this.#u8 = new Uint8Array(region);
    this.#u16 = new Uint16Array(region, 0, splitStateBytes(size) >>> 1);
    this.#u32 = new Uint32Array(region, 0, splitStateBytes(size) >>> 2);
    this.#batch = new Uint16Array(size);
  }

  /**
   * Takes over what an earlier back-end left in the region: the heads in flight, oldest first.
   * `usedIdx` is that of the ring. "new": nothing was in it, now it is ours. Null: it is no good.
   */
  recover(usedIdx: number): Uint16Array | "new" | null {
    const u16 = this.#u16;
    const version = u16[QUEUE_REGION_SPLIT_VERSION >>> 1]!;
    if (version === 0) return this.#format(usedIdx);
    if (version !== INFLIGHT_VERSION) return null;
    if (u16[QUEUE_REGION_SPLIT_DESC_NUM >>> 1] !== this.size) return null;
    // The last batch was published, but perhaps not taken out of here.
    const published = (usedIdx - u16[QUEUE_REGION_SPLIT_USED_IDX >>> 1]!) & 0xffff;
    // The driver began anew, with another ring.
    if (published > this.size) return this.#format(usedIdx);
    let head = u16[QUEUE_REGION_SPLIT_LAST_BATCH_HEAD >>> 1]!;
    for (let i = 0; i < published; i++) {
      if (head >= this.size) return null;
      this.#u8[FIRST + head * DESC + DESC_STATE_SPLIT_INFLIGHT] = 0;
      head = u16[(FIRST + head * DESC + DESC_STATE_SPLIT_NEXT) >>> 1]!;
    }
    Atomics.store(u16, QUEUE_REGION_SPLIT_USED_IDX >>> 1, usedIdx);
    const order = orderByCounter(this.size, (index) => this.#counterOf(index));
    this.#counter = order.next;
    return order.indexes;
  }

  isInFlight(head: number): boolean {
    return this.#u8[FIRST + head * DESC + DESC_STATE_SPLIT_INFLIGHT] !== 0;
  }

  begin(head: number): void {
    const at = FIRST + head * DESC;
    const counter = this.#counter++;
    this.#u32[(at + DESC_STATE_SPLIT_COUNTER) >>> 2] = counter >>> 0;
    this.#u32[((at + DESC_STATE_SPLIT_COUNTER) >>> 2) + 1] = counter / 0x1_0000_0000;
    // The next process sees the counter, too, if it sees this.
    Atomics.store(this.#u8, at + DESC_STATE_SPLIT_INFLIGHT, 1);
  }

  /** At most `size` times between two calls of published(). */
  stage(head: number): void {
    const u16 = this.#u16;
    const last = QUEUE_REGION_SPLIT_LAST_BATCH_HEAD >>> 1;
    u16[(FIRST + head * DESC + DESC_STATE_SPLIT_NEXT) >>> 1] = u16[last]!;
    Atomics.store(u16, last, head);
    this.#batch[this.#batchCount++] = head;
  }

  /** What was staged is in the used ring, whose index is `usedIdx` now. */
  published(usedIdx: number): void {
    for (let i = 0; i < this.#batchCount; i++) {
      this.#u8[FIRST + this.#batch[i]! * DESC + DESC_STATE_SPLIT_INFLIGHT] = 0;
    }
    this.#batchCount = 0;
    Atomics.store(this.#u16, QUEUE_REGION_SPLIT_USED_IDX >>> 1, usedIdx);
  }

  #format(usedIdx: number): "new" {
    const u16 = this.#u16;
    this.#u8.fill(0, 0, splitStateBytes(this.size));
    u16[QUEUE_REGION_SPLIT_DESC_NUM >>> 1] = this.size;
    u16[QUEUE_REGION_SPLIT_USED_IDX >>> 1] = usedIdx;
    Atomics.store(u16, QUEUE_REGION_SPLIT_VERSION >>> 1, INFLIGHT_VERSION);
    return "new";
  }

  /** -1: not in flight. */
  #counterOf(head: number): number {
    const at = FIRST + head * DESC;
    if (this.#u8[at + DESC_STATE_SPLIT_INFLIGHT] === 0) return -1;
    const word = (at + DESC_STATE_SPLIT_COUNTER) >>> 2;
    return this.#u32[word]! + this.#u32[word + 1]! * 0x1_0000_0000;
  }
}
