/**
 * Keeps read-modify-write apart from all other writes to its host file. Thread: iothread.
 *
 * A request that covers a block only in part reads it, changes it and writes it back: a write that
 * lands in between would be lost. Only nodes that need alignment pass through a gate. Each host
 * file has its own, whatever nodes of the thread open it: a write may wait for long while it is in,
 * as for a throttle group, and that is no other disk's business. Writers elsewhere, on other
 * iothreads as in other processes, must know what they do.
 */
import type { Reactor } from "../io/reactor.ts";
import type { BlockNode } from "./node.ts";

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

interface SharedGate {
  readonly gate: WriteGate;
  userCount: number;
}

interface Gates {
  /** By host file. */
  readonly shared: Map<string, SharedGate>;
  readonly ofOthers: WriteGate;
}

const gates = new WeakMap<Reactor, Gates>();

function gatesOf(reactor: Reactor): Gates {
  let all = gates.get(reactor);
  if (all === undefined) {
    all = { shared: new Map(), ofOthers: new WriteGate(reactor) };
    gates.set(reactor, all);
  }
  return all;
}

/** The gate of a host file for a node that has it open; release() when it is closed. */
export function acquireWriteGate(
  reactor: Reactor,
  hostFile: string,
): { readonly gate: WriteGate; release(): void } {
  const { shared } = gatesOf(reactor);
  const entry = shared.get(hostFile) ?? { gate: new WriteGate(reactor), userCount: 0 };
  shared.set(hostFile, entry);
  entry.userCount++;
  return {
    gate: entry.gate,
    release: () => {
      if (--entry.userCount === 0) shared.delete(hostFile);
    },
  };
}

/** The gate that writes to this node pass through. Changes in drained sections only. */
export function writeGateOf(reactor: Reactor, node: BlockNode): WriteGate {
  return node.writeGate ?? gatesOf(reactor).ofOthers;
}
