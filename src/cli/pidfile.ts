/**
 * The pid file: locked for as long as the process lives, so that a second one refuses to start.
 * Thread: main. Spec: QEMU util/oslib-posix.c qemu_write_pidfile()
 */
import { F_WRLCK, O_CREAT, O_RDWR } from "../abi/linux.ts";
import { strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { writeText } from "../runtime/text-file.ts";
import { OutportError } from "../util/error.ts";

const MODE = 0o600;
const WHAT = "cannot create PID file";
/** How often a file that another process just removed is made anew. */
const ATTEMPTS_MAX = 10;

/** Returns what removes the file. Throws an OutportError. */
export function writePidfile(linux: Linux, path: string, pid: number): () => void {
  const fd = openLocked(linux, path);
  check(linux.ftruncate(fd, 0), "Failed to truncate pid file");
  check(writeText(linux, fd, `${pid}\n`), "Failed to write pid file");
  let isThere = true;
  return () => {
    // Once: afterwards the name may be another process's.
    if (!isThere) return;
    isThere = false;
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
  throw new OutportError(
    "io",
    `${WHAT}: Could not create '${path}': it is removed again and again`,
  );
}

function check(result: number, what: string): void {
  if (result < 0) throw new OutportError("io", `${WHAT}: ${what}: ${strerror(-result)}`);
}
