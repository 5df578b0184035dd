/**
 * System calls of mounting. Those that may wait for the file system of a path are only described
 * here, to be run on a thread that may wait. Thread: any.
 */
import * as abi from "../abi/linux.ts";
import { AT_STATX_DONT_SYNC, O_PATH, STATX_MNT_ID, STATX_MNT_ID_AT } from "../abi/linux-mount.ts";
import { EINVAL, ENAMETOOLONG, ENOENT } from "./errno.ts";
import { readFileContent } from "./file-content.ts";
import type { Linux } from "./linux.ts";
import { type Mount, parseMountinfo } from "./mountinfo.ts";

/** A system call in waiting. A string is the address of that string, an object that of memory. */
export interface DeferredCall {
  readonly number: number;
  readonly args: readonly (number | string | { readonly bytes: number })[];
}

/** Which mount an open path leads to. */
export interface MountIdentity {
  /** Major × 2^20 + minor, as in FileStatus. */
  readonly dev: number;
  /** 0 when the kernel doesn't say. */
  readonly mountId: number;
}

export interface PlaceStatus extends MountIdentity {
  /** Its type is right, its permissions may be old. */
  readonly mode: number;
  /** Inexact from 2^53 on. */
  readonly ino: number;
}

/** Of an open file, for its own process: leads to the very file, whatever its path does. */
export function fdPath(fd: number): string {
  return `/proc/self/fd/${fd}`;
}

/** Opens the place, not the file: nobody is asked who serves it. Close-on-exec. */
export function openPathCall({ sys }: Linux, path: string): DeferredCall {
  return { number: sys.openat, args: [abi.AT_FDCWD, path, O_PATH | abi.O_CLOEXEC, 0] };
}

/** Its only output is a struct statx. */
export function statCall({ sys }: Linux, path: string): DeferredCall {
  const args = [abi.AT_FDCWD, path, 0, abi.STATX_BASIC_STATS, { bytes: abi.STATX_SIZE }];
  return { number: sys.statx, args };
}

/** st_mode of a struct statx. */
export function modeOf(statx: Uint8Array): number {
  return new DataView(statx.buffer, statx.byteOffset).getUint16(abi.STATX_MODE, true);
}

export function closeCall({ sys }: Linux, fd: number): DeferredCall {
  return { number: sys.close, args: [fd] };
}

export interface MountOptions {
  readonly source: string;
  readonly target: string;
  readonly type: string;
  /** MS_* */
  readonly flags: number;
  readonly data: string;
}

export function mountCall({ sys }: Linux, options: MountOptions): DeferredCall {
  const { source, target, type, flags, data } = options;
  return { number: sys.mount, args: [source, target, type, flags, data] };
}

/** `flags`: MNT_* */
export function unmountCall({ sys }: Linux, target: string, flags: number): DeferredCall {
  return { number: sys.umount2, args: [target, flags] };
}

/** For file systems that have nothing to wait for. */
export function unmountNow(linux: Linux, target: string, flags: number): number {
  const path = new TextEncoder().encode(target);
  return withMemory(linux, (address, u8) => {
    u8.set(path);
    return linux.ffi.syscall(linux.sys.umount2, address, flags);
  });
}

/** Asks nobody who serves the file. Returns a negative errno when it can't be known. */
export function identifyMount(linux: Linux, fd: number): PlaceStatus | number {
  return placeStatus(linux, fd, "");
}

/**
 * What is at a path, as far as that is known without asking who serves it: for threads that serve
 * files themselves. Follows symbolic links.
 */
export function statPlace(linux: Linux, path: string): PlaceStatus | number {
  return path === "" ? -ENOENT : placeStatus(linux, abi.AT_FDCWD, path);
}

function placeStatus(linux: Linux, dirFd: number, path: string): PlaceStatus | number {
  const bytes = new TextEncoder().encode(path);
  if (bytes.length >= PATH_MEMORY_BYTES) return -ENAMETOOLONG;
  if (bytes.includes(0)) return -EINVAL;
  const statx = withMemory(linux, (address, u8) => {
    u8.set(bytes);
    const flags = (path === "" ? abi.AT_EMPTY_PATH : 0) | AT_STATX_DONT_SYNC;
    const out = address + PATH_MEMORY_BYTES;
    // Nothing that must be valid is asked for: type and numbers of a file never change.
    const { ffi, sys } = linux;
    const result = ffi.syscall(sys.statx, dirFd, address, flags, STATX_MNT_ID, out);
    return result < 0 ? result : u8.slice(PATH_MEMORY_BYTES, PATH_MEMORY_BYTES + abi.STATX_SIZE);
  });
  if (typeof statx === "number") return statx;
  const view = new DataView(statx.buffer);
  const u32 = (at: number): number => view.getUint32(at, true);
  const u64 = (at: number): number => u32(at) + u32(at + 4) * 2 ** 32;
  const hasId = (u32(abi.STATX_MASK) & STATX_MNT_ID) !== 0;
  return {
    mode: modeOf(statx),
    ino: u64(abi.STATX_INO),
    dev: u32(abi.STATX_DEV_MAJOR) * 2 ** 20 + u32(abi.STATX_DEV_MINOR),
    mountId: hasId ? u64(STATX_MNT_ID_AT) : 0,
  };
}

/** The mounts that this process sees. None when the kernel doesn't tell. */
export function listMounts(linux: Linux): Mount[] {
  try {
    const bytes = readFileContent(linux, "/proc/self/mountinfo");
    return parseMountinfo(new TextDecoder().decode(bytes));
  } catch {
    return [];
  }
}

export function getuid({ ffi, sys }: Linux): number {
  return ffi.syscall32(sys.getuid, 0, 0, 0, 0, 0, 0);
}

export function getgid({ ffi, sys }: Linux): number {
  return ffi.syscall32(sys.getgid, 0, 0, 0, 0, 0, 0);
}

/** A path, then a page for what comes back. */
const PATH_MEMORY_BYTES = 4096;
const MEMORY_BYTES = 8192;

/** Zeroed memory for the time of one call. */
function withMemory<Result>(
  linux: Linux,
  use: (address: number, u8: Uint8Array) => Result,
): Result | number {
  const prot = abi.PROT_READ | abi.PROT_WRITE;
  const flags = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS;
  const address = linux.mmap(0, MEMORY_BYTES, prot, flags, -1, 0);
  if (address < 0) return address;
  // SAFETY: the view does not outlive `use`, which returns copies only.
  const result = use(address, new Uint8Array(linux.ffi.view(address, MEMORY_BYTES)));
  linux.munmap(address, MEMORY_BYTES);
  return result;
}
