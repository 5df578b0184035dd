/**
 * Native memory for clusters on their way to being compressed: a few at a time, whoever asks.
 * Thread: iothread; may suspend.
 */
import { Memory } from "../../../io/memory.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { ENOMEM } from "../../../runtime/errno.ts";
import { roundUp } from "../../child-io.ts";

/** As many as there are threads for it. */
const PLACES = 4;
const PAGE_BYTES = 4096;

/** Positions of a cluster, and of what comes of it, which is not longer. */
export interface DeflatePlace {
  readonly memory: Memory;
  readonly input: number;
  readonly output: number;
}

export class DeflatePlaces {
  #reactor: Reactor;
  #clusterBytes: number;
  #memory: Memory | null = null;
  #free: DeflatePlace[] = [];
  #waiting: ((place: DeflatePlace) => void)[] = [];

  constructor(reactor: Reactor, clusterBytes: number) {
    this.#reactor = reactor;
    this.#clusterBytes = clusterBytes;
  }

  /** A place, for as long as `use` runs; its result, or -ENOMEM. */
  async withPlace(use: (place: DeflatePlace) => Promise<number>): Promise<number> {
    this.#memory ??= this.#map();
    const memory = this.#memory;
    if (memory === null) return -ENOMEM;
    const place =
      this.#free.pop() ??
      (await new Promise<DeflatePlace>((resolve) => this.#waiting.push(resolve)));
    const result = await use(place);
    const next = this.#waiting.shift();
    if (next !== undefined) {
      this.#reactor.asyncResumed();
      next(place);
      return result;
    }
    this.#free.push(place);
    // Nothing is on its way.
    if (this.#free.length === PLACES) memory.release(0, memory.bytes);
    return result;
  }

  /** Nothing is on its way, or will be. */
  close(): void {
    // SAFETY: without a user no thread works there.
    this.#memory?.unmap();
    this.#memory = null;
    this.#free = [];
  }

  #map(): Memory | null {
    const stride = roundUp(2 * this.#clusterBytes, PAGE_BYTES);
    const memory = Memory.map(this.#reactor.linux, PLACES * stride);
    if (memory === null) return null;
    for (let i = PLACES - 1; i >= 0; i--) {
      const input = i * stride;
      this.#free.push({ memory, input, output: input + this.#clusterBytes });
    }
    return memory;
  }
}
