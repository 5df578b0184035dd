/**
 * How many may hold a buffer at a time while they need another one: with all buffers in such hands,
 * nobody would ever get his second one. Thread: iothread.
 */
import type { Reactor } from "../io/reactor.ts";

export class Places {
  #reactor: Reactor;
  #free: number;
  #waiting: (() => void)[] = [];

  constructor(reactor: Reactor, count: number) {
    this.#reactor = reactor;
    this.#free = count;
  }

  /** A buffer, for as long as `use` runs: position in the reactor's memory. */
  async withBuffer<Result>(bytes: number, use: (at: number) => Promise<Result>): Promise<Result> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    const at = await this.#reactor.allocate(bytes);
    const result = await use(at);
    this.#reactor.buffers.free(at);
    const next = this.#waiting.shift();
    if (next === undefined) {
      this.#free++;
    } else {
      this.#reactor.asyncResumed();
      next();
    }
    return result;
  }
}
