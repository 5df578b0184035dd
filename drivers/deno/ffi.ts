/** Foreign calls and memory on Deno, by Deno.dlopen. Thread: any; each makes its own. */
import type { Ffi } from "../../src/runtime/driver.ts";

/** On musl the loader gives this name its own libc. */
const LIBC = "libc.so.6";

/** The part of Deno's global that this file needs; its own types are not in the type check. */
interface DenoFfi {
  dlopen(
    path: string,
    symbols: Record<string, { parameters: readonly string[]; result: string }>,
  ): { symbols: Record<string, any> };
  UnsafePointer: { create(address: bigint): unknown };
  UnsafePointerView: { getArrayBuffer(pointer: unknown, bytes: number): ArrayBuffer };
}

export function makeFfi(): Ffi {
  const { dlopen, UnsafePointer, UnsafePointerView } = (globalThis as unknown as { Deno: DenoFfi })
    .Deno;
  const wide = dlopen(LIBC, {
    syscall: { parameters: ["i64", "i64", "i64", "i64", "i64", "i64", "i64"], result: "i64" },
    __errno_location: { parameters: [], result: "pointer" },
  }).symbols;
  const narrow = dlopen(LIBC, {
    syscall: { parameters: ["u32", "u32", "u32", "u32", "u32", "u32", "u32"], result: "i32" },
  }).symbols;
  // SAFETY: the C library keeps this thread's errno at one place until the thread ends.
  const errno = new Int32Array(UnsafePointerView.getArrayBuffer(wide.__errno_location(), 4));
  const call: (...args: bigint[]) => bigint = wide.syscall;
  const call32: (...args: number[]) => number = narrow.syscall;
  return {
    syscall(number, a = 0, b = 0, c = 0, d = 0, e = 0, f = 0) {
      // A Number given for an i64 takes a path of V8 that is twice as slow.
      const result = Number(
        call(BigInt(number), BigInt(a), BigInt(b), BigInt(c), BigInt(d), BigInt(e), BigInt(f)),
      );
      return result === -1 ? -errno[0]! : result;
    },
    syscall32(number, a, b, c, d, e, f) {
      // Unsigned, so that an address above 2 GiB is not sign-extended.
      const result = call32(number, a >>> 0, b >>> 0, c >>> 0, d >>> 0, e >>> 0, f >>> 0);
      return result === -1 ? -errno[0]! : result;
    },
    view(address, bytes) {
      // SAFETY: the caller owns the mapping; nothing is freed with the ArrayBuffer.
      return UnsafePointerView.getArrayBuffer(UnsafePointer.create(BigInt(address)), bytes);
    },
  };
}
