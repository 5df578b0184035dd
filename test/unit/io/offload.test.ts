/** OffloadPool with real threads. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { POLLIN } from "../../../src/abi/linux.ts";
import { Memory } from "../../../src/io/memory.ts";
import { OFFLOAD_THREADS_MAX, OffloadPool, runOffload } from "../../../src/io/offload.ts";
import type { Thread } from "../../../src/runtime/driver.ts";
import { ECANCELED } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const PATIENCE_MS = 45_000;
/** Words of the shared memory. */
const TAKEN_U32 = 0;
const ENDED_U32 = 16;
/** Jobs that threads can see. */
const JOBS_MAX = 256;

/** What tells an eventfd from all others of the host; undefined when `fd` is none. */
function eventfdId(fd: number): string | undefined {
  try {
    return /^eventfd-id:.*$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[0];
  } catch {
    return undefined; // Closed.
  }
}

describe("OffloadPool", () => {
  let memory: Memory;
  let pipe: { readFd: number; writeFd: number };
  let threads: number;
  /** What its threads got. */
  let shared: { address: number; bytes: number; jobsFd: number; eventFd: number };
  let pool: OffloadPool;
  const results = new Map<number, number>();

  beforeEach(() => {
    memory = new Memory(linux, 4096);
    const made = linux.pipe();
    if (typeof made === "number") throw new Error("no pipe");
    pipe = made;
    threads = 0;
    results.clear();
    pool = makePool();
  });
  afterEach(() => {
    linux.close(pipe.readFd);
    linux.close(pipe.writeFd);
    memory.unmap();
  });

  const makePool = (options: { leavePatienceMs?: number } = {}) => {
    const startThread: typeof driver.startThread = (kind, data) => {
      threads++;
      shared = data as typeof shared;
      return driver.startThread(kind, data);
    };
    return new OffloadPool({ linux, driver: { startThread }, ...options });
  };
  const block = (token: number) =>
    pool.submit(linux.sys.read, [pipe.readFd, memory.address, 1], token);
  const unblock = (count: number) => expect(linux.write(pipe.writeFd, memory.address, count));
  const finish = (count: number) => {
    while (results.size < count) {
      if (linux.poll(pool.eventFd, POLLIN, PATIENCE_MS) === 0) throw new Error("No job ends");
      pool.drain((token, result) => {
        expect(results.has(token)).toBe(false);
        results.set(token, result);
      });
    }
  };
  test("starts threads as jobs need them, up to a limit", () => {
    expect(threads).toBe(0);
    for (let job = 1; job <= OFFLOAD_THREADS_MAX; job++) {
      block(job);
      expect(threads).toBe(job);
    }
    block(100);
    expect(threads).toBe(OFFLOAD_THREADS_MAX);
    unblock(OFFLOAD_THREADS_MAX + 1).toBe(OFFLOAD_THREADS_MAX + 1);
    finish(OFFLOAD_THREADS_MAX + 1);
    expect([...results.values()].every((result) => result === 1)).toBe(true);
    expect(pool.inFlight).toBe(0);
    pool.stop();
  });

  test("cancel() ends what no thread has taken, and leaves the rest", () => {
    const count = 2000;
    for (let token = 0; token < count; token++) block(token);
    // One that threads can see, and one that waits for room.
    expect(pool.cancel(200)).toBe(true);
    expect(pool.cancel(1999)).toBe(true);
    expect(pool.cancel(5000)).toBe(false);
    unblock(count - 2).toBe(count - 2);
    finish(count);
    const cancelled = [...results].filter(([, result]) => result !== 1);
    expect(cancelled).toEqual([
      [200, -ECANCELED],
      [1999, -ECANCELED],
    ]);
    expect(pool.cancel(200)).toBe(false);
    pool.stop();
  });

  test("a thread that is slow to read which job it has taken gets that job", async () => {
    // This thread is one of them; the others go around as far as they can while it is slow.
    const count = 3 * JOBS_MAX;
    const here: Thread = {
      send: () => {},
      onMessage: () => {},
      onError: () => {},
      onExit: () => {},
      unref: () => {},
    };
    const startThread: typeof driver.startThread = (kind, data) => {
      shared = data as typeof shared;
      return ++threads === 1 ? here : driver.startThread(kind, data);
    };
    pool = new OffloadPool({ linux, driver: { startThread }, leavePatienceMs: 0 });
    pool.submit(linux.sys.getppid, [], 0);
    let waits = 0;
    const syscall: typeof driver.ffi.syscall = (number, ...args) => {
      if (number === linux.sys.prctl) return 0;
      const isWait = number === linux.sys.read && args[0] === shared.jobsFd;
      if (isWait && ++waits > 1) throw new Error("one job is enough");
      return driver.ffi.syscall(number, ...args);
    };
    const { add } = Atomics;
    const onTaken = () => {
      Atomics.add = add;
      for (let token = 1; token < count; token++) pool.submit(linux.sys.getppid, [], token);
      finish(JOBS_MAX - 1);
    };
    Atomics.add = ((...args: Parameters<typeof add>) => {
      const before = add(...args);
      if (args[1] === TAKEN_U32) onTaken();
      return before;
    }) as typeof add;
    const start = { data: shared, receive: () => undefined, send: () => {} };
    const thread = runOffload({ ...driver, ffi: { ...driver.ffi, syscall } }, start);
    await expect(thread).rejects.toThrow("one job is enough");
    finish(count);
    expect([...results.values()].every((result) => result > 0)).toBe(true);
    expect(pool.inFlight).toBe(0);
    pool.stop();
  });

  test("stop() returns when all threads have left, and frees what they shared", () => {
    // Some still start, some wait for jobs: each must hear of it.
    for (let round = 0; round < 10; round++) {
      const each = makePool({ leavePatienceMs: PATIENCE_MS });
      const jobs = 1 + (round % OFFLOAD_THREADS_MAX);
      for (let job = 0; job < jobs; job++) each.submit(linux.sys.getppid, [], job);
      for (let ended = 0; round % 2 === 0 && ended < jobs; ) {
        if (linux.poll(each.eventFd, POLLIN, PATIENCE_MS) === 0) throw new Error("No job ends");
        ended += each.drain(() => {});
      }
      const { jobsFd, eventFd } = shared;
      const ids = [jobsFd, eventFd].map(eventfdId);
      expect(ids).not.toContain(undefined);
      expect(each.stop()).toBe(true);
      // The runtime may have put something else there.
      expect(eventfdId(jobsFd)).not.toBe(ids[0]);
      expect(eventfdId(eventFd)).not.toBe(ids[1]);
    }
  });

  test("stop() leaves behind what is stuck in the kernel, with all that it may touch", () => {
    pool = makePool({ leavePatienceMs: 200 });
    block(1);
    block(2);
    const words = new Uint32Array(linux.ffi.view(shared.address, shared.bytes));
    const reaches = (at: number, count: number) => {
      for (let i = 0; i < PATIENCE_MS && Atomics.load(words, at) < count; i++) {
        linux.poll(pipe.writeFd, 0, 1);
      }
      expect(Atomics.load(words, at)).toBe(count);
    };
    reaches(TAKEN_U32, 2);
    const id = eventfdId(pool.eventFd);
    expect(pool.stop()).toBe(false);
    expect(eventfdId(pool.eventFd)).toBe(id);
    unblock(2).toBe(2);
    reaches(ENDED_U32, 2);
  });

  test("stop() without threads frees at once", () => {
    const { eventFd } = pool;
    const id = eventfdId(eventFd);
    expect(pool.stop()).toBe(true);
    expect(threads).toBe(0);
    expect(eventfdId(eventFd)).not.toBe(id);
  });
});
