/**
 * One loop per iothread: flush submissions → wait → reap completions → run callbacks → publish →
 * again. It blocks in one system call and nothing else. Thread: iothread.
 */
import { EAGAIN, ECANCELED, EINTR } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { assert } from "../util/error.ts";
import type { BufferPool } from "./buffers.ts";
import {
  type CompletionHandler,
  type IoEngine,
  makeToken,
  TOKEN_KIND_MAX,
  type Token,
} from "./engine.ts";
import type { Memory } from "./memory.ts";
import { AdaptivePolling, type PollingOptions } from "./polling.ts";
import { NONE, RequestTable } from "./requests.ts";
import { Timers } from "./timers.ts";

/** Requests in flight per iothread; what is over it waits in the sockets. */
const REQUESTS_MAX = 4096;
/** Async operations (reactor.op) in flight per iothread: of each request, each descriptor, one. */
const OPS_MAX = 1024 * 1024;

/** The handlers by kind, shared with the engine, which dispatches through it. */
export type HandlerTable = CompletionHandler[];

export interface ReactorParts {
  readonly linux: Linux;
  readonly nowNs: () => number;
  readonly memory: Memory;
  readonly buffers: BufferPool;
  readonly handlers: HandlerTable;
  readonly engine: IoEngine;
  readonly polling: PollingOptions;
  /** ThreadDriver.runMicrotasks. */
  readonly runMicrotasks: () => Promise<void>;
}

export class Reactor {
  readonly linux: Linux;
  readonly nowNs: () => number;
  readonly memory: Memory;
  readonly buffers: BufferPool;
  readonly engine: IoEngine;
  readonly timers = new Timers();
  readonly requests = new RequestTable(REQUESTS_MAX);
  readonly polling: AdaptivePolling;
  #handlers: HandlerTable;
  #opKind: number;
  #ops: (AsyncOp | null)[] = [];
  #opFree: number[] = [];
  /** Async work was started or resumed since the runtime last ran its microtasks to the end. */
  #asyncRunnable = false;
  #runMicrotasks: () => Promise<void>;
  #deferred: (() => void)[] = [];
  #deferredSpare: (() => void)[] = [];
  #stopped = false;
  /** Of this turn, once somebody has asked for it; else 0. */
  #turnNs = 0;

  constructor(parts: ReactorParts) {
    this.linux = parts.linux;
    this.nowNs = parts.nowNs;
    this.memory = parts.memory;
    this.buffers = parts.buffers;
    this.engine = parts.engine;
    this.#handlers = parts.handlers;
    this.#runMicrotasks = parts.runMicrotasks;
    this.polling = new AdaptivePolling(parts.polling);
    this.buffers.connect({
      resumeSoon: () => this.defer(() => this.buffers.resume()),
      trimLater: (delayNs) => {
        this.timers.set(this.nowNs() + delayNs, () => this.buffers.trim());
      },
    });
    this.#opKind = this.register((slot, result) => this.#onOp(slot, result));
  }

  /** The time of this turn: one look at the clock for all that end or begin in it. */
  get turnNs(): number {
    if (this.#turnNs === 0) this.#turnNs = this.nowNs();
    return this.#turnNs;
  }

  /** Looks at the clock once more, for what ends in the turn in which it began. */
  renewTurnNs(): number {
    this.#turnNs = this.nowNs();
    return this.#turnNs;
  }

  /**
   * A new kind of completion; for makeToken(). Made once per part of the program, not per request.
   */
  register(handler: CompletionHandler): number {
    assert(this.#handlers.length <= TOKEN_KIND_MAX, "kinds fit their bits");
    return this.#handlers.push(handler) - 1;
  }

  /**
   * One engine operation as a Promise, for slow paths:
   * `await reactor.op((engine, token) => engine.fsync(fd, true, token))`. Starts again by itself
   * after EINTR and EAGAIN.
   */
  op(start: AsyncOp["start"]): Promise<number> {
    return new Promise((resolve) => this.#startOp({ start, resolve, isCancelled: false }));
  }

  /** The same for what may take for ever. */
  cancellableOp(start: AsyncOp["start"]): CancellableOp {
    const { promise, resolve } = Promise.withResolvers<number>();
    const op = { start, resolve, isCancelled: false };
    const slot = this.#startOp(op);
    return {
      result: promise,
      cancel: () => {
        // Whoever waits for it may not have heard yet that it has ended: the slot is another's.
        if (this.#ops[slot] !== op || op.isCancelled) return;
        op.isCancelled = true;
        this.engine.cancel(makeToken(this.#opKind, slot));
      },
    };
  }

  /** Suspends a slow path for some time. */
  sleep(ns: number): Promise<void> {
    return new Promise((resolve) => {
      this.timers.set(this.nowNs() + ns, () => {
        this.#asyncRunnable = true;
        resolve();
      });
    });
  }

  /**
   * Starts async work; whatever waits on it resumes before the loop sleeps again. A rejection is a
   * broken promise of our own code and ends the thread.
   */
  spawn(task: () => Promise<void>): void {
    this.#asyncRunnable = true;
    task().catch((error: unknown) => {
      this.defer(() => {
        throw error;
      });
    });
  }

  /** A buffer of the pool for a slow path, waiting for one when it must. Position in `memory`. */
  allocate(bytes: number): Promise<number> {
    const at = this.buffers.allocate(bytes);
    if (at !== NONE) return Promise.resolve(at);
    return new Promise((resolve) => {
      this.buffers.onAvailable(bytes, () => {
        this.#asyncRunnable = true;
        resolve(this.buffers.allocate(bytes));
      });
    });
  }

  /** A promise that async work waits on was settled by a handler: the loop must run microtasks. */
  asyncResumed(): void {
    this.#asyncRunnable = true;
  }

  /** Runs `callback` at the end of this turn: to publish once what many completions staged. */
  defer(callback: () => void): void {
    this.#deferred.push(callback);
  }

  stop(): void {
    this.#stopped = true;
  }

  /** The loop; resolves after stop(). */
  async run(): Promise<void> {
    for (;;) {
      while (this.#asyncRunnable) {
        this.#asyncRunnable = false;
        await this.#runMicrotasks();
        this.#publish();
      }
      if (this.#stopped) return;
      this.turn(Infinity);
    }
  }

  /** One turn: submits, waits at most `timeoutNs`, completes, publishes. Tests call it, too. */
  turn(timeoutNs: number): void {
    let wait = this.#deferred.length > 0 ? 0 : timeoutNs;
    const next = this.timers.nextNs;
    if (next !== Infinity && wait > 0) wait = Math.min(wait, Math.max(0, next - this.nowNs()));
    this.#turnNs = 0;
    this.polling.wait(this.engine, wait, this.nowNs);
    if (this.timers.nextNs !== Infinity) this.timers.run(this.nowNs());
    this.#publish();
  }

  #publish(): void {
    while (this.#deferred.length > 0) {
      const deferred = this.#deferred;
      this.#deferred = this.#deferredSpare;
      for (const callback of deferred) callback();
      deferred.length = 0;
      this.#deferredSpare = deferred;
    }
  }

  #startOp(op: AsyncOp): number {
    const slot = this.#opFree.pop() ?? this.#ops.length;
    assert(slot < OPS_MAX, "async operations are bounded by their callers");
    this.#ops[slot] = op;
    op.start(this.engine, makeToken(this.#opKind, slot));
    return slot;
  }

  #onOp(slot: number, result: number): void {
    const op = this.#ops[slot]!;
    assert(op !== null, "an async operation completes once");
    const isAgain = result === -EINTR || result === -EAGAIN;
    if (isAgain && !op.isCancelled) {
      op.start(this.engine, makeToken(this.#opKind, slot));
      return;
    }
    this.#ops[slot] = null;
    this.#opFree.push(slot);
    this.#asyncRunnable = true;
    op.resolve(isAgain ? -ECANCELED : result);
  }
}

interface AsyncOp {
  start(engine: IoEngine, token: Token): void;
  resolve(result: number): void;
  isCancelled: boolean;
}

export interface CancellableOp {
  /** -ECANCELED when it was cancelled, unless that was too late. */
  readonly result: Promise<number>;
  /** Does nothing once it has ended. */
  cancel(): void;
}
