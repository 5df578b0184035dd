/**
 * A few threads that run blocking system calls for one reactor. Jobs, the order in which they are
 * taken, and the order in which they end are in native memory; an eventfd that counts jobs wakes
 * the threads, another one wakes the reactor.
 * Thread: OffloadPool on the iothread, runOffload() on each offload thread.
 */
import { EFD_NONBLOCK, IOVEC_BASE, IOVEC_LEN, IOVEC_SIZE } from "../abi/linux.ts";
import type { Thread, ThreadDriver, ThreadStart } from "../runtime/driver.ts";
import { ECANCELED, EINTR, strerror } from "../runtime/errno.ts";
import { Linux } from "../runtime/linux.ts";
import { assert, OutportError } from "../util/error.ts";
import { CodecRunner } from "./codecs.ts";
import type { Token } from "./engine.ts";
import { Memory } from "./memory.ts";

/** Each costs a few megabytes; more than a disk's queue needs them only without io_uring. */
export const OFFLOAD_THREADS_MAX = 4;
/** Jobs that the threads can see; a power of two. What is beyond waits on the reactor's side. */
const JOBS_MAX = 256;
const ARGS_MAX = 6;
const EFD_SEMAPHORE = 1;
/** How long stop() waits: an idle thread needs microseconds, one that still starts up far more. */
const LEAVE_PATIENCE_MS = 2000;

// Positions in the shared memory, each word of the head in a cache line of its own.
const HEAD_SIZE = 256;
/** u32: jobs taken so far; threads add. */
const TAKEN_U32 = 0;
/** u32: jobs ended so far; threads add. */
const ENDED_U32 = 16;
/** u32: 1 from stop() on. */
const STOPPING_U32 = 32;
/** u32: threads that touch nothing of this any more; threads add. */
const LEFT_U32 = 48;
/** u32 × JOBS_MAX: job indexes + 1 in the order of submission; 0: none, or read by its thread. */
const SUBMISSIONS_U32 = HEAD_SIZE / 4;
/** u32 × JOBS_MAX: job indexes + 1 in the order of completion; 0: not there yet. */
const COMPLETIONS_U32 = SUBMISSIONS_U32 + JOBS_MAX;
const JOBS = HEAD_SIZE + 2 * JOBS_MAX * 4;
const JOB_SIZE = 128;
// Of a job: the number and arguments of the call, then its result, as f64; a struct iovec; words.
const JOB_CALL_F64 = 0;
const JOB_RESULT_F64 = 1 + ARGS_MAX;
const JOB_IOVEC = 64;
const JOB_STATE_U32 = (JOB_IOVEC + IOVEC_SIZE) / 4;
const JOB_TOKEN_U32 = JOB_STATE_U32 + 1;
const MEMORY_BYTES = Math.ceil((JOBS + JOBS_MAX * JOB_SIZE) / 4096) * 4096;

const QUEUED = 0;
const RUNNING = 1;
const CANCELLED = 2;

/** What an offload thread gets as its `data`. */
interface OffloadStart {
  readonly address: number;
  readonly bytes: number;
  /** A semaphore: its count is that of jobs not taken; and, after stop(), of threads not told. */
  readonly jobsFd: number;
  readonly eventFd: number;
}

/** A job that waits for its place in the shared memory. */
interface Waiting {
  readonly number: number;
  readonly args: readonly number[];
  readonly token: Token;
  /** The call takes a struct iovec as its second argument: these bytes at `args[1]`. */
  readonly vectorBytes: number;
  cancelled: boolean;
}

export interface OffloadPoolOptions {
  readonly linux: Linux;
  readonly driver: Pick<ThreadDriver, "startThread">;
  readonly threadsMax?: number;
  readonly leavePatienceMs?: number;
}

export class OffloadPool {
  /** Readable when jobs ended: then drain(). */
  readonly eventFd: number;
  #linux: Linux;
  #driver: Pick<ThreadDriver, "startThread">;
  #threadsMax: number;
  #leavePatienceMs: number;
  #threads: Thread[] = [];
  #memory: Memory;
  #start: OffloadStart;
  #submitted = 0;
  #completed = 0;
  /** Indexes of unused jobs. */
  #free: number[] = [];
  #waiting: Waiting[] = [];
  #stopped = false;

  constructor(options: OffloadPoolOptions) {
    this.#linux = options.linux;
    this.#driver = options.driver;
    this.#threadsMax = options.threadsMax ?? OFFLOAD_THREADS_MAX;
    this.#leavePatienceMs = options.leavePatienceMs ?? LEAVE_PATIENCE_MS;
    this.#memory = new Memory(options.linux, MEMORY_BYTES);
    this.eventFd = checked(options.linux.eventfd(0, EFD_NONBLOCK));
    const jobsFd = checked(options.linux.eventfd(0, EFD_SEMAPHORE));
    const { address, bytes } = this.#memory;
    this.#start = { address, bytes, jobsFd, eventFd: this.eventFd };
    for (let index = JOBS_MAX - 1; index >= 0; index--) this.#free.push(index);
  }

  /** Jobs not yet given to drain()'s handler. */
  get inFlight(): number {
    return JOBS_MAX - this.#free.length + this.#waiting.length;
  }

  /** Any system call, or a codec. Memory that it names stays valid until its completion. */
  submit(number: number, args: readonly number[], token: Token): void {
    this.#submit({ number, args, token, vectorBytes: 0, cancelled: false });
  }

  /** A call whose second argument is a struct iovec: one with `bytes` at `args[1]`. */
  submitVector(number: number, args: readonly number[], bytes: number, token: Token): void {
    this.#submit({ number, args, token, vectorBytes: bytes, cancelled: false });
  }

  /** A job that no thread has taken yet ends with -ECANCELED. Returns whether it is one. */
  cancel(token: Token): boolean {
    const { u32, i32 } = this.#memory;
    for (const waiting of this.#waiting) {
      if (waiting.token !== token) continue;
      waiting.cancelled = true;
      return true;
    }
    const free = new Set(this.#free);
    for (let index = 0; index < JOBS_MAX; index++) {
      const job = (JOBS + index * JOB_SIZE) / 4;
      if (u32[job + JOB_TOKEN_U32] !== token || free.has(index)) continue;
      return Atomics.compareExchange(i32, job + JOB_STATE_U32, QUEUED, CANCELLED) === QUEUED;
    }
    return false;
  }

  /** Gives each job that ended to `handler`, which may submit. Returns how many. */
  drain(handler: (token: Token, result: number) => void): number {
    const { u32, f64 } = this.#memory;
    // First the eventfd: a job that ends from here on makes it readable again.
    this.#linux.drainEventfd(this.eventFd);
    let count = 0;
    for (;;) {
      const slot = COMPLETIONS_U32 + (this.#completed & (JOBS_MAX - 1));
      const index = Atomics.load(u32, slot) - 1;
      if (index < 0) break;
      Atomics.store(u32, slot, 0);
      this.#completed = (this.#completed + 1) >>> 0;
      const job = JOBS + index * JOB_SIZE;
      const token = u32[job / 4 + JOB_TOKEN_U32]!;
      const result = f64[job / 8 + JOB_RESULT_F64]!;
      this.#free.push(index);
      while (this.#waiting.length > 0 && this.#hasPlace) this.#place(this.#waiting.shift()!);
      count++;
      handler(token, result);
    }
    return count;
  }

  /**
   * Ends the threads and frees what they share. This thread must not end before them: a runtime
   * stops the threads of a thread that ends wherever they are, but cannot while they wait in the
   * kernel. Returns false when one is stuck there; it keeps what it may yet touch. No method may be
   * called afterwards.
   */
  stop(): boolean {
    assert(!this.#stopped, "the offload pool stops once");
    this.#stopped = true;
    const { jobsFd } = this.#start;
    const { u32 } = this.#memory;
    Atomics.store(u32, STOPPING_U32, 1);
    // One for each: a thread that is woken from here on leaves, so it takes no other's wake-up.
    for (const _ of this.#threads) this.#linux.signalEventfd(jobsFd);
    if (!this.#allLeave()) return false;
    this.#linux.close(jobsFd);
    this.#linux.close(this.eventFd);
    // SAFETY: no thread is left that would look through a view, and this one doesn't.
    this.#memory.unmap();
    return true;
  }

  /** Waits until they did; false when one takes too long. */
  #allLeave(): boolean {
    for (let ms = 0; ms <= this.#leavePatienceMs; ms++) {
      if (Atomics.load(this.#memory.u32, LEFT_U32) === this.#threads.length) return true;
      // For no event: a millisecond's sleep. Their last act is to count, so they can't wake us.
      this.#linux.poll(this.eventFd, 0, 1);
    }
    return false;
  }

  #submit(waiting: Waiting): void {
    assert(!this.#stopped, "nothing is submitted after stop()");
    assert(waiting.args.length <= ARGS_MAX, "a system call has at most six arguments");
    const wanted = Math.min(this.inFlight + 1, this.#threadsMax);
    if (this.#threads.length < wanted) this.#startThread();
    if (this.#waiting.length > 0 || !this.#hasPlace) this.#waiting.push(waiting);
    else this.#place(waiting);
  }

  /**
   * Without one, jobs are under way: one of them ends later, and makes place. A thread that has
   * taken a job may be slow to read which, while the others get once around.
   */
  get #hasPlace(): boolean {
    const slot = SUBMISSIONS_U32 + (this.#submitted & (JOBS_MAX - 1));
    return this.#free.length > 0 && Atomics.load(this.#memory.u32, slot) === 0;
  }

  #startThread(): void {
    const thread = this.#driver.startThread("offload", this.#start);
    thread.unref();
    this.#threads.push(thread);
  }

  /** Makes a job visible to the threads. */
  #place({ number, args, token, vectorBytes, cancelled }: Waiting): void {
    const { address, u32, f64 } = this.#memory;
    const index = this.#free.pop()!;
    const job = JOBS + index * JOB_SIZE;
    f64[job / 8 + JOB_CALL_F64] = number;
    for (let i = 0; i < ARGS_MAX; i++) f64[job / 8 + JOB_CALL_F64 + 1 + i] = args[i] ?? 0;
    if (vectorBytes > 0) {
      this.#memory.setU64(job + JOB_IOVEC + IOVEC_BASE, args[1]!);
      this.#memory.setU64(job + JOB_IOVEC + IOVEC_LEN, vectorBytes);
      f64[job / 8 + JOB_CALL_F64 + 2] = address + job + JOB_IOVEC;
    }
    u32[job / 4 + JOB_TOKEN_U32] = token;
    u32[job / 4 + JOB_STATE_U32] = cancelled ? CANCELLED : QUEUED;
    // The thread that this wakes sees all of the above.
    Atomics.store(u32, SUBMISSIONS_U32 + (this.#submitted & (JOBS_MAX - 1)), index + 1);
    this.#submitted = (this.#submitted + 1) >>> 0;
    this.#linux.signalEventfd(this.#start.jobsFd);
  }
}

/** The body of an offload thread: returns after stop(). */
export async function runOffload(driver: ThreadDriver, { data }: ThreadStart): Promise<void> {
  const start = data as OffloadStart;
  const linux = new Linux(driver.ffi, driver.arch);
  linux.setThreadName("offload");
  // SAFETY: the mapping lives until all threads have left; this one doesn't touch it afterwards.
  const buffer = linux.ffi.view(start.address, start.bytes);
  const u32 = new Uint32Array(buffer);
  const f64 = new Float64Array(buffer);
  const codecs = new CodecRunner(linux.ffi);
  for (;;) {
    const woken = linux.drainEventfd(start.jobsFd);
    if (woken === -EINTR) continue;
    assert(woken === 1, "one wake-up is for one thread");
    // Jobs not taken by now are nobody's.
    if (Atomics.load(u32, STOPPING_U32) === 1) break;
    const order = Atomics.add(u32, TAKEN_U32, 1) & (JOBS_MAX - 1);
    const index = Atomics.exchange(u32, SUBMISSIONS_U32 + order, 0) - 1;
    const job = JOBS + index * JOB_SIZE;
    f64[job / 8 + JOB_RESULT_F64] = runJob(linux, codecs, u32, f64, job);
    const ended = Atomics.add(u32, ENDED_U32, 1) & (JOBS_MAX - 1);
    Atomics.store(u32, COMPLETIONS_U32 + ended, index + 1);
    linux.signalEventfd(start.eventFd);
  }
  // From here on the pool may free all of it.
  Atomics.add(u32, LEFT_U32, 1);
}

function runJob(
  linux: Linux,
  codecs: CodecRunner,
  u32: Uint32Array,
  f64: Float64Array,
  job: number,
): number {
  const state = job / 4 + JOB_STATE_U32;
  if (Atomics.compareExchange(u32, state, QUEUED, RUNNING) !== QUEUED) return -ECANCELED;
  const at = job / 8 + JOB_CALL_F64;
  if (f64[at]! < 0) return codecs.run(f64[at]!, f64.subarray(at + 1, at + 1 + ARGS_MAX));
  for (;;) {
    const result = linux.ffi.syscall(
      f64[at]!,
      f64[at + 1],
      f64[at + 2],
      f64[at + 3],
      f64[at + 4],
      f64[at + 5],
      f64[at + 6],
    );
    if (result !== -EINTR) return result;
  }
}

function checked(fd: number): number {
  if (fd < 0) throw new OutportError("limit", `Cannot create an eventfd: ${strerror(-fd)}`);
  return fd;
}
