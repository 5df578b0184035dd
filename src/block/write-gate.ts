/**
 * Keeps read-modify-write apart from all other writes of its iothread. Thread: iothread.
 *
 * A request that covers a block only in part reads it, changes it and writes it back: a write that
 * lands in between would be lost. Nodes that may share a host file live in one iothread, so one
 * gate per iothread is enough, and simple; only nodes that need alignment pass through it.
 */
import type { Reactor } from "../io/reactor.ts";

export class WriteGate {
  #reactor: Reactor;
  #shared = 0;
  #exclusive = false;
  #waiting: { exclusive: boolean; resolve: () => void }[] = [];

  constructor(reactor: Reactor) {
    this.#reactor = reactor;
  }

  /** Ordinary writes. False: wait with enter() instead. */
  tryEnter(): boolean {
    if (this.#exclusive || this.#waiting.length > 0) return false;
    this.#shared++;
    return true;
  }

  enter(): Promise<void> {
    if (this.tryEnter()) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ exclusive: false, resolve }));
  }

  leave(): void {
    this.#shared--;
    this.#admit();
  }

  /** A read-modify-write: alone. */
  enterAlone(): Promise<void> {
    if (!this.#exclusive && this.#shared === 0 && this.#waiting.length === 0) {
      this.#exclusive = true;
      return Promise.resolve();
    }
    return new Promise((resolve) => this.#waiting.push({ exclusive: true, resolve }));
  }

  leaveAlone(): void {
    this.#exclusive = false;
    this.#admit();
  }

  /** In order of arrival: nobody starves. */
  #admit(): void {
    while (this.#waiting.length > 0 && !this.#exclusive) {
      const next = this.#waiting[0]!;
      if (next.exclusive && this.#shared > 0) return;
      this.#waiting.shift();
      if (next.exclusive) this.#exclusive = true;
      else this.#shared++;
      this.#reactor.asyncResumed();
      next.resolve();
    }
  }
}

const gates = new WeakMap<Reactor, WriteGate>();

export function writeGateOf(reactor: Reactor): WriteGate {
  let gate = gates.get(reactor);
  if (gate === undefined) {
    gate = new WriteGate(reactor);
    gates.set(reactor, gate);
  }
  return gate;
}
