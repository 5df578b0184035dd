/**
 * A split virtqueue, seen from the device. Thread: iothread.
 * Spec: VIRTIO 1.3 §2.7 "Split Virtqueues"
 */
import {
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_AVAIL_FLAGS_U16,
  VIRTQ_AVAIL_IDX_U16,
  VIRTQ_AVAIL_RING_U16,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_DESC_FLAGS_NEXT_U32,
  VIRTQ_DESC_LEN_U32,
  VIRTQ_DESC_SIZE,
  VIRTQ_DESC_U32,
  VIRTQ_SIZE_MAX,
  VIRTQ_USED_ELEM_U32,
  VIRTQ_USED_F_NO_NOTIFY,
  VIRTQ_USED_FLAGS_U16,
  VIRTQ_USED_IDX_U16,
  VIRTQ_USED_RING_U32,
  virtqAvailBytes,
  virtqUsedBytes,
} from "../abi/virtio-ring.ts";
import { EFAULT, EINVAL } from "../runtime/errno.ts";
import { assert } from "../util/error.ts";
import { type Chain, IndirectTable } from "./chain.ts";
import type { GuestMemory } from "./guest-memory.ts";
import {
  BROKEN,
  EMPTY,
  FOUND,
  type PeekResult,
  type RingAddresses,
  type Virtqueue,
  type VirtqueueOptions,
} from "./queue.ts";
import { SplitState, splitStateBytes } from "./split-state.ts";

const NO_WORDS = new Uint32Array(0);
const NO_HALVES = new Uint16Array(0);

export class SplitRing implements Virtqueue {
  readonly size: number;
  #mask: number;
  #memory: GuestMemory;
  #addresses: RingAddresses;
  #usedLog: number | null;
  #eventIdx: boolean;
  #indirect: boolean;
  #state: SplitState;
  #table = new IndirectTable();
  #broken = false;
  // SAFETY: views of the guest's memory. remap() makes them anew, or takes them away, before what
  // they show is unmapped.
  #desc = NO_WORDS;
  #avail = NO_HALVES;
  #used16 = NO_HALVES;
  #used32 = NO_WORDS;
  #lastAvail = 0;
  /** The driver's index when it was last looked at. */
  #availIdx = 0;
  #usedIdx = 0;
  #staged = 0;
  #inFlight = 0;
  #resubmit: Uint16Array = NO_HALVES;
  #resubmitAt = 0;
  /** The driver may wait for what an earlier back-end published. */
  #mustNotify = true;

  private constructor(options: VirtqueueOptions) {
    const { size } = options;
    this.size = size;
    this.#mask = size - 1;
    this.#memory = options.memory;
    this.#addresses = options.addresses;
    this.#usedLog = options.addresses.usedLog;
    this.#eventIdx = options.eventIdx;
    this.#indirect = options.indirect;
    this.#state = new SplitState(options.inflight ?? new ArrayBuffer(splitStateBytes(size)), size);
  }

  /** Returns the ring, or -errno: a size that is none, memory that is not there. */
  static open(options: VirtqueueOptions): SplitRing | number {
    const { size, base } = options;
    if (size < 1 || size > VIRTQ_SIZE_MAX || (size & (size - 1)) !== 0) return -EINVAL;
    const ring = new SplitRing(options);
    if (!ring.remap()) return -EFAULT;
    ring.#usedIdx = Atomics.load(ring.#used16, VIRTQ_USED_IDX_U16);
    const resubmit = ring.#state.recover(ring.#usedIdx);
    if (resubmit === null) return -EINVAL;
    if (resubmit === "new") {
      ring.#lastAvail = base & 0xffff;
    } else {
      // The front-end can't know how far an earlier back-end has come.
      ring.#resubmit = resubmit;
      ring.#lastAvail = (ring.#usedIdx + resubmit.length) & 0xffff;
    }
    ring.#availIdx = ring.#lastAvail;
    return ring;
  }

  get isBroken(): boolean {
    return this.#broken;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get resubmitCount(): number {
    return this.#resubmit.length - this.#resubmitAt;
  }

  get hasWork(): boolean {
    if (this.#broken) return false;
    if (this.#resubmitAt < this.#resubmit.length) return true;
    return this.#avail[VIRTQ_AVAIL_IDX_U16] !== this.#lastAvail;
  }

  get base(): number {
    return this.#lastAvail;
  }

  peek(chain: Chain): PeekResult {
    if (this.#broken) return BROKEN;
    let head: number;
    if (this.#resubmitAt < this.#resubmit.length) {
      head = this.#resubmit[this.#resubmitAt]!;
    } else {
      if (this.#lastAvail === this.#availIdx) {
        // The driver released the entries before this index.
        this.#availIdx = Atomics.load(this.#avail, VIRTQ_AVAIL_IDX_U16);
        const count = (this.#availIdx - this.#lastAvail) & 0xffff;
        if (count === 0) return EMPTY;
        if (count > this.size) return this.#break();
      }
      if (this.#inFlight >= this.size) return this.#break();
      head = this.#avail[VIRTQ_AVAIL_RING_U16 + (this.#lastAvail & this.#mask)]!;
      if (head >= this.size || this.#state.isInFlight(head)) return this.#break();
    }
    chain.clear();
    chain.ticket = head;
    return this.#walk(chain, this.#desc, 0, this.size, head) ? FOUND : this.#break();
  }

  take(chain: Chain): void {
    this.#inFlight++;
    if (this.#resubmitAt < this.#resubmit.length) {
      this.#resubmitAt++;
    } else {
      this.#state.begin(chain.ticket);
      this.#lastAvail = (this.#lastAvail + 1) & 0xffff;
    }
  }

  complete(ticket: number, bytes: number): void {
    assert(this.#staged < this.#inFlight, "a chain completes once");
    if (this.#used32.length > 0) {
      const index = (this.#usedIdx + this.#staged) & this.#mask;
      const at = VIRTQ_USED_RING_U32 + index * VIRTQ_USED_ELEM_U32;
      this.#used32[at] = ticket;
      this.#used32[at + 1] = bytes;
      if (this.#usedLog !== null) this.#memory.log?.mark(this.#usedLog + at * 4, 8);
    }
    this.#state.stage(ticket);
    this.#staged++;
  }

  publish(): boolean {
    const staged = this.#staged;
    if (staged === 0) return false;
    this.#staged = 0;
    this.#inFlight -= staged;
    // Without its memory there is no driver to tell.
    if (this.#used32.length === 0) return false;
    const old = this.#usedIdx;
    const now = (old + staged) & 0xffff;
    this.#usedIdx = now;
    // The driver sees the elements before this index, and its wish is read after it.
    Atomics.store(this.#used16, VIRTQ_USED_IDX_U16, now);
    this.#state.published(now);
    if (this.#usedLog !== null) this.#memory.log?.mark(this.#usedLog, 4);
    if (this.#mustNotify) {
      this.#mustNotify = false;
      return true;
    }
    if (!this.#eventIdx) {
      const flags = Atomics.load(this.#avail, VIRTQ_AVAIL_FLAGS_U16);
      return (flags & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
    }
    const event = Atomics.load(this.#avail, VIRTQ_AVAIL_RING_U16 + this.size);
    return ((now - event - 1) & 0xffff) < staged;
  }

  suppressKicks(): void {
    // With event indexes, the driver stays silent until we name another index.
    if (this.#eventIdx || this.#used16.length === 0) return;
    Atomics.store(this.#used16, VIRTQ_USED_FLAGS_U16, VIRTQ_USED_F_NO_NOTIFY);
  }

  allowKicks(): boolean {
    if (this.#broken) return false;
    if (this.#eventIdx) {
      Atomics.store(this.#used16, 2 + this.size * 4, this.#lastAvail);
    } else {
      Atomics.store(this.#used16, VIRTQ_USED_FLAGS_U16, 0);
    }
    // The driver adds, then looks whether to notify; we the other way round: one sees the other.
    if (this.#resubmitAt < this.#resubmit.length) return true;
    return Atomics.load(this.#avail, VIRTQ_AVAIL_IDX_U16) !== this.#lastAvail;
  }

  remap(): boolean {
    const { size } = this;
    const { desc, avail, used } = this.#addresses;
    const descHost = this.#memory.hostAddressOf(desc, size * VIRTQ_DESC_SIZE);
    const availHost = this.#memory.hostAddressOf(avail, virtqAvailBytes(size));
    const usedHost = this.#memory.hostAddressOf(used, virtqUsedBytes(size));
    const isThere = descHost >= 0 && availHost >= 0 && usedHost >= 0;
    if (!isThere || descHost % 4 !== 0 || availHost % 2 !== 0 || usedHost % 4 !== 0) {
      this.#desc = NO_WORDS;
      this.#avail = NO_HALVES;
      this.#used16 = NO_HALVES;
      this.#used32 = NO_WORDS;
      this.#broken = true;
      return false;
    }
    const { ffi } = this.#memory.linux;
    this.#desc = new Uint32Array(ffi.view(descHost, size * VIRTQ_DESC_SIZE));
    this.#avail = new Uint16Array(ffi.view(availHost, virtqAvailBytes(size)));
    const usedBuffer = ffi.view(usedHost, virtqUsedBytes(size));
    this.#used16 = new Uint16Array(usedBuffer);
    this.#used32 = new Uint32Array(usedBuffer, 0, VIRTQ_USED_RING_U32 + size * VIRTQ_USED_ELEM_U32);
    return true;
  }

  setUsedLog(address: number | null): void {
    this.#usedLog = address;
  }

  breakDown(): void {
    this.#broken = true;
  }

  #break(): typeof BROKEN {
    this.#broken = true;
    return BROKEN;
  }

  /** Follows the chain at `head` of a table. False: it may not be. */
  #walk(chain: Chain, words: Uint32Array, base: number, count: number, head: number): boolean {
    let index = head;
    for (let steps = 0; steps < count; steps++) {
      if (index >= count) return false;
      const at = base + index * VIRTQ_DESC_U32;
      const low = words[at]!;
      const high = words[at + 1]!;
      const bytes = words[at + VIRTQ_DESC_LEN_U32]!;
      const flagsNext = words[at + VIRTQ_DESC_FLAGS_NEXT_U32]!;
      if ((flagsNext & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if (words !== this.#desc || !this.#indirect) return false;
        if ((flagsNext & VIRTQ_DESC_F_NEXT) !== 0) return false;
        const table = this.#table;
        if (!table.open(this.#memory, low, high, bytes)) return false;
        return this.#walk(chain, table.words, table.base, table.count, 0);
      }
      const isWritable = (flagsNext & VIRTQ_DESC_F_WRITE) !== 0;
      if (!chain.add(this.#memory, low, high, bytes, isWritable)) return false;
      if ((flagsNext & VIRTQ_DESC_F_NEXT) === 0) return true;
      index = flagsNext >>> 16;
    }
    return false;
  }
}
