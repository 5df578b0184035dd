import { describe, expect, test } from "bun:test";
import * as abi from "../../../src/abi/linux.ts";
import { SYSCALLS } from "../../../src/abi/syscalls.ts";
import { EBADF, EINVAL } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const { ffi } = driver;
const sys = SYSCALLS[driver.arch];
const linux = new Linux(ffi, driver.arch);

function mapped(bytes: number, flags = 0, hint = 0): number {
  const all = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | flags;
  return linux.mmap(hint, bytes, abi.PROT_READ | abi.PROT_WRITE, all, -1, 0);
}

/** A file in memory, which keeps any offset that it is told. */
function memoryFile(): number {
  return ffi.syscall(sys.memfd_create, mapped(4096), 0);
}

describe("ffi", () => {
  test("syscall() and syscall32() return the negated errno, and never another call's", () => {
    const fd = memoryFile();
    const wrong: number[] = [];
    for (let i = 0; i < 20_000; i++) {
      // Allocates, so that the collector has something to do in between.
      const noise = new Array(i % 50).fill({ i });
      if (ffi.syscall(sys.close, -1) !== -EBADF) wrong.push(i);
      if (ffi.syscall32(sys.close, -1, 0, 0, 0, 0, 0) !== -EBADF) wrong.push(i);
      if (ffi.syscall(sys.lseek, fd, noise.length, 77) !== -EINVAL) wrong.push(i);
      if (ffi.syscall32(sys.lseek, fd, 0, 77, 0, 0, 0) !== -EINVAL) wrong.push(i);
    }
    expect(wrong).toEqual([]);
    linux.close(fd);
  });

  test("syscall() passes and returns safe integers exactly", () => {
    const fd = memoryFile();
    const offsets = [0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 52, 2 ** 53 - 1];
    for (const offset of offsets) expect(ffi.syscall(sys.lseek, fd, offset, 0)).toBe(offset);
    for (const offset of [-1, -(2 ** 31), -(2 ** 40)]) {
      expect(ffi.syscall(sys.lseek, fd, offset, 0)).toBe(-EINVAL);
    }
    linux.close(fd);
  });

  test("syscall32() passes addresses above 2 GiB unsigned", () => {
    const hint = 0xc000_0000;
    const address = mapped(4096, abi.MAP_FIXED_NOREPLACE, hint);
    expect(address).toBe(hint);
    const fd = memoryFile();
    new Uint8Array(ffi.view(address, 4096)).fill(7);
    expect(ffi.syscall32(sys.write, fd, address, 4096, 0, 0, 0)).toBe(4096);
    expect(linux.munmap(address, 4096)).toBe(0);
    linux.close(fd);
  });

  test("syscall() treats missing arguments as 0", () => {
    expect(ffi.syscall(sys.getpid)).toBe(driver.process.pid);
  });

  test("view() aliases the memory, twice and unaligned", () => {
    const address = mapped(8192);
    const whole = new Uint8Array(ffi.view(address, 8192));
    const part = new Uint8Array(ffi.view(address + 1001, 10));
    whole[1002] = 42;
    expect(part[1]).toBe(42);
    part[0] = 43;
    expect(whole[1001]).toBe(43);
    expect(part.byteLength).toBe(10);
  });
});

describe("clock", () => {
  test("nowNs() is monotonic and counts nanoseconds", async () => {
    const startMs = performance.now();
    const start = driver.clock.nowNs();
    await new Promise((resolve) => setTimeout(resolve, 20));
    const elapsed = driver.clock.nowNs() - start;
    expect(elapsed).toBeGreaterThan(15e6);
    expect(elapsed).toBeLessThan((performance.now() - startMs + 1) * 1e6);
    expect(Number.isSafeInteger(driver.clock.nowNs())).toBe(true);
  });
});
