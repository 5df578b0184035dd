/**
 * Looks at the rings of one device as long as the thread is awake, so that drivers need not kick;
 * and at intervals, while there is one whose driver never does. Thread: iothread.
 */
import type { PollSource } from "../../io/polling.ts";
import type { Reactor } from "../../io/reactor.ts";
import type { Timer } from "../../io/timers.ts";
import type { VirtioBlk } from "../../virtio/virtio-blk.ts";

const INTERVAL_NS = 200_000;

export class RingPolling implements PollSource {
  #reactor: Reactor;
  #device: VirtioBlk;
  #needsTimer: () => boolean;
  #timer: Timer | null = null;

  constructor(reactor: Reactor, device: VirtioBlk, needsTimer: () => boolean) {
    this.#reactor = reactor;
    this.#device = device;
    this.#needsTimer = needsTimer;
    device.pollsQueues = true;
    reactor.polling.sources.push(this);
  }

  poll(): boolean {
    return this.#device.poll();
  }

  allowSleep(): boolean {
    return this.#device.allowKicks();
  }

  /** The thread wakes up at intervals while `needsTimer()` says so. */
  startTimer(): void {
    if (this.#timer !== null || !this.#needsTimer()) return;
    const { timers, nowNs } = this.#reactor;
    this.#timer = timers.set(nowNs() + INTERVAL_NS, () => {
      this.#timer = null;
      this.#device.poll();
      this.startTimer();
    });
  }

  stop(): void {
    const { polling, timers } = this.#reactor;
    polling.sources.splice(polling.sources.indexOf(this), 1);
    if (this.#timer !== null) timers.clear(this.#timer);
    this.#timer = null;
    this.#needsTimer = () => false;
    this.#device.pollsQueues = false;
    this.#device.allowKicks();
  }
}
