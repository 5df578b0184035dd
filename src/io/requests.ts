/**
 * The requests in flight of one iothread: a slot number in struct-of-arrays tables. A transport
 * takes a slot, fills it in, gives it to its BlockBackend, and gets it back by its owner's
 * onRequestDone(). Thread: iothread.
 */
import { assert } from "../util/error.ts";
import type { PayloadMemory } from "./payload-memory.ts";

/** Whoever submits requests: a connection, a queue, a job side. */
export interface RequestOwner {
  /** `result` is 0 or -errno. The slot is the owner's again, to answer and free(). */
  onRequestDone(slot: number, result: number): void;
}

/** Whoever carries them out: a BlockBackend, set by its submit(). */
export interface RequestCarrier {
  /** The operation on a mapped range ended. */
  onIo(slot: number, result: number): void;
  /** The request ended without one. */
  onPosted(slot: number, result: number): void;
}

/** No slot, no buffer. */
export const NONE = -1;

export class RequestTable {
  readonly capacity: number;
  /** Filled by the transport. OP_*. */
  readonly op: Uint8Array;
  /** REQ_* of block/node.ts. */
  readonly flags: Uint8Array;
  readonly offset: Float64Array;
  readonly bytes: Float64Array;
  /** Address of the payload, `bytes` long; meaningless for requests without one. */
  readonly address: Float64Array;
  /**
   * 0, or the payload lies in so many pieces: `address` is that of their struct iovec, in the
   * reactor's memory. Its setter resets it, as `payload`.
   */
  readonly iovCount: Uint16Array;
  /** Where the payload lies; null: in the reactor's memory. */
  readonly payload: (PayloadMemory | null)[];
  readonly owner: (RequestOwner | null)[];
  /** The backend's own. */
  readonly carrier: (RequestCarrier | null)[];
  readonly doneBytes: Float64Array;
  /** When it was submitted: reactor.turnNs. */
  readonly startNs: Float64Array;
  /** How many requests have had the slot, modulo 2^32. */
  readonly serial: Uint32Array;
  /**
   * How many of this thread may put other data where a request found its own. Who goes to a place
   * without a slot, or later than its end, must not while there are any.
   */
  moverCount = 0;
  #free: Int32Array;
  #freeCount: number;
  #waiters: (() => void)[] = [];

  constructor(capacity: number) {
    this.capacity = capacity;
    this.op = new Uint8Array(capacity);
    this.flags = new Uint8Array(capacity);
    this.offset = new Float64Array(capacity);
    this.bytes = new Float64Array(capacity);
    this.address = new Float64Array(capacity);
    this.iovCount = new Uint16Array(capacity);
    this.payload = new Array(capacity).fill(null);
    this.owner = new Array(capacity).fill(null);
    this.carrier = new Array(capacity).fill(null);
    this.doneBytes = new Float64Array(capacity);
    this.startNs = new Float64Array(capacity);
    this.serial = new Uint32Array(capacity);
    this.#free = new Int32Array(capacity);
    for (let i = 0; i < capacity; i++) this.#free[i] = capacity - 1 - i;
    this.#freeCount = capacity;
  }

  get inUse(): number {
    return this.capacity - this.#freeCount;
  }

  /** For who must know whether all of them have ended: see serial. */
  slotsInUse(): number[] {
    const slots: number[] = [];
    const count = this.inUse;
    for (let slot = 0; slots.length < count; slot++) {
      if (this.owner[slot] !== null) slots.push(slot);
    }
    return slots;
  }

  /** A slot, or NONE when all are taken: the transport then stops reading until one is freed. */
  allocate(owner: RequestOwner): number {
    if (this.#freeCount === 0) return NONE;
    const slot = this.#free[--this.#freeCount]!;
    assert(this.owner[slot] === null, "a free slot has no owner");
    this.owner[slot] = owner;
    return slot;
  }

  /**
   * Whether who holds so many slots may take another: at most as many as are left, so that one
   * takes half of them, and many leave something to others, too.
   */
  mayTake(heldCount: number): boolean {
    return heldCount === 0 || heldCount < this.#freeCount;
  }

  /** Calls back once, when a slot has become free; first come, first served. May ask again. */
  onFree(callback: () => void): void {
    this.#waiters.push(callback);
  }

  free(slot: number): void {
    assert(this.owner[slot] !== null, "a slot is freed once");
    this.owner[slot] = null;
    this.carrier[slot] = null;
    this.serial[slot]!++;
    this.#free[this.#freeCount++] = slot;
    while (this.#freeCount > 0 && this.#waiters.length > 0) this.#waiters.shift()!();
  }
}
