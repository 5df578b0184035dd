/**
 * Adaptive polling before sleeping: while requests come quickly it is cheaper to look for the next
 * one for some microseconds than to sleep and be woken. Thread: iothread.
 * Spec: qapi/qom.json "EventLoopBaseProperties", "IothreadProperties" (poll-max-ns, poll-grow,
 * poll-shrink)
 */
import { assert } from "../util/error.ts";
import type { IoEngine } from "./engine.ts";

export interface PollingOptions {
  /** Longest time to poll; 0 never polls. */
  readonly pollMaxNs: number;
  /** Factor by which the polling time grows; 0 means 2. */
  readonly pollGrow: number;
  /** Divisor by which it shrinks; 0 means that it shrinks to nothing at once. */
  readonly pollShrink: number;
}

/** Where growing starts. */
const POLL_START_NS = 4000;
const POLL_GROW_DEFAULT = 2;
/** Looks at the ring between two looks at the clock; a look costs a tenth of reading the clock. */
const LOOKS_PER_CLOCK = 16;

/** Work that no engine tells of: rings in memory that others fill. */
export interface PollSource {
  /**
   * Does some of what work there is; without a system call when there is none. True: there was
   * some, and there may be more.
   */
  poll(): boolean;
  /** From now on who brings work wakes the thread. True: somebody brought some before that. */
  allowSleep(): boolean;
}

export class AdaptivePolling {
  readonly sources: PollSource[] = [];
  #options: PollingOptions;
  #pollNs = 0;

  constructor(options: PollingOptions) {
    this.#options = options;
  }

  /** How long the next wait() polls at most. */
  get pollNs(): number {
    return this.#pollNs;
  }

  /** Takes new options and learns anew. */
  configure(options: PollingOptions): void {
    this.#options = options;
    this.#pollNs = 0;
  }

  /**
   * engine.wait(timeoutNs), with polling before it sleeps. What is ready at once is served without
   * a look at the clock.
   */
  wait(engine: IoEngine, timeoutNs: number, nowNs: () => number): void {
    if (this.sources.length > 0) {
      this.#waitWithSources(engine, timeoutNs, nowNs);
      return;
    }
    if (timeoutNs === 0 || this.#options.pollMaxNs === 0) {
      engine.wait(timeoutNs);
      return;
    }
    if (engine.wait(0) > 0) return;
    const startNs = nowNs();
    const limitNs = Math.min(this.#pollNs, timeoutNs);
    let elapsedNs = 0;
    while (elapsedNs < limitNs) {
      if (mayHaveWork(engine) && engine.wait(0) > 0) return;
      elapsedNs = nowNs() - startNs;
    }
    const completed = elapsedNs < timeoutNs ? engine.wait(timeoutNs - elapsedNs) : 0;
    this.#adapt(nowNs() - startNs, completed);
  }

  /** The same, looking at the sources between any two looks at the engine. */
  #waitWithSources(engine: IoEngine, timeoutNs: number, nowNs: () => number): void {
    // What the last turn published goes out before the next requests take their time.
    const completed = engine.wait(0);
    if (this.#serveSources(engine) || completed > 0 || timeoutNs === 0) return;
    const startNs = nowNs();
    const limitNs = Math.min(this.#pollNs, timeoutNs);
    let elapsedNs = 0;
    while (elapsedNs < limitNs) {
      for (let look = 0; look < LOOKS_PER_CLOCK; look++) {
        if (this.#serveSources(engine)) return;
        if (engine.hasWork?.() === true && engine.wait(0) > 0) return;
      }
      if (engine.hasWork === undefined && engine.wait(0) > 0) return;
      elapsedNs = nowNs() - startNs;
    }
    for (const source of this.sources) if (source.allowSleep()) return;
    const woken = elapsedNs < timeoutNs ? engine.wait(timeoutNs - elapsedNs) : 0;
    this.#adapt(nowNs() - startNs, woken);
  }

  /** Ends in the same turn what can end at once, so that it is published soon. */
  #serveSources(engine: IoEngine): boolean {
    let found = false;
    for (const source of this.sources) if (source.poll()) found = true;
    if (found) engine.wait(0);
    return found;
  }

  #adapt(blockedNs: number, completed: number): void {
    const { pollMaxNs, pollGrow, pollShrink } = this.#options;
    if (blockedNs > pollMaxNs || completed === 0) {
      // Polling as long as allowed would not have found it.
      this.#pollNs = pollShrink === 0 ? 0 : Math.floor(this.#pollNs / pollShrink);
    } else if (blockedNs > this.#pollNs) {
      const grown = this.#pollNs * (pollGrow === 0 ? POLL_GROW_DEFAULT : pollGrow);
      this.#pollNs = Math.min(pollMaxNs, grown === 0 ? POLL_START_NS : grown);
    }
    assert(this.#pollNs >= 0 && this.#pollNs <= pollMaxNs, "the polling time has a limit");
  }
}

/** Engines that can't look without a system call answer true: wait(0) is their look. */
function mayHaveWork(engine: IoEngine): boolean {
  if (engine.hasWork === undefined) return true;
  for (let look = 0; look < LOOKS_PER_CLOCK; look++) {
    if (engine.hasWork()) return true;
  }
  return false;
}
