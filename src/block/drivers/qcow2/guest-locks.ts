/**
 * Ranges of the guest's disk whose mapping is being changed: one change at a time, whoever asks,
 * in order of arrival. Thread: iothread.
 */
import type { Reactor } from "../../../io/reactor.ts";

export interface GuestLock {
  readonly start: number;
  readonly end: number;
}

interface Held extends GuestLock {
  readonly waiting: (() => void)[];
}

export class GuestLocks {
  #reactor: Reactor;
  /** Held, or waited for: who comes later waits for both. */
  #locks: Held[] = [];

  constructor(reactor: Reactor) {
    this.#reactor = reactor;
  }

  /** [start, end) is the caller's until release(). */
  async acquire(start: number, end: number): Promise<GuestLock> {
    const lock: Held = { start, end, waiting: [] };
    const before = this.#locks.filter((other) => other.start < end && start < other.end);
    this.#locks.push(lock);
    for (const other of before) {
      if (!this.#locks.includes(other)) continue;
      await new Promise<void>((resolve) => other.waiting.push(resolve));
    }
    return lock;
  }

  /** Nobody has any of [start, end), or waits for it. */
  isFree(start: number, end: number): boolean {
    for (const lock of this.#locks) if (lock.start < end && start < lock.end) return false;
    return true;
  }

  release(lock: GuestLock): void {
    const held = lock as Held;
    this.#locks.splice(this.#locks.indexOf(held), 1);
    if (held.waiting.length === 0) return;
    this.#reactor.asyncResumed();
    for (const resume of held.waiting) resume();
  }
}
