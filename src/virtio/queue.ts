/**
 * What the two kinds of virtqueue have in common, seen from the device. Thread: iothread.
 *
 * Everything in the driver's memory is read once and checked. What a driver may not do breaks the
 * queue: peek() says BROKEN from then on, and nothing more is taken from it; what is in flight may
 * still complete. Nothing here throws, allocates or loops without bound on what a driver wrote.
 */
import type { Chain } from "./chain.ts";
import type { GuestMemory } from "./guest-memory.ts";

export const EMPTY = 0;
export const FOUND = 1;
export const BROKEN = -1;
export type PeekResult = 0 | 1 | -1;

/** Addresses are the front-end's ("user"). In a packed ring, `avail` and `used` are the areas. */
export interface RingAddresses {
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
  /** Where writes to the used ring are logged, if they are; null while not. */
  readonly usedLog: number | null;
}

export interface VirtqueueOptions {
  readonly memory: GuestMemory;
  readonly size: number;
  readonly addresses: RingAddresses;
  /** VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were negotiated. */
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  /** Of SET_VRING_BASE. */
  readonly base: number;
  /** The queue's region of the area that tracks what is in flight; null: nobody wants it. */
  readonly inflight: ArrayBuffer | null;
}

export interface Virtqueue {
  readonly size: number;
  readonly isBroken: boolean;
  /** Chains taken and not yet completed and published. */
  readonly inFlight: number;
  /** Something is available; no memory barrier, for polling. */
  readonly hasWork: boolean;
  /** Chains that were in flight when an earlier back-end ended: peek() finds them first. */
  readonly resubmitCount: number;
  /** For GET_VRING_BASE, once nothing is in flight. */
  readonly base: number;

  /** Looks at the next available chain, again and again the same one until take(). */
  peek(chain: Chain): PeekResult;
  /** The chain that peek() found is in flight now. */
  take(chain: Chain): void;
  /** Stages a used element: the device wrote `bytes` bytes to the chain. */
  complete(ticket: number, bytes: number): void;
  /** Lets the driver see what is staged. True when it wants a notification. */
  publish(): boolean;
  /** The driver need not notify us. */
  suppressKicks(): void;
  /** The driver shall notify us of what it adds from now on. True: it did already, look again. */
  allowKicks(): boolean;
  /** The memory table changed: finds the ring's memory anew. False, and broken: it is gone. */
  remap(): boolean;
  setUsedLog(address: number | null): void;
  breakDown(): void;
}
