/**
 * The pid file: locked for as long as the process lives, so that a second one refuses to start.
 * Thread: main. Spec: QEMU util/oslib-posix.c qemu_write_pidfile()
 */
import {
  F_WRLCK,
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  O_CREAT,
  O_RDWR,
  PROT_READ,
  PROT_WRITE,
} from "../abi/linux.ts";
import { strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { assert, OutportError } from "../util/error.ts";

const MODE = 0o600;
const PAGE_BYTES = 4096;
/** How often a file that another process just removed is made anew. */
const ATTEMPTS_MAX = 10;

/** Returns what removes the file. Throws an OutportError. */
export function writePidfile(linux: Linux, path: string, pid: number): () => void {
  const fd = openLocked(linux, path);
  check(linux.ftruncate(fd, 0), "Failed to truncate pid file");
  check(writeText(linux, fd, `${pid}\n`), "Failed to write pid file");
  return () => {
    linux.unlink(path);
    linux.close(fd);
  };
}

function openLocked(linux: Linux, path: string): number {
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
    const fd = linux.open(path, O_CREAT | O_RDWR, MODE);
    check(fd, `Could not create '${path}'`);
    const locked = linux.setLock(fd, F_WRLCK, 0, 0);
    if (locked < 0) linux.close(fd);
    check(locked, "Cannot lock pid file");
    // Its owner may have removed it between open and lock.
    const mine = linux.fstat(fd);
    const named = linux.stat(path);
    const same = typeof mine !== "number" && typeof named !== "number" && mine.ino === named.ino;
    if (same) return fd;
    linux.close(fd);
  }
  throw new OutportError("io", `Could not create '${path}': it is removed again and again`);
}

function writeText(linux: Linux, fd: number, text: string): number {
  const bytes = new TextEncoder().encode(text);
  assert(bytes.length <= PAGE_BYTES, "a pid is short");
  const flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const address = linux.mmap(0, PAGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (address < 0) return address;
  // SAFETY: the view is not used beyond this function, which unmaps the page.
  new Uint8Array(linux.ffi.view(address, PAGE_BYTES)).set(bytes);
  const result = linux.pwrite(fd, address, bytes.length, 0);
  linux.munmap(address, PAGE_BYTES);
  return result;
}

function check(result: number, what: string): void {
  if (result < 0) throw new OutportError("io", `${what}: ${strerror(-result)}`);
}
