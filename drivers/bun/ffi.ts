/** Foreign calls and memory on Bun, by bun:ffi. Thread: any; each makes its own. */
import { dlopen, FFIType, type Pointer, toArrayBuffer } from "bun:ffi";
import type { Ffi } from "../../src/runtime/driver.ts";

/** On musl the loader gives this name its own libc. */
const LIBC = "libc.so.6";

/** Takes and gives Numbers, and BigInts only beyond 2^53. */
const i64 = FFIType.i64_fast;

export function makeFfi(): Ffi {
  const wide = dlopen(LIBC, {
    syscall: {
      args: [i64, i64, i64, i64, i64, i64, i64],
      returns: i64,
    },
    __errno_location: { args: [], returns: "ptr" },
  }).symbols;
  const narrow = dlopen(LIBC, {
    syscall: { args: ["u32", "u32", "u32", "u32", "u32", "u32", "u32"], returns: "i32" },
  }).symbols;
  // SAFETY: the C library keeps this thread's errno at one place until the thread ends.
  const errno = new Int32Array(toArrayBuffer(wide.__errno_location()!, 0, 4));
  const call = wide.syscall as unknown as (...args: number[]) => number;
  const call32 = narrow.syscall as unknown as (...args: number[]) => number;
  return {
    syscall(number, a = 0, b = 0, c = 0, d = 0, e = 0, f = 0) {
      const result = call(number, a, b, c, d, e, f);
      return result === -1 ? -errno[0]! : result;
    },
    syscall32(number, a, b, c, d, e, f) {
      // Unsigned, so that an address above 2 GiB is not sign-extended.
      const result = call32(number, a >>> 0, b >>> 0, c >>> 0, d >>> 0, e >>> 0, f >>> 0);
      return result === -1 ? -errno[0]! : result;
    },
    view(address, bytes) {
      // SAFETY: the caller owns the mapping; without a deallocator nothing is freed with it.
      return toArrayBuffer(address as Pointer, 0, bytes);
    },
  };
}
