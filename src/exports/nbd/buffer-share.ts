/**
 * The buffers of one connection: what it holds counts against its share of the pool, and who is
 * over it waits. Thread: iothread.
 */
import { HEADROOM_BYTES } from "../../io/buffers.ts";
import type { Reactor } from "../../io/reactor.ts";
import { NONE } from "../../io/requests.ts";
import type { NbdConnections } from "./connections.ts";

export class BufferShare {
  #reactor: Reactor;
  #connections: NbdConnections;
  /** With headroom; also what is being waited for. */
  #bytesHeld = 0;
  /** The part of it that waits for the end of an uninterrupted run of data. */
  #bytesParked = 0;
  #waiters: (() => void)[] = [];
  #closed = false;

  constructor(reactor: Reactor, connections: NbdConnections) {
    this.#reactor = reactor;
    this.#connections = connections;
  }

  get empty(): boolean {
    return this.#bytesHeld === 0;
  }

  /** Holds all that it may. */
  get full(): boolean {
    return this.#bytesHeld >= this.#connections.bytesMaxEach;
  }

  /** A buffer at once, whatever the share; NONE when the pool has none. */
  tryAllocate(bytes: number): number {
    const at = this.#reactor.buffers.allocate(bytes);
    if (at !== NONE) this.#account(this.#strideOf(at));
    return at;
  }

  /** Waits for its share, then for the pool. */
  async allocate(bytes: number): Promise<number> {
    while (this.full && !this.#closed) await this.#change();
    return this.#allocateNow(bytes);
  }

  /** The same for an uninterrupted run: it does not wait for what waits for its end. */
  async allocateForRun(bytes: number): Promise<number> {
    while (this.full && this.#bytesHeld > this.#bytesParked && !this.#closed) await this.#change();
    return this.#allocateNow(bytes);
  }

  free(at: number): void {
    this.#account(-this.#strideOf(at));
    this.#reactor.buffers.free(at);
    this.#wake();
  }

  /** The buffer stays held until the run of data has ended. */
  park(at: number): void {
    this.#bytesParked += this.#strideOf(at);
    this.#wake();
  }

  /** What was parked is on its way. */
  unparkAll(): void {
    this.#bytesParked = 0;
  }

  /** From here on nobody waits for the share. */
  close(): void {
    this.#closed = true;
    this.#wake();
  }

  async #allocateNow(bytes: number): Promise<number> {
    // Counted before the pool has answered: others look meanwhile.
    this.#account(bytes);
    const at = await this.#reactor.allocate(bytes);
    this.#account(this.#strideOf(at) - bytes);
    return at;
  }

  #strideOf(at: number): number {
    return this.#reactor.buffers.bytesOf(at) + HEADROOM_BYTES;
  }

  #account(bytes: number): void {
    this.#bytesHeld += bytes;
    this.#connections.bytesHeld += bytes;
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  /** Each looks for itself whether there is room. */
  #wake(): void {
    if (this.#waiters.length === 0) return;
    this.#reactor.asyncResumed();
    for (const resolve of this.#waiters.splice(0)) resolve();
  }
}
