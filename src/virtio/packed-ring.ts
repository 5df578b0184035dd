/**
 * A packed virtqueue, seen from the device. Thread: iothread.
 * Spec: VIRTIO 1.3 §2.8 "Packed Virtqueues"
 */
import {
  PVIRTQ_DESC_FLAGS_U16,
  PVIRTQ_DESC_ID_FLAGS_U32,
  PVIRTQ_DESC_ID_U16,
  PVIRTQ_DESC_LEN_U32,
  PVIRTQ_DESC_SIZE,
  PVIRTQ_DESC_U16,
  PVIRTQ_DESC_U32,
  PVIRTQ_EVENT_FLAGS_U16,
  PVIRTQ_EVENT_OFF_WRAP_U16,
  PVIRTQ_EVENT_SUPPRESS_SIZE,
  PVIRTQ_EVENT_WRAP,
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
  RING_EVENT_FLAGS_MASK,
  VIRTQ_DESC_F_AVAIL,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_USED,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_SIZE_MAX,
} from "../abi/virtio-ring.ts";
import { EFAULT, EINVAL } from "../runtime/errno.ts";
import { assert } from "../util/error.ts";
import { type Chain, IndirectTable } from "./chain.ts";
import type { GuestMemory } from "./guest-memory.ts";
import { PackedState, packedStateBytes } from "./packed-state.ts";
import {
  BROKEN,
  EMPTY,
  FOUND,
  type PeekResult,
  type RingAddresses,
  type Virtqueue,
  type VirtqueueOptions,
} from "./queue.ts";

const NO_WORDS = new Uint32Array(0);
const NO_HALVES = new Uint16Array(0);
const USED_FLAGS = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
const BASE_IDX_MASK = 0x7fff;
const BASE_WRAP_SHIFT = 15;

export class PackedRing implements Virtqueue {
  readonly size: number;
  #memory: GuestMemory;
  #addresses: RingAddresses;
  #usedLog: number | null;
  #eventIdx: boolean;
  #indirect: boolean;
  #state: PackedState;
  #table = new IndirectTable();
  #broken = false;
  // SAFETY: views of the guest's memory. remap() makes them anew, or takes them away, before what
  // they show is unmapped.
  #desc32 = NO_WORDS;
  #desc16 = NO_HALVES;
  #driverEvent = NO_HALVES;
  #deviceEvent = NO_HALVES;
  #availIdx = 0;
  #availWrap = 1;
  #usedIdx = 0;
  #usedWrap = 1;
  /** Chains completed since the last publish. */
  #staged = 0;
  #stagedTicket: Uint16Array;
  #stagedBytes: Float64Array;
  #inFlight = 0;
  /** Ring descriptors of chains in flight. */
  #descriptorsInFlight = 0;
  /** What peek() found: the descriptors as they were read, for take(). */
  #found = new Uint32Array(0);
  #foundCount = 0;
  #resubmit: Uint16Array = NO_HALVES;
  #resubmitAt = 0;
  #mustNotify = true;

  private constructor(options: VirtqueueOptions) {
    const { size } = options;
    this.size = size;
    this.#memory = options.memory;
    this.#addresses = options.addresses;
    this.#usedLog = options.addresses.usedLog;
    this.#eventIdx = options.eventIdx;
    this.#indirect = options.indirect;
    this.#found = new Uint32Array(size * PVIRTQ_DESC_U32);
    this.#stagedTicket = new Uint16Array(size);
    this.#stagedBytes = new Float64Array(size);
    const region = options.inflight ?? new ArrayBuffer(packedStateBytes(size));
    this.#state = new PackedState(region, size);
  }

  /** Returns the ring, or -errno: a size that is none, memory that is not there. */
  static open(options: VirtqueueOptions): PackedRing | number {
    const { size, base } = options;
    if (size < 1 || size > VIRTQ_SIZE_MAX) return -EINVAL;
    const index = base & BASE_IDX_MASK;
    if (index >= size) return -EINVAL;
    const ring = new PackedRing(options);
    if (!ring.remap()) return -EFAULT;
    const state = ring.#state;
    // Nothing is in flight at a base: the upper half of it, the used index, says the same.
    const wrap = (base >>> BASE_WRAP_SHIFT) & 1;
    const resubmit = state.recover(index, wrap, (at, atWrap, end) =>
      ring.#hasUsed(at, atWrap, end),
    );
    if (resubmit === null) return -EINVAL;
    ring.#resubmit = resubmit;
    ring.#usedIdx = state.usedIdx;
    ring.#usedWrap = state.usedWrap;
    let count = 0;
    for (const entry of resubmit) count += state.countOf(entry);
    if (count > size) return -EINVAL;
    const isOver = ring.#usedIdx + count >= size;
    ring.#availIdx = ring.#usedIdx + count - (isOver ? size : 0);
    ring.#availWrap = ring.#usedWrap ^ (isOver ? 1 : 0);
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
    return this.#isAvailable(
      this.#desc16[this.#availIdx * PVIRTQ_DESC_U16 + PVIRTQ_DESC_FLAGS_U16]!,
    );
  }

  get base(): number {
    const avail = this.#availIdx | (this.#availWrap << BASE_WRAP_SHIFT);
    const used = this.#usedIdx | (this.#usedWrap << BASE_WRAP_SHIFT);
    return (avail | (used << 16)) >>> 0;
  }

  peek(chain: Chain): PeekResult {
    if (this.#broken) return BROKEN;
    chain.clear();
    if (this.#resubmitAt < this.#resubmit.length) {
      const entry = this.#resubmit[this.#resubmitAt]!;
      if (!this.#readState(entry)) return this.#break();
      chain.ticket = entry;
    } else {
      const at = this.#availIdx * PVIRTQ_DESC_U16 + PVIRTQ_DESC_FLAGS_U16;
      // The driver released the whole chain before these flags.
      const flags = Atomics.load(this.#desc16, at);
      if (!this.#isAvailable(flags)) return EMPTY;
      if (!this.#readRing(flags)) return this.#break();
    }
    return this.#translate(chain) ? FOUND : this.#break();
  }

  take(chain: Chain): void {
    const count = this.#foundCount;
    this.#inFlight++;
    this.#descriptorsInFlight += count;
    if (this.#resubmitAt < this.#resubmit.length) {
      this.#resubmitAt++;
      return;
    }
    const state = this.#state;
    const entry = state.allocate();
    let isListed = entry >= 0;
    for (let i = 0; isListed && i < count; i++) {
      const at = i * PVIRTQ_DESC_U32;
      const found = this.#found;
      const idFlags = found[at + PVIRTQ_DESC_ID_FLAGS_U32]!;
      isListed = state.append(entry, found[at]!, found[at + 1]!, found[at + 2]!, idFlags);
    }
    // Only a front-end that wrote to the region of the chains in flight gets here.
    if (!isListed) this.#broken = true;
    else state.begin(entry);
    chain.ticket = Math.max(entry, 0);
    this.#availIdx += count;
    if (this.#availIdx >= this.size) {
      this.#availIdx -= this.size;
      this.#availWrap ^= 1;
    }
  }

  complete(ticket: number, bytes: number): void {
    assert(this.#staged < this.#inFlight, "a chain completes once");
    this.#stagedBytes[this.#staged] = bytes;
    this.#stagedTicket[this.#staged++] = ticket;
    this.#state.stage(ticket);
  }

  publish(): boolean {
    const staged = this.#staged;
    if (staged === 0) return false;
    const state = this.#state;
    const firstIdx = this.#usedIdx;
    const firstWrap = this.#usedWrap;
    let count = 0;
    for (let i = 0; i < staged; i++) count += state.countOf(this.#stagedTicket[i]!);
    // Of no more than there are, whatever the region says.
    count = Math.min(count, this.#descriptorsInFlight);
    this.#advanceUsed(count);
    this.#descriptorsInFlight -= count;
    this.#inFlight -= staged;
    this.#staged = 0;
    // Without its memory there is no driver to tell.
    if (this.#desc16.length === 0) return false;
    // Before anything is written to the ring: who finds it half done undoes it by this.
    state.commit(this.#usedIdx, this.#usedWrap);
    this.#writeUsed(staged, firstIdx, firstWrap);
    state.published();
    if (this.#mustNotify) {
      this.#mustNotify = false;
      return true;
    }
    return this.#wantsNotification(firstIdx, firstWrap, count);
  }

  suppressKicks(): void {
    if (this.#deviceEvent.length === 0) return;
    Atomics.store(this.#deviceEvent, PVIRTQ_EVENT_FLAGS_U16, RING_EVENT_FLAGS_DISABLE);
  }

  allowKicks(): boolean {
    if (this.#broken) return false;
    const event = this.#deviceEvent;
    let flags = RING_EVENT_FLAGS_ENABLE;
    if (this.#eventIdx) {
      const offWrap = this.#availIdx | (this.#availWrap << BASE_WRAP_SHIFT);
      Atomics.store(event, PVIRTQ_EVENT_OFF_WRAP_U16, offWrap);
      flags = RING_EVENT_FLAGS_DESC;
    }
    Atomics.store(event, PVIRTQ_EVENT_FLAGS_U16, flags);
    // The driver adds, then looks whether to notify; we the other way round: one sees the other.
    if (this.#resubmitAt < this.#resubmit.length) return true;
    const at = this.#availIdx * PVIRTQ_DESC_U16 + PVIRTQ_DESC_FLAGS_U16;
    return this.#isAvailable(Atomics.load(this.#desc16, at));
  }

  remap(): boolean {
    const { desc, avail, used } = this.#addresses;
    const bytes = this.size * PVIRTQ_DESC_SIZE;
    const descHost = this.#memory.hostAddressOf(desc, bytes);
    const driverHost = this.#memory.hostAddressOf(avail, PVIRTQ_EVENT_SUPPRESS_SIZE);
    const deviceHost = this.#memory.hostAddressOf(used, PVIRTQ_EVENT_SUPPRESS_SIZE);
    const isThere = descHost >= 0 && driverHost >= 0 && deviceHost >= 0;
    if (!isThere || descHost % 4 !== 0 || driverHost % 2 !== 0 || deviceHost % 2 !== 0) {
      this.#desc32 = NO_WORDS;
      this.#desc16 = NO_HALVES;
      this.#driverEvent = NO_HALVES;
      this.#deviceEvent = NO_HALVES;
      this.#broken = true;
      return false;
    }
    const { ffi } = this.#memory.linux;
    const buffer = ffi.view(descHost, bytes);
    this.#desc32 = new Uint32Array(buffer);
    this.#desc16 = new Uint16Array(buffer);
    this.#driverEvent = new Uint16Array(ffi.view(driverHost, PVIRTQ_EVENT_SUPPRESS_SIZE));
    this.#deviceEvent = new Uint16Array(ffi.view(deviceHost, PVIRTQ_EVENT_SUPPRESS_SIZE));
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

  #isAvailable(flags: number): boolean {
    const isAvail = (flags & VIRTQ_DESC_F_AVAIL) !== 0 ? 1 : 0;
    const isUsed = (flags & VIRTQ_DESC_F_USED) !== 0 ? 1 : 0;
    return isAvail === this.#availWrap && isUsed !== this.#availWrap;
  }

  /**
   * The ring had a used element there: the descriptor is no longer as it was made available, and
   * may be available again. If not, none of a batch that begins there was seen: those up to `end`
   * become what they were for the driver, not used.
   */
  #hasUsed(first: number, firstWrap: number, end: number): boolean {
    let wrap = firstWrap;
    for (let index = first, steps = 0; steps < this.size; steps++) {
      if (steps > 0 && index === end) break;
      const at = index * PVIRTQ_DESC_U16 + PVIRTQ_DESC_FLAGS_U16;
      const flags = this.#desc16[at]! & USED_FLAGS;
      const notUsed = wrap === 1 ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED;
      if (steps === 0 && flags !== notUsed) return true;
      if (flags === (wrap === 1 ? USED_FLAGS : 0)) this.#desc16[at] = notUsed;
      if (++index === this.size) {
        index = 0;
        wrap ^= 1;
      }
    }
    return false;
  }

  /** Reads the chain at #availIdx to #found; `firstFlags` have been read. False: it may not be. */
  #readRing(firstFlags: number): boolean {
    const { size } = this;
    const words = this.#desc32;
    const found = this.#found;
    const countMax = size - this.#descriptorsInFlight;
    let index = this.#availIdx;
    for (let count = 0; count < countMax; count++) {
      const source = index * PVIRTQ_DESC_U32;
      const target = count * PVIRTQ_DESC_U32;
      let idFlags = words[source + PVIRTQ_DESC_ID_FLAGS_U32]!;
      if (count === 0) idFlags = ((idFlags & 0xffff) | (firstFlags << 16)) >>> 0;
      found[target] = words[source]!;
      found[target + 1] = words[source + 1]!;
      found[target + PVIRTQ_DESC_LEN_U32] = words[source + PVIRTQ_DESC_LEN_U32]!;
      found[target + PVIRTQ_DESC_ID_FLAGS_U32] = idFlags;
      if (((idFlags >>> 16) & VIRTQ_DESC_F_NEXT) === 0) {
        this.#foundCount = count + 1;
        return true;
      }
      if (++index === size) index = 0;
    }
    return false;
  }

  /** Reads a chain that was in flight before to #found. */
  #readState(entry: number): boolean {
    const state = this.#state;
    const count = state.countOf(entry);
    if (count === 0 || count > this.size - this.#descriptorsInFlight) return false;
    let at = entry;
    for (let i = 0; i < count; i++) {
      if (at >= this.size) return false;
      const target = i * PVIRTQ_DESC_U32;
      state.read(at, this.#found, target);
      at = state.nextOf(at);
    }
    this.#foundCount = count;
    return true;
  }

  #translate(chain: Chain): boolean {
    const found = this.#found;
    const memory = this.#memory;
    for (let i = 0; i < this.#foundCount; i++) {
      const at = i * PVIRTQ_DESC_U32;
      const low = found[at]!;
      const high = found[at + 1]!;
      const bytes = found[at + PVIRTQ_DESC_LEN_U32]!;
      const flags = found[at + PVIRTQ_DESC_ID_FLAGS_U32]! >>> 16;
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if (this.#foundCount !== 1 || !this.#indirect) return false;
        return this.#translateTable(chain, low, high, bytes);
      }
      if (!chain.add(memory, low, high, bytes, (flags & VIRTQ_DESC_F_WRITE) !== 0)) return false;
    }
    return true;
  }

  #translateTable(chain: Chain, low: number, high: number, bytes: number): boolean {
    const table = this.#table;
    if (!table.open(this.#memory, low, high, bytes)) return false;
    const { words, base, count } = table;
    for (let i = 0; i < count; i++) {
      const at = base + i * PVIRTQ_DESC_U32;
      const flags = words[at + PVIRTQ_DESC_ID_FLAGS_U32]! >>> 16;
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) return false;
      const isWritable = (flags & VIRTQ_DESC_F_WRITE) !== 0;
      const length = words[at + PVIRTQ_DESC_LEN_U32]!;
      if (!chain.add(this.#memory, words[at]!, words[at + 1]!, length, isWritable)) return false;
    }
    return true;
  }

  #advanceUsed(count: number): void {
    this.#usedIdx += count;
    if (this.#usedIdx >= this.size) {
      this.#usedIdx -= this.size;
      this.#usedWrap ^= 1;
    }
  }

  /** Writes the staged elements from `firstIdx` on; the driver sees them all at once. */
  #writeUsed(staged: number, firstIdx: number, firstWrap: number): void {
    const { size } = this;
    let index = firstIdx;
    let wrap = firstWrap;
    let firstFlags = 0;
    for (let i = 0; i < staged; i++) {
      const ticket = this.#stagedTicket[i]!;
      const bytes = this.#stagedBytes[i]!;
      const flags = (bytes > 0 ? VIRTQ_DESC_F_WRITE : 0) | (wrap === 1 ? USED_FLAGS : 0);
      const at = index * PVIRTQ_DESC_U16;
      this.#desc32[index * PVIRTQ_DESC_U32 + PVIRTQ_DESC_LEN_U32] = bytes;
      this.#desc16[at + PVIRTQ_DESC_ID_U16] = this.#state.idOf(ticket);
      if (i === 0) firstFlags = flags;
      else this.#desc16[at + PVIRTQ_DESC_FLAGS_U16] = flags;
      this.#logUsed(index);
      index += this.#state.countOf(ticket);
      if (index >= size) {
        index -= size;
        wrap ^= 1;
      }
    }
    // The driver looks at the first one first; its wish is read after this.
    Atomics.store(this.#desc16, firstIdx * PVIRTQ_DESC_U16 + PVIRTQ_DESC_FLAGS_U16, firstFlags);
  }

  #logUsed(index: number): void {
    if (this.#usedLog === null) return;
    this.#memory.log?.mark(this.#usedLog + index * PVIRTQ_DESC_SIZE, PVIRTQ_DESC_SIZE);
  }

  /** After `count` descriptors were used from `firstIdx` on. */
  #wantsNotification(firstIdx: number, firstWrap: number, count: number): boolean {
    const flags = Atomics.load(this.#driverEvent, PVIRTQ_EVENT_FLAGS_U16) & RING_EVENT_FLAGS_MASK;
    if (flags === RING_EVENT_FLAGS_DISABLE) return false;
    if (flags !== RING_EVENT_FLAGS_DESC || !this.#eventIdx) return true;
    const offWrap = Atomics.load(this.#driverEvent, PVIRTQ_EVENT_OFF_WRAP_U16);
    const wrap = offWrap >>> BASE_WRAP_SHIFT;
    const lap = wrap === firstWrap ? 0 : this.size;
    const distance = (offWrap & ~PVIRTQ_EVENT_WRAP) + lap - firstIdx;
    return distance >= 0 && distance < count;
  }
}
