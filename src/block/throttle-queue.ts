/**
 * The requests of one node that wait for its throttle group: in order, reads and writes apart.
 * Thread: iothread.
 */
import type { Reactor } from "../io/reactor.ts";
import type { Timer } from "../io/timers.ts";
import { assert } from "../util/error.ts";
import { trace } from "../util/trace.ts";
import {
  THROTTLE_READ,
  THROTTLE_WRITE,
  type ThrottleDirection,
  type ThrottleGroup,
} from "./throttle-group.ts";

/** How often a waiting request looks whether the limits are still the same. */
const LOOK_NS = 100_000_000;

interface Lane {
  readonly direction: ThrottleDirection;
  readonly waiting: { readonly bytes: number; readonly resolve: () => void }[];
  /** Of the first that waits, which the group has counted already: when it may go on. */
  deadlineNs: number;
  /** Of the group, when it was counted. */
  generation: number;
  timer: Timer | null;
}

export class ThrottleQueue {
  #group: ThrottleGroup;
  #reactor: Reactor;
  /** Of CLOCK_MONOTONIC: threads have clocks of their own otherwise. */
  #nowNs: () => number;
  #lanes: readonly [Lane, Lane] = [lane(THROTTLE_READ), lane(THROTTLE_WRITE)];
  #drains = 0;

  constructor(
    reactor: Reactor,
    group: ThrottleGroup,
    nowNs: () => number = () => reactor.linux.monotonicNs(),
  ) {
    this.#reactor = reactor;
    this.#group = group;
    this.#nowNs = nowNs;
  }

  get group(): ThrottleGroup {
    return this.#group;
  }

  /** Another group from now on; nothing waits. */
  use(group: ThrottleGroup): void {
    assert(this.waitingCount === 0, "a node changes its group in a drained section");
    this.#group = group;
  }

  get waitingCount(): number {
    return this.#lanes[0].waiting.length + this.#lanes[1].waiting.length;
  }

  /** Resolves when a request of this length may go on. */
  enter(direction: ThrottleDirection, bytes: number): Promise<void> {
    const lane = this.#lanes[direction];
    if (lane.waiting.length === 0 && this.#mayGo(lane, bytes)) return Promise.resolve();
    return new Promise((resolve) => {
      if (trace.throttle_wait.enabled) {
        trace.throttle_wait.write(
          `direction ${direction} bytes ${bytes} behind ${lane.waiting.length}`,
        );
      }
      lane.waiting.push({ bytes, resolve });
      if (lane.waiting.length === 1) this.#arm(lane);
    });
  }

  /** Until drainEnd() nothing waits here; what goes on is counted. */
  drainBegin(): void {
    if (this.#drains++ > 0) return;
    for (const lane of this.#lanes) this.#admit(lane);
  }

  drainEnd(): void {
    assert(this.#drains > 0, "drainEnd() follows drainBegin()");
    this.#drains--;
  }

  /** Counts the request that is first in its lane. */
  #mayGo(lane: Lane, bytes: number): boolean {
    const nowNs = this.#nowNs();
    lane.generation = this.#group.generation;
    lane.deadlineNs = nowNs + this.#group.take(lane.direction, bytes, nowNs);
    return this.#drains > 0 || lane.deadlineNs <= nowNs;
  }

  #arm(lane: Lane): void {
    const { timers, nowNs } = this.#reactor;
    const waitNs = Math.min(lane.deadlineNs - this.#nowNs(), LOOK_NS);
    lane.timer = timers.set(nowNs() + waitNs, () => this.#admit(lane));
  }

  /** Lets those go on that may. */
  #admit(lane: Lane): void {
    const { waiting } = lane;
    if (lane.timer !== null) this.#reactor.timers.clear(lane.timer);
    lane.timer = null;
    if (waiting.length === 0) return;
    let mayGo = this.#drains > 0 || this.#nowNs() >= lane.deadlineNs;
    // New limits begin with empty buckets.
    if (lane.generation !== this.#group.generation) mayGo = this.#mayGo(lane, waiting[0]!.bytes);
    while (mayGo) {
      waiting.shift()!.resolve();
      this.#reactor.asyncResumed();
      if (waiting.length === 0) return;
      mayGo = this.#mayGo(lane, waiting[0]!.bytes);
    }
    this.#arm(lane);
  }
}

function lane(direction: ThrottleDirection): Lane {
  return { direction, waiting: [], deadlineNs: 0, generation: 0, timer: null };
}
