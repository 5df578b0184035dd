/**
 * The leaky buckets of a throttle group, in memory that all threads share: main sets the limits,
 * nodes on any iothread take from them. Thread: any.
 *
 * A request that would overflow a bucket is counted at once and told how long to wait: the levels
 * then hold what still waits, too, so that whoever comes next, on whatever thread, waits behind
 * it. Nodes ask for their first waiting request only, and so take turns.
 * Spec: QEMU util/throttle.c, docs/throttle.txt
 */
import { BUCKETS, type ThrottleLimits } from "./throttle-limits.ts";

export const THROTTLE_READ = 0;
export const THROTTLE_WRITE = 1;
export type ThrottleDirection = typeof THROTTLE_READ | typeof THROTTLE_WRITE;

// Layout: int32 words, then doubles.
const LOCK_I32 = 0;
/** Grows when the limits change. */
const GENERATION_I32 = 1;
/** Bit by direction: there are limits for it. */
const LIMITED_I32 = 2;
/** Nodes that use the group, or CLOSED. */
const MEMBERS_I32 = 3;
const WORDS_BYTES = 16;

const LEAKED_NS_F64 = 2;
const IOPS_BYTES_F64 = 3;
const BUCKETS_F64 = 4;
const BUCKET_F64 = 5;
/** Units per second, in general and in a burst. */
const RATE_F64 = 0;
const MAX_F64 = 1;
/** Seconds. */
const LENGTH_F64 = 2;
/** Units above what has leaked at the general rate and, for long bursts, at the burst rate. */
const LEVEL_F64 = 3;
const BURST_LEVEL_F64 = 4;

const GROUP_BYTES = WORDS_BYTES + (BUCKETS_F64 + BUCKETS.length * BUCKET_F64) * 8;

const CLOSED = -1;
const NS_PER_SECOND = 1e9;
/** How long a thread sleeps that missed the other's wake-up; the lock is held for less by far. */
const LOCK_WAIT_MS = 1;
/** The part of a second that a bucket takes in without waiting. */
const SLACK = 10;

/** Buckets that count a direction: positions in BUCKETS. */
const BYTES_BUCKETS = [
  [0, 1],
  [0, 2],
] as const;
const OPS_BUCKETS = [
  [3, 4],
  [3, 5],
] as const;

export class ThrottleGroup {
  /** For other threads. */
  readonly shared: SharedArrayBuffer;
  #i32: Int32Array;
  #f64: Float64Array;

  /** A new group has no limits. */
  constructor(shared = new SharedArrayBuffer(GROUP_BYTES)) {
    this.shared = shared;
    this.#i32 = new Int32Array(shared, 0, WORDS_BYTES / 4);
    this.#f64 = new Float64Array(shared);
  }

  /** Changes when the limits do: what waits must ask again then. */
  get generation(): number {
    return Atomics.load(this.#i32, GENERATION_I32);
  }

  isLimited(direction: ThrottleDirection): boolean {
    return (Atomics.load(this.#i32, LIMITED_I32) & (1 << direction)) !== 0;
  }

  /** Checked limits, from now on; the buckets are empty again. `nowNs`: of CLOCK_MONOTONIC. */
  configure(limits: ThrottleLimits, nowNs: number): void {
    const f64 = this.#f64;
    let limited = 0;
    this.#lock();
    f64[LEAKED_NS_F64] = nowNs;
    f64[IOPS_BYTES_F64] = limits["iops-size"];
    for (const [index, bucket] of BUCKETS.entries()) {
      const at = BUCKETS_F64 + index * BUCKET_F64;
      f64[at + RATE_F64] = limits[bucket];
      f64[at + MAX_F64] = limits[`${bucket}-max`];
      f64[at + LENGTH_F64] = limits[`${bucket}-max-length`];
      f64[at + LEVEL_F64] = 0;
      f64[at + BURST_LEVEL_F64] = 0;
      if (limits[bucket] > 0 && !bucket.endsWith("write")) limited |= 1 << THROTTLE_READ;
      if (limits[bucket] > 0 && !bucket.endsWith("read")) limited |= 1 << THROTTLE_WRITE;
    }
    Atomics.store(this.#i32, LIMITED_I32, limited);
    Atomics.add(this.#i32, GENERATION_I32, 1);
    this.#unlock();
  }

  /** Counts a request; returns how many nanoseconds it has to wait, 0 for none. */
  take(direction: ThrottleDirection, bytes: number, nowNs: number): number {
    this.#lock();
    this.#leak(nowNs);
    let waitNs = 0;
    for (const index of BYTES_BUCKETS[direction]) waitNs = Math.max(waitNs, this.#waitNs(index));
    for (const index of OPS_BUCKETS[direction]) waitNs = Math.max(waitNs, this.#waitNs(index));
    const iopsBytes = this.#f64[IOPS_BYTES_F64] as number;
    // A negative size is a huge one: QEMU keeps it unsigned.
    const operations = iopsBytes > 0 && bytes > iopsBytes ? bytes / iopsBytes : 1;
    for (const index of BYTES_BUCKETS[direction]) this.#fill(index, bytes);
    for (const index of OPS_BUCKETS[direction]) this.#fill(index, operations);
    this.#unlock();
    return waitNs;
  }

  /** A node begins to use the group. False: it was deleted. */
  join(): boolean {
    for (;;) {
      const members = Atomics.load(this.#i32, MEMBERS_I32);
      if (members === CLOSED) return false;
      if (Atomics.compareExchange(this.#i32, MEMBERS_I32, members, members + 1) === members) {
        return true;
      }
    }
  }

  leave(): void {
    Atomics.sub(this.#i32, MEMBERS_I32, 1);
  }

  /** For good. False while nodes use it. */
  close(): boolean {
    return Atomics.compareExchange(this.#i32, MEMBERS_I32, 0, CLOSED) === 0;
  }

  #leak(nowNs: number): void {
    const f64 = this.#f64;
    const seconds = (nowNs - (f64[LEAKED_NS_F64] as number)) / NS_PER_SECOND;
    // Another thread may have looked at the clock later and come here first.
    if (seconds <= 0) return;
    f64[LEAKED_NS_F64] = nowNs;
    for (let index = 0; index < BUCKETS.length; index++) {
      const at = BUCKETS_F64 + index * BUCKET_F64;
      const rate = f64[at + RATE_F64] as number;
      const max = f64[at + MAX_F64] as number;
      const level = f64[at + LEVEL_F64] as number;
      const burstLevel = f64[at + BURST_LEVEL_F64] as number;
      f64[at + LEVEL_F64] = Math.max(level - rate * seconds, 0);
      f64[at + BURST_LEVEL_F64] = Math.max(burstLevel - max * seconds, 0);
    }
  }

  #waitNs(index: number): number {
    const f64 = this.#f64;
    const at = BUCKETS_F64 + index * BUCKET_F64;
    const rate = f64[at + RATE_F64] as number;
    const max = f64[at + MAX_F64] as number;
    const length = f64[at + LENGTH_F64] as number;
    if (rate === 0) return 0;
    const room = max === 0 ? rate / SLACK : max * length;
    const over = (f64[at + LEVEL_F64] as number) - room;
    if (over > 0) return (over / rate) * NS_PER_SECOND;
    // Within a long burst its own rate is the limit.
    const burstOver = (f64[at + BURST_LEVEL_F64] as number) - max / SLACK;
    return length > 1 && burstOver > 0 ? (burstOver / max) * NS_PER_SECOND : 0;
  }

  #fill(index: number, units: number): void {
    const f64 = this.#f64;
    const at = BUCKETS_F64 + index * BUCKET_F64;
    f64[at + LEVEL_F64] = (f64[at + LEVEL_F64] as number) + units;
    if ((f64[at + LENGTH_F64] as number) > 1) {
      f64[at + BURST_LEVEL_F64] = (f64[at + BURST_LEVEL_F64] as number) + units;
    }
  }

  #lock(): void {
    while (Atomics.exchange(this.#i32, LOCK_I32, 1) !== 0) {
      Atomics.wait(this.#i32, LOCK_I32, 1, LOCK_WAIT_MS);
    }
  }

  #unlock(): void {
    Atomics.store(this.#i32, LOCK_I32, 0);
    Atomics.notify(this.#i32, LOCK_I32, 1);
  }
}
