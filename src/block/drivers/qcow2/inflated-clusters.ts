/**
 * Compressed clusters as they are read: inflated into a few places of native memory and kept there
 * for those who read on in the same cluster, or already wait for it. Thread: iothread; everything
 * async may suspend.
 *
 * What is kept stands for a place of the image file: whoever gives up that place says so, and so
 * does who puts something else there, with forget(). In between, no request is on its way to it
 * that found it in a table: see Allocator.
 */
import { Memory } from "../../../io/memory.ts";
import type { Reactor } from "../../../io/reactor.ts";
import type { Timer } from "../../../io/timers.ts";
import { EIO, ENOMEM } from "../../../runtime/errno.ts";
import { assert } from "../../../util/error.ts";
import { roundUp } from "../../child-io.ts";
import type { CompressedPlace } from "./compressed.ts";
import type { ClusterCodec } from "./compressed-codec.ts";
import type { ImageFile } from "./image-file.ts";

/** Of inflated clusters, if that many of them are few enough. */
const CACHE_BYTES = 2 * 1024 * 1024;
const SLOTS_MIN = 4;
const SLOTS_MAX = 32;
/** What is read goes through a buffer of the pool, at most so much at a time. */
const PART_BYTES = 256 * 1024;
const PAGE_BYTES = 4096;
/** The memory goes back to the host when nobody has read for so long, or twice as long. */
const IDLE_NS = 5_000_000_000;

interface Slot {
  /** Positions in the memory. */
  readonly input: number;
  readonly output: number;
  place: CompressedPlace;
  /** 0 or -errno; null: it is inflated. */
  loading: Promise<number> | null;
  /** Those who load it or copy from it. */
  userCount: number;
}

export interface InflatedParts {
  readonly reactor: Reactor;
  readonly file: ImageFile;
  readonly clusterBytes: number;
  readonly codec: ClusterCodec;
}

export class InflatedClusters {
  #parts: InflatedParts;
  #memory: Memory | null = null;
  /** Also those that are forgotten, but in use. */
  #all: Slot[] = [];
  /** By offset in the file; who was used last stands last. */
  #slots = new Map<number, Slot>();
  /** Those that stand for nothing. */
  #free: Slot[] = [];
  #waiting: (() => void)[] = [];
  #idle: Timer | null = null;
  #wasUsed = false;

  constructor(parts: InflatedParts) {
    this.#parts = parts;
  }

  /** Bytes [from, from + bytes) of a cluster, to the reactor's memory. 0 or -errno. */
  async read(
    place: CompressedPlace,
    from: number,
    bytes: number,
    address: number,
  ): Promise<number> {
    const { reactor, file, clusterBytes } = this.#parts;
    assert(from + bytes <= clusterBytes, "a read ends with its cluster");
    if (!Number.isSafeInteger(place.offset) || place.offset >= file.node.bytes) return -EIO;
    for (;;) {
      if (!this.#map()) return -ENOMEM;
      const slot = this.#find(place) ?? this.#start(place);
      if (slot === null) {
        await new Promise<void>((resolve) => this.#waiting.push(resolve));
        continue;
      }
      slot.userCount++;
      const result = slot.loading === null ? 0 : await slot.loading;
      if (result === 0) {
        const cluster = this.#memory!.u8.subarray(slot.output + from, slot.output + from + bytes);
        reactor.memory.u8.set(cluster, address - reactor.memory.address);
      }
      this.#leave(slot);
      return result;
    }
  }

  /** Somebody will read it soon. False: there is no room. */
  prefetch(place: CompressedPlace): boolean {
    const { file } = this.#parts;
    if (!Number.isSafeInteger(place.offset) || place.offset >= file.node.bytes) return true;
    // Who needs one now comes first.
    if (this.#waiting.length > 0 || !this.#map()) return false;
    return (this.#find(place) ?? this.#start(place)) !== null;
  }

  /** What lay there in the file does so no longer, or not for long. */
  forget(offset: number): void {
    const slot = this.#slots.get(offset);
    if (slot === undefined) return;
    this.#slots.delete(offset);
    if (slot.userCount === 0) this.#release(slot);
  }

  /** Nobody reads; what was begun beforehand ends first. */
  async close(): Promise<void> {
    for (const { loading } of this.#all) await loading;
    this.#unmap();
  }

  #unmap(): void {
    if (this.#idle !== null) this.#parts.reactor.timers.clear(this.#idle);
    this.#idle = null;
    this.#slots.clear();
    this.#all = [];
    this.#free = [];
    // SAFETY: no thread works there, nobody copies from there.
    this.#memory?.unmap();
    this.#memory = null;
  }

  #find(place: CompressedPlace): Slot | null {
    const slot = this.#slots.get(place.offset);
    if (slot === undefined) return null;
    this.#slots.delete(place.offset);
    if (slot.place.bytes !== place.bytes) {
      // Of a damaged image: who says less may get something else.
      if (slot.userCount === 0) this.#release(slot);
      return null;
    }
    this.#slots.set(place.offset, slot);
    this.#wasUsed = true;
    return slot;
  }

  /** Begins to inflate it. Null: all places are in use. */
  #start(place: CompressedPlace): Slot | null {
    const slot = this.#take();
    if (slot === null) return null;
    slot.place = place;
    slot.userCount = 1;
    this.#slots.set(place.offset, slot);
    const load = async (): Promise<number> => {
      const result = await this.#load(slot, place);
      slot.loading = null;
      // The next one may try again.
      if (result < 0 && this.#slots.get(place.offset) === slot) this.#slots.delete(place.offset);
      this.#leave(slot);
      return result;
    };
    slot.loading = load();
    return slot;
  }

  #take(): Slot | null {
    this.#wasUsed = true;
    const free = this.#free.pop();
    if (free !== undefined) return free;
    for (const slot of this.#slots.values()) {
      if (slot.userCount > 0) continue;
      this.#slots.delete(slot.place.offset);
      return slot;
    }
    return null;
  }

  #leave(slot: Slot): void {
    slot.userCount--;
    if (slot.userCount > 0) return;
    if (this.#slots.get(slot.place.offset) !== slot) this.#release(slot);
    else this.#wake();
  }

  #release(slot: Slot): void {
    this.#free.push(slot);
    this.#wake();
  }

  #wake(): void {
    const next = this.#waiting.shift();
    if (next === undefined) return;
    this.#parts.reactor.asyncResumed();
    next();
  }

  async #load({ input, output }: Slot, { offset, bytes }: CompressedPlace): Promise<number> {
    const { reactor, file, codec } = this.#parts;
    const memory = this.#memory!;
    // Whole blocks: with a buffer in hand nobody must wait for another one.
    const { requestAlignment } = file.node.limits;
    const start = offset - (offset % requestAlignment);
    const end = roundUp(offset + bytes, requestAlignment);
    const at = await reactor.allocate(Math.min(end - start, PART_BYTES));
    let result = 0;
    for (let from = start; from < end && result === 0; from += PART_BYTES) {
      const part = Math.min(PART_BYTES, end - from);
      result = await file.read(from, part, reactor.memory.address + at);
      const first = Math.max(from, offset);
      const last = Math.min(from + part, offset + bytes);
      const read = reactor.memory.u8.subarray(at + first - from, at + last - from);
      memory.u8.set(read, input + first - offset);
    }
    reactor.buffers.free(at);
    return result < 0 ? result : codec.inflate(memory, input, bytes, output);
  }

  /** False: the host has no room. */
  #map(): boolean {
    if (this.#memory !== null) return true;
    const { reactor, clusterBytes } = this.#parts;
    const wanted = Math.floor(CACHE_BYTES / clusterBytes);
    const count = Math.min(Math.max(wanted, SLOTS_MIN), SLOTS_MAX);
    // An entry may speak of twice a cluster.
    const stride = roundUp(3 * clusterBytes, PAGE_BYTES);
    this.#memory = Memory.map(reactor.linux, count * stride);
    if (this.#memory === null) return false;
    for (let i = count - 1; i >= 0; i--) {
      const input = i * stride;
      const place = { offset: 0, bytes: 0 };
      const output = input + 2 * clusterBytes;
      this.#all.push({ input, output, place, loading: null, userCount: 0 });
    }
    this.#free = [...this.#all];
    this.#watch();
    return true;
  }

  #watch(): void {
    const { reactor } = this.#parts;
    this.#wasUsed = false;
    this.#idle = reactor.timers.set(reactor.nowNs() + IDLE_NS, () => {
      const isBusy = this.#all.some(({ userCount }) => userCount > 0);
      this.#idle = null;
      if (this.#wasUsed || isBusy || this.#waiting.length > 0) this.#watch();
      else this.#unmap();
    });
  }
}
