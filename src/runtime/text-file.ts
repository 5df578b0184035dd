/** Text to a file by its descriptor, at once. Thread: any. */
import { MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../abi/linux.ts";
import type { TraceOutput } from "../util/trace.ts";
import type { ThreadDriver } from "./driver.ts";
import type { Linux } from "./linux.ts";

const PAGE_BYTES = 4096;

/** Appends where the descriptor stands. Returns the bytes written, or a negative errno. */
export function writeText(linux: Linux, fd: number, text: string): number {
  const bytes = new TextEncoder().encode(text);
  const length = Math.max(PAGE_BYTES, bytes.length);
  const flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const address = linux.mmap(0, length, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (address < 0) return address;
  // SAFETY: the view is not used beyond this function, which unmaps the memory.
  new Uint8Array(linux.ffi.view(address, length)).set(bytes);
  const result = linux.write(fd, address, bytes.length);
  linux.munmap(address, length);
  return result;
}

/** How the thread of this driver writes what it traces. */
export function traceOutput(driver: ThreadDriver, linux: Linux): TraceOutput {
  return {
    stderr: driver.stderr,
    file: (fd, text) => void writeText(linux, fd, text),
    realTimeUs: driver.clock.realTimeUs,
  };
}
