/** OffloadPool with real threads. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { F_GETFD, POLLIN } from "../../../src/abi/linux.ts";
import { Memory } from "../../../src/io/memory.ts";
import { OFFLOAD_THREADS_MAX, OffloadPool } from "../../../src/io/offload.ts";
import { EBADF, ECANCELED } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const PATIENCE_MS = 10_000;

describe("OffloadPool", () => {
  let memory: Memory;
  let pipe: { readFd: number; writeFd: number };
  let threads: number;
  let pool: OffloadPool;
  const results = new Map<number, number>();

  beforeEach(() => {
    memory = new Memory(linux, 4096);
    const made = linux.pipe();
    if (typeof made === "number") throw new Error("no pipe");
    pipe = made;
    threads = 0;
    results.clear();
    const startThread: typeof driver.startThread = (kind, data) => {
      threads++;
      return driver.startThread(kind, data);
    };
    pool = new OffloadPool({ linux, driver: { startThread } });
  });
  afterEach(() => {
    linux.close(pipe.readFd);
    linux.close(pipe.writeFd);
    memory.unmap();
  });

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
  const closed = async (fd: number) => {
    for (let i = 0; i < PATIENCE_MS / 10 && linux.fcntl(fd, F_GETFD) >= 0; i++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return linux.fcntl(fd, F_GETFD);
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

  test("stop() waits for no thread; the last one frees what they share", async () => {
    block(1);
    block(2);
    const { eventFd } = pool;
    pool.stop();
    expect(linux.fcntl(eventFd, F_GETFD)).toBeGreaterThanOrEqual(0);
    unblock(2).toBe(2);
    expect(await closed(eventFd)).toBe(-EBADF);
  });

  test("stop() without threads frees at once", () => {
    pool.stop();
    expect(threads).toBe(0);
    expect(linux.fcntl(pool.eventFd, F_GETFD)).toBe(-EBADF);
  });
});
