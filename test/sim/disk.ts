/**
 * A simulated disk, or host file, for crash tests. What was written stays in a cache until a flush:
 * a power cut keeps, drops or tears it, one 512-byte sector at a time, as a seed has it.
 *
 * Fault model. Requests complete in any order. A flush makes durable what had completed when it was
 * asked for. Of each sector a cut leaves the durable version or any later one, whole; requests that
 * never completed may have reached the disk, too. The length of the file is written like data: a
 * longer file may show zeroes where its data was dropped. Discarded bytes are anything at all.
 */
import { EIO } from "../../src/runtime/errno.ts";
import type { Random } from "../support/random.ts";

export const SECTOR_BYTES = 512;

/** Bytes that grow, with zeroes behind their end. */
class Content {
  bytes: number;
  #data: Uint8Array;

  constructor(data: Uint8Array) {
    this.#data = data.slice();
    this.bytes = data.length;
  }

  slice(offset = 0, end = this.bytes): Uint8Array {
    const part = new Uint8Array(end - offset);
    part.set(this.#data.subarray(Math.min(offset, this.bytes), Math.min(end, this.bytes)));
    return part;
  }

  write(offset: number, data: Uint8Array): void {
    this.#reserve(offset + data.length);
    this.#data.set(data, offset);
    this.bytes = Math.max(this.bytes, offset + data.length);
  }

  setLength(bytes: number): void {
    this.#reserve(bytes);
    if (bytes < this.bytes) this.#data.fill(0, bytes, this.bytes);
    this.bytes = bytes;
  }

  #reserve(bytes: number): void {
    if (bytes <= this.#data.length) return;
    const larger = new Uint8Array(Math.max(bytes, this.#data.length * 2));
    larger.set(this.#data);
    this.#data = larger;
  }
}

/** `data` null: a new length, `offset`. */
interface Change {
  readonly offset: number;
  readonly data: Uint8Array | null;
}

interface InFlight {
  /** Null for reads and flushes. */
  readonly change: Change | null;
  complete(): void;
  abort(): void;
}

/** How a cut treats changes, one mode for all of them. */
const CUT_MODES = ["keep all", "keep none", "keep the first", "by change", "by sector"] as const;
type CutMode = (typeof CUT_MODES)[number];

/** What a discard may leave behind. */
const GARBAGE = 0xdb;

export class SimDisk {
  /** Operations that have completed. */
  completedCount = 0;
  /** -errno of an operation that is about to complete; 0: it succeeds. */
  fails: (what: "read" | "write" | "flush") => number = () => 0;
  #random: Random;
  #cached: Content;
  #durable: Content;
  /** Completed since what is durable; the number of the first of them, of all there ever were. */
  #unflushed: Change[] = [];
  #firstUnflushed = 0;
  #inFlight: InFlight[] = [];
  #isCut = false;

  constructor(random: Random, content: Uint8Array) {
    this.#random = random;
    this.#cached = new Content(content);
    this.#durable = new Content(content);
  }

  get bytes(): number {
    return this.#cached.bytes;
  }

  get inFlight(): number {
    return this.#inFlight.length;
  }

  /** What the host sees: all that has completed. */
  content(): Uint8Array {
    return this.#cached.slice();
  }

  read(offset: number, target: Uint8Array): Promise<number> {
    return this.#start("read", null, () => {
      target.set(this.#cached.slice(offset, offset + target.length));
    });
  }

  write(offset: number, data: Uint8Array): Promise<number> {
    return this.#change({ offset, data: data.slice() });
  }

  discard(offset: number, bytes: number): Promise<number> {
    const end = Math.min(offset + bytes, this.bytes);
    if (offset >= end) return Promise.resolve(this.#isCut ? -EIO : 0);
    const left = this.#random.pick([0, 0, GARBAGE]);
    return this.#change({ offset, data: new Uint8Array(end - offset).fill(left) });
  }

  setLength(bytes: number): Promise<number> {
    return this.#change({ offset: bytes, data: null });
  }

  flush(): Promise<number> {
    const upTo = this.#firstUnflushed + this.#unflushed.length;
    return this.#start("flush", null, () => {
      const count = Math.max(0, upTo - this.#firstUnflushed);
      for (const change of this.#unflushed.splice(0, count)) apply(this.#durable, change);
      this.#firstUnflushed += count;
    });
  }

  /** One request in flight, any one, completes. False: there is none. */
  step(): boolean {
    if (this.#inFlight.length === 0) return false;
    const [one] = this.#inFlight.splice(this.#random.below(this.#inFlight.length), 1);
    one!.complete();
    this.completedCount++;
    return true;
  }

  /** The power fails: what is on the disk when it comes back. Nothing here succeeds any more. */
  cut(): Uint8Array {
    const mode = this.#random.pick(CUT_MODES);
    const lost = this.#inFlight.splice(0);
    const started = lost.flatMap(({ change }) => change ?? []);
    for (let i = started.length - 1; i > 0; i--) {
      const other = this.#random.below(i + 1);
      [started[i], started[other]] = [started[other]!, started[i]!];
    }
    const left = this.#survivors(mode, started);
    this.#isCut = true;
    for (const one of lost) one.abort();
    return left;
  }

  #survivors(mode: CutMode, started: readonly Change[]): Uint8Array {
    const random = this.#random;
    const changes = [...this.#unflushed, ...started];
    const firstDropped = random.below(changes.length + 1);
    const probability = random.pick([0.1, 0.5, 0.9]);
    const running = this.#durable;
    const result = new Content(running.slice());
    for (const [index, change] of changes.entries()) {
      apply(running, change);
      const isStarted = index >= this.#unflushed.length;
      const keeps =
        mode === "keep all"
          ? !isStarted || random.chance(0.5)
          : mode === "keep none"
            ? false
            : mode === "keep the first"
              ? index < firstDropped
              : random.chance(probability);
      const isTorn = mode === "by sector" || (mode === "keep the first" && index === firstDropped);
      settle(result, running, change, () => (isTorn ? random.chance(0.5) : keeps));
    }
    return result.slice();
  }

  #change(change: Change): Promise<number> {
    return this.#start("write", change, () => {
      apply(this.#cached, change);
      this.#unflushed.push(change);
    });
  }

  #start(
    what: "read" | "write" | "flush",
    change: Change | null,
    effect: () => void,
  ): Promise<number> {
    if (this.#isCut) return Promise.resolve(-EIO);
    return new Promise((resolve) => {
      this.#inFlight.push({
        change,
        complete: () => {
          const result = this.fails(what);
          if (result === 0) effect();
          resolve(result);
        },
        abort: () => resolve(-EIO),
      });
    });
  }
}

function apply(content: Content, { offset, data }: Change): void {
  if (data === null) content.setLength(offset);
  else content.write(offset, data);
}

/** Copies those sectors of a change that survive from the cache, with all that is cached there. */
function settle(
  result: Content,
  cached: Content,
  { offset, data }: Change,
  survives: () => boolean,
): void {
  if (data === null) {
    if (survives()) result.setLength(offset);
    return;
  }
  const end = offset + data.length;
  // The length may reach the disk before the data does.
  if (end > result.bytes && survives()) result.setLength(Math.min(end, cached.bytes));
  for (let at = offset - (offset % SECTOR_BYTES); at < end; at += SECTOR_BYTES) {
    if (!survives()) continue;
    const sectorEnd = Math.min(at + SECTOR_BYTES, cached.bytes);
    if (at < sectorEnd) result.write(at, cached.slice(at, sectorEnd));
  }
}
