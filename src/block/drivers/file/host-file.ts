/**
 * Opening a host file or device, and its facts. In QSD's words where it fails. Thread: iothread;
 * these calls are rare, short and synchronous.
 * Spec: QEMU block/file-posix.c
 */
import {
  BLKROGET,
  BLKSSZGET,
  O_ACCMODE,
  O_DIRECT,
  O_RDONLY,
  O_RDWR,
  S_IFBLK,
  S_IFCHR,
  S_IFIFO,
  S_IFMT,
  S_IFREG,
  SEEK_END,
} from "../../../abi/linux.ts";
import {
  EACCES,
  EDEADLK,
  EINVAL,
  ENOENT,
  EPERM,
  EROFS,
  ESTALE,
  strerror,
} from "../../../runtime/errno.ts";
import type { FileStatus, Linux } from "../../../runtime/linux.ts";
import { statPlace } from "../../../runtime/linux-mount.ts";
import { type ErrorKind, OutportError } from "../../../util/error.ts";
import { LENGTH_MAX } from "../../description.ts";

export type FileDriver = "file" | "host_device";

export interface OpenMode {
  readonly writable: boolean;
  /** Around the page cache. */
  readonly direct: boolean;
}

/** A file just opened, of the kind that the driver wants. */
export interface HostFile {
  readonly fd: number;
  readonly status: FileStatus;
}

/** Throws OutportError; nothing stays open then. */
export function openHostFile(
  linux: Linux,
  driver: FileDriver,
  filename: string,
  mode: OpenMode & {
    /** Device numbers of the files that this process serves itself. */
    readonly served?: readonly number[];
  },
): HostFile {
  const before = statPlace(linux, filename);
  if (typeof before !== "number") {
    // Without a writer on its other side, opening one for reading would never return.
    if (typeOf(before) === S_IFIFO) throw wrongType(driver, filename);
    // QSD differs: it waits for itself, for ever.
    if (mode.served?.includes(before.dev) === true) {
      throw hostError(`Could not open '${filename}'`, -EDEADLK);
    }
  }
  const fd = openOrThrow(linux, filename, filename, mode);
  return closingOnError(linux, fd, () => {
    if (mode.writable) checkDeviceWritable(linux, fd);
    const status = statusOf(linux, fd);
    const type = typeOf(status);
    const fits = driver === "file" ? type === S_IFREG : type === S_IFBLK || type === S_IFCHR;
    if (!fits) throw wrongType(driver, filename);
    return { fd, status };
  });
}

/** The file of `fd` once more, whatever its name leads to by now. Throws OutportError. */
export function reopenHostFile(
  linux: Linux,
  fd: number,
  filename: string,
  mode: OpenMode,
): HostFile {
  // QSD differs: it opens the name again, which may be another file's since.
  const self = `/proc/self/fd/${fd}`;
  const hasProc = typeof linux.stat(self) !== "number";
  const newFd = openOrThrow(linux, hasProc ? self : filename, filename, mode);
  return closingOnError(linux, newFd, () => {
    if (!hasProc && !isSameFile(linux, fd, newFd)) {
      throw hostError(`Could not open '${filename}'`, -ESTALE);
    }
    if (mode.writable) checkDeviceWritable(linux, newFd);
    return { fd: newFd, status: statusOf(linux, newFd) };
  });
}

/** Length of a file or device as it is now; throws OutportError. */
export function hostFileBytes(linux: Linux, fd: number): number {
  const bytes = linux.lseek(fd, 0, SEEK_END);
  if (bytes < 0) throw hostError("Could not refresh total sector count", bytes);
  if (bytes > LENGTH_MAX) {
    throw new OutportError("limit", "Could not refresh total sector count: File too large");
  }
  return bytes;
}

export function isBlockDevice(status: FileStatus): boolean {
  return typeOf(status) === S_IFBLK;
}

/** Smallest write of a block device; 1 for others. */
export function logicalBlockBytes(linux: Linux, fd: number): number {
  const bytes = linux.ioctlGet(fd, BLKSSZGET);
  return bytes > 0 ? bytes : 1;
}

/** An error of the host in words: "what: why". */
export function hostError(what: string, result: number): OutportError {
  return new OutportError(kindOf(result), `${what}: ${strerror(result)}`);
}

function closingOnError<Result>(linux: Linux, fd: number, action: () => Result): Result {
  try {
    return action();
  } catch (error) {
    linux.close(fd);
    throw error;
  }
}

function openOrThrow(linux: Linux, path: string, filename: string, mode: OpenMode): number {
  const flags = (mode.writable ? O_RDWR : O_RDONLY) | (mode.direct ? O_DIRECT : 0);
  const fd = linux.open(path, flags);
  if (fd >= 0) return fd;
  if (fd === -EINVAL && mode.direct) {
    const buffered = linux.open(path, flags & O_ACCMODE);
    if (buffered >= 0) {
      linux.close(buffered);
      const why = "filesystem does not support O_DIRECT";
      throw new OutportError("unsupported", `Could not open '${filename}': ${why}`);
    }
  }
  throw hostError(`Could not open '${filename}'`, fd);
}

/** A block device can be read-only although its file opens for writing. */
function checkDeviceWritable(linux: Linux, fd: number): void {
  if (linux.ioctlGet(fd, BLKROGET) > 0) throw hostError("The device is not writable", -EACCES);
}

function isSameFile(linux: Linux, fd: number, other: number): boolean {
  const [a, b] = [linux.fstat(fd), linux.fstat(other)];
  if (typeof a === "number" || typeof b === "number") return false;
  return a.dev === b.dev && a.ino === b.ino;
}

function statusOf(linux: Linux, fd: number): FileStatus {
  const status = linux.fstat(fd);
  if (typeof status === "number") throw hostError("Could not stat file", status);
  return status;
}

function typeOf(status: Pick<FileStatus, "mode">): number {
  return status.mode & S_IFMT;
}

function wrongType(driver: FileDriver, filename: string): OutportError {
  const wanted = driver === "file" ? "a regular file" : "either a character or block device";
  return new OutportError("invalid", `'${driver}' driver requires '${filename}' to be ${wanted}`);
}

function kindOf(result: number): ErrorKind {
  if (result === -ENOENT) return "not-found";
  if (result === -EACCES || result === -EPERM || result === -EROFS) return "permission";
  return "io";
}
