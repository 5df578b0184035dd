/**
 * The payload buffers of one iothread: size classes inside the thread's memory, handed out last in
 * first out so that hot ones stay in the processor's cache, limited, and given back to the host
 * when idle. A class is a stack of free buffers: the lower `cold` of them have no pages (never
 * touched, or given back). Thread: iothread.
 */
import { assert } from "../util/error.ts";
import type { Memory } from "./memory.ts";
import { NONE } from "./requests.ts";

/** Before each payload, its owner's too: a reply header goes right before the data. */
export const HEADROOM_BYTES = 4096;
export const BUFFER_BYTES_MIN = 4096;
export const BUFFER_BYTES_MAX = 1024 * 1024;
const PAGE_BITS = 12;
const PAGE_BYTES = 1 << PAGE_BITS;
const CLASS_COUNT = 1 + Math.log2(BUFFER_BYTES_MAX / BUFFER_BYTES_MIN);

/** A buffer that nobody needed for this long, or twice this long, is given back. */
const TRIM_INTERVAL_NS = 2_000_000_000;
/** At most this much is given back at once: about a quarter of a millisecond of work. */
const TRIM_BYTES_PER_CALL = 4 * 1024 * 1024;
/** Then the requests that wait come first. */
const TRIM_CONTINUE_NS = 5_000_000;

/** What the pool asks of the reactor that it belongs to. */
export interface BufferPoolHooks {
  /** Someone waits and there may be room: call resume() at the end of this turn. */
  resumeSoon(): void;
  /** Call trim() after `delayNs`. Never asked for again before that. */
  trimLater(delayNs: number): void;
}

export interface BufferPoolOptions {
  /** Limit of payload and headroom in use together. */
  readonly bytesMax: number;
  /** Where the pool's part of the memory begins; page-aligned. Default: 0. */
  readonly at?: number;
}

interface Waiter {
  readonly bytes: number;
  readonly callback: () => void;
}

export class BufferPool {
  readonly bytesMax: number;
  #memory: Pick<Memory, "bytes" | "release">;
  #bytesInUse = 0;
  #bytesResident = 0;
  /** Per class: the stack of page numbers of free payloads, with its counters. */
  #stacks: Int32Array[] = [];
  #freeCount = new Int32Array(CLASS_COUNT);
  #coldCount = new Int32Array(CLASS_COUNT);
  /** The lowest freeCount since the last trim(): what lies below was not needed. */
  #lowestCount = new Int32Array(CLASS_COUNT);
  /** By page number of the payload: class + 1 while in use, otherwise 0. */
  #classInUse: Uint8Array;
  #waiters: Waiter[] = [];
  /** Allocations that the waiter being resumed may make before those behind it. */
  #granted = 0;
  #resumeAsked = false;
  #trimAsked = false;
  #hooks: BufferPoolHooks = { resumeSoon: () => {}, trimLater: () => {} };

  constructor(memory: Pick<Memory, "bytes" | "release">, options: BufferPoolOptions) {
    const { bytesMax, at = 0 } = options;
    assert(at % PAGE_BYTES === 0, "buffers are page-aligned");
    assert(bytesMax >= strideOf(CLASS_COUNT - 1), "the pool holds one buffer of each class");
    assert(at + BufferPool.reservedBytes(bytesMax) <= memory.bytes, "the memory holds the pool");
    this.#memory = memory;
    this.bytesMax = bytesMax;
    let page = at >>> PAGE_BITS;
    for (let index = 0; index < CLASS_COUNT; index++) {
      const stridePages = strideOf(index) >>> PAGE_BITS;
      const capacity = Math.floor(bytesMax / strideOf(index));
      const stack = new Int32Array(capacity);
      // The lowest is on top: a light load touches the same few pages.
      for (let i = capacity - 1; i >= 0; i--, page += stridePages) stack[i] = page + 1;
      this.#stacks.push(stack);
      this.#freeCount[index] = capacity;
      this.#coldCount[index] = capacity;
      this.#lowestCount[index] = capacity;
    }
    this.#classInUse = new Uint8Array(page);
  }

  /** Address space that a pool with this limit needs; every class could take the whole limit. */
  static reservedBytes(bytesMax: number): number {
    let bytes = 0;
    for (let index = 0; index < CLASS_COUNT; index++) {
      bytes += Math.floor(bytesMax / strideOf(index)) * strideOf(index);
    }
    return bytes;
  }

  /** Payload and headroom of what is handed out. */
  get bytesInUse(): number {
    return this.#bytesInUse;
  }

  /** The same with the free buffers that still have their pages. Never above bytesMax. */
  get bytesResident(): number {
    return this.#bytesResident;
  }

  connect(hooks: BufferPoolHooks): void {
    this.#hooks = hooks;
  }

  /**
   * Position of a page-aligned payload of at least `bytes` (1 to BUFFER_BYTES_MAX), with
   * HEADROOM_BYTES before it; the contents are anything. NONE when the limit is reached or others
   * wait: then onAvailable().
   */
  allocate(bytes: number): number {
    assert(bytes > 0 && bytes <= BUFFER_BYTES_MAX, "a buffer's size has a limit");
    const index = classOf(bytes);
    const stride = strideOf(index);
    if (this.#bytesInUse + stride > this.bytesMax) return NONE;
    if (this.#waiters.length > 0) {
      if (this.#granted === 0) return NONE;
      this.#granted--;
    }
    const count = --this.#freeCount[index]!;
    assert(count >= 0, "a class holds as much as the limit allows");
    const page = this.#stacks[index]![count]!;
    this.#classInUse[page] = index + 1;
    this.#bytesInUse += stride;
    if (count < this.#lowestCount[index]!) this.#sink(index, count, stride);
    return page * PAGE_BYTES;
  }

  /** Gives the payload at `at` back; nothing may be in flight on it. */
  free(at: number): void {
    const page = at / PAGE_BYTES;
    const index = this.#classInUse[page]! - 1;
    assert(index >= 0, "a buffer is freed once");
    this.#classInUse[page] = 0;
    this.#stacks[index]![this.#freeCount[index]!++] = page;
    this.#bytesInUse -= strideOf(index);
    if (!this.#trimAsked) {
      this.#trimAsked = true;
      this.#hooks.trimLater(TRIM_INTERVAL_NS);
    }
    if (this.#waiters.length > 0) this.#askToResume();
  }

  /** Bytes of the payload at `at`: its class, at least what was asked for. */
  bytesOf(at: number): number {
    const index = this.#classInUse[at / PAGE_BYTES]! - 1;
    assert(index >= 0, "the buffer is in use");
    return BUFFER_BYTES_MIN << index;
  }

  /**
   * Calls back once, when allocate(bytes) will succeed; first come, first served, whatever the
   * sizes. The callback may make that one allocation ahead of who waits behind it, or none.
   */
  onAvailable(bytes: number, callback: () => void): void {
    this.#waiters.push({ bytes, callback });
    this.#askToResume();
  }

  /** Resumes who waits, as far as there is room. */
  resume(): void {
    this.#resumeAsked = false;
    // Who asks again meanwhile has its turn in the next one.
    for (let turns = this.#waiters.length; turns > 0; turns--) {
      const waiter = this.#waiters[0]!;
      const stride = strideOf(classOf(waiter.bytes));
      if (this.#bytesInUse + stride > this.bytesMax) return;
      this.#granted = 1;
      this.#waiters.shift();
      waiter.callback();
      this.#granted = 0;
    }
  }

  /** Gives back a bounded amount of what was not needed since the last call. */
  trim(): void {
    this.#trimAsked = false;
    let released = 0;
    for (let index = CLASS_COUNT - 1; index >= 0; index--) {
      while (this.#coldCount[index]! < this.#lowestCount[index]!) {
        if (released >= TRIM_BYTES_PER_CALL) {
          this.#askToTrim(TRIM_CONTINUE_NS);
          return;
        }
        released += this.#releaseOne(index);
      }
    }
    this.#lowestCount.set(this.#freeCount);
    if (this.#bytesResident > this.#bytesInUse) this.#askToTrim(TRIM_INTERVAL_NS);
  }

  #askToTrim(delayNs: number): void {
    this.#trimAsked = true;
    this.#hooks.trimLater(delayNs);
  }

  #askToResume(): void {
    if (this.#resumeAsked) return;
    this.#resumeAsked = true;
    this.#hooks.resumeSoon();
  }

  /** More of a class is in use than since the last trim(); perhaps a buffer without pages. */
  #sink(index: number, count: number, stride: number): void {
    this.#lowestCount[index] = count;
    if (count >= this.#coldCount[index]!) return;
    this.#coldCount[index] = count;
    this.#bytesResident += stride;
    // The load moved to another size: what the old one left makes room.
    for (let other = CLASS_COUNT - 1; other >= 0; other--) {
      while (
        this.#bytesResident > this.bytesMax &&
        this.#coldCount[other]! < this.#freeCount[other]!
      ) {
        this.#releaseOne(other);
      }
    }
    assert(this.#bytesResident <= this.bytesMax, "what is resident has a limit");
  }

  /** The least recently used free buffer of a class that has pages. */
  #releaseOne(index: number): number {
    const stride = strideOf(index);
    const cold = this.#coldCount[index]!++;
    const payload = this.#stacks[index]![cold]! * PAGE_BYTES;
    this.#memory.release(payload - HEADROOM_BYTES, stride);
    this.#lowestCount[index] = Math.max(this.#lowestCount[index]!, cold + 1);
    this.#bytesResident -= stride;
    return stride;
  }
}

function classOf(bytes: number): number {
  return 32 - Math.clz32((bytes - 1) >>> PAGE_BITS);
}

function strideOf(index: number): number {
  return HEADROOM_BYTES + (BUFFER_BYTES_MIN << index);
}
