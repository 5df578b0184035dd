/**
 * Linux system calls with types. Each returns its result, or a negative errno; none throws.
 * Thread: any; each makes its own. Memory is given by address and must be native, mapped memory:
 * the address of an array of the language's own heap is no safe thing to give to a kernel.
 */

import { KEYCTL_READ } from "../abi/keyctl.ts";
import * as abi from "../abi/linux.ts";
import { SOCKADDR_SIZE_MAX } from "../abi/linux-socket.ts";
import { type Arch, SYSCALLS, type Syscalls } from "../abi/syscalls.ts";
import type { Ffi } from "./driver.ts";
import { EINVAL, ENAMETOOLONG } from "./errno.ts";
import { decodeSocketName, encodeSocketName, type SocketName } from "./sockaddr.ts";

/** What statx() says of an open file. */
export interface FileStatus {
  /** Type (S_IF*) and permissions. */
  readonly mode: number;
  /** Length of a regular file; 0 for a device. */
  readonly bytes: number;
  /** Allocated, in units of 512. */
  readonly blocks: number;
  /** Inexact from 2^53 on. */
  readonly ino: number;
  /** Major × 2^20 + minor, as `rdev`. */
  readonly dev: number;
  /** Of a device file. */
  readonly rdev: number;
  readonly blockSize: number;
  /** When content or attributes changed last: microseconds since 1970. */
  readonly changeTimeUs: number;
  /** Alignments that O_DIRECT asks of memory and of file offsets; 0 when the host doesn't say. */
  readonly directMemoryAlignment: number;
  readonly directOffsetAlignment: number;
}

/** Pages of a file range in the host's cache. */
export interface CacheStatus {
  readonly cached: number;
  readonly dirty: number;
  readonly writeback: number;
}

const PATH_BYTES_MAX = 4095;
// The scratch mapping: two paths, one struct.
const SCRATCH_PATH = 0;
const SCRATCH_PATH2 = 4096;
const SCRATCH_STRUCT = 8192;
const SCRATCH_LENGTH = 8192 + 2048;
const SCRATCH_BYTES = 12288;
const U32_RANGE = 0x1_0000_0000;

export class Linux {
  readonly arch: Arch;
  /** Numbers for `ffi.syscall` and `IoEngine.call`. */
  readonly sys: Syscalls;
  readonly #ffi: Ffi;
  /** Small arguments go through here; no call keeps it beyond its return. */
  readonly #scratch: number;
  readonly #u8: Uint8Array;
  readonly #view: DataView;

  constructor(ffi: Ffi, arch: Arch) {
    this.#ffi = ffi;
    this.arch = arch;
    this.sys = SYSCALLS[arch];
    const prot = abi.PROT_READ | abi.PROT_WRITE;
    const address = this.mmap(0, SCRATCH_BYTES, prot, abi.MAP_PRIVATE | abi.MAP_ANONYMOUS, -1, 0);
    if (address < 0) throw new Error("Cannot map scratch memory");
    this.#scratch = address;
    // SAFETY: never unmapped; the object lives as long as its thread.
    const buffer = ffi.view(address, SCRATCH_BYTES);
    this.#u8 = new Uint8Array(buffer);
    this.#view = new DataView(buffer);
  }

  get ffi(): Ffi {
    return this.#ffi;
  }

  // Files.

  /** Close-on-exec always. */
  open(path: string, flags: number, mode = 0): number {
    return this.openat(abi.AT_FDCWD, path, flags, mode);
  }

  openat(dirFd: number, path: string, flags: number, mode = 0): number {
    const address = this.#path(path, SCRATCH_PATH);
    if (address < 0) return address;
    const native = this.#openFlagsToHost(flags | abi.O_CLOEXEC);
    return this.#ffi.syscall(this.sys.openat, dirFd, address, native, mode);
  }

  close(fd: number): number {
    return this.#ffi.syscall32(this.sys.close, fd, 0, 0, 0, 0, 0);
  }

  read(fd: number, address: number, bytes: number): number {
    return this.#ffi.syscall(this.sys.read, fd, address, bytes);
  }

  write(fd: number, address: number, bytes: number): number {
    return this.#ffi.syscall(this.sys.write, fd, address, bytes);
  }

  pread(fd: number, address: number, bytes: number, offset: number): number {
    return this.#ffi.syscall(this.sys.pread64, fd, address, bytes, offset);
  }

  pwrite(fd: number, address: number, bytes: number, offset: number): number {
    return this.#ffi.syscall(this.sys.pwrite64, fd, address, bytes, offset);
  }

  /** `iov` is the address of `count` struct iovec. `flags`: RWF_*. */
  preadv2(fd: number, iov: number, count: number, offset: number, flags: number): number {
    return this.#ffi.syscall(this.sys.preadv2, fd, iov, count, offset, 0, flags);
  }

  pwritev2(fd: number, iov: number, count: number, offset: number, flags: number): number {
    return this.#ffi.syscall(this.sys.pwritev2, fd, iov, count, offset, 0, flags);
  }

  lseek(fd: number, offset: number, whence: number): number {
    return this.#ffi.syscall(this.sys.lseek, fd, offset, whence);
  }

  fstat(fd: number): FileStatus | number {
    return this.#statx(fd, "", abi.AT_EMPTY_PATH);
  }

  /** Follows symbolic links. */
  stat(path: string): FileStatus | number {
    return this.#statx(abi.AT_FDCWD, path, 0);
  }

  /** A file in memory. `flags`: MFD_*. */
  memfdCreate(name: string, flags: number): number {
    const address = this.#path(name, SCRATCH_PATH);
    return address < 0 ? address : this.#ffi.syscall(this.sys.memfd_create, address, flags);
  }

  ftruncate(fd: number, bytes: number): number {
    return this.#ffi.syscall(this.sys.ftruncate, fd, bytes);
  }

  fallocate(fd: number, mode: number, offset: number, bytes: number): number {
    return this.#ffi.syscall(this.sys.fallocate, fd, mode, offset, bytes);
  }

  fsync(fd: number): number {
    return this.#ffi.syscall32(this.sys.fsync, fd, 0, 0, 0, 0, 0);
  }

  fdatasync(fd: number): number {
    return this.#ffi.syscall32(this.sys.fdatasync, fd, 0, 0, 0, 0, 0);
  }

  /** An offset of -1: the end has none (a pipe), or goes by the file's own position. */
  splice(
    inFd: number,
    inOffset: number,
    outFd: number,
    outOffset: number,
    bytes: number,
    flags: number,
  ): number {
    const inAddress = inOffset < 0 ? 0 : this.#u64(SCRATCH_STRUCT, inOffset);
    const outAddress = outOffset < 0 ? 0 : this.#u64(SCRATCH_STRUCT + 8, outOffset);
    return this.#ffi.syscall(this.sys.splice, inFd, inAddress, outFd, outAddress, bytes, flags);
  }

  sendfile(outFd: number, inFd: number, offset: number, bytes: number): number {
    const address = this.#u64(SCRATCH_STRUCT, offset);
    return this.#ffi.syscall(this.sys.sendfile, outFd, inFd, address, bytes);
  }

  cachestat(fd: number, offset: number, bytes: number): CacheStatus | number {
    const at = SCRATCH_STRUCT;
    const range = this.#u64(at, offset);
    this.#u64(at + 8, bytes);
    const out = at + abi.CACHESTAT_RANGE_SIZE;
    const result = this.#ffi.syscall(this.sys.cachestat, fd, range, this.#scratch + out, 0);
    if (result < 0) return result;
    return {
      cached: this.#getU64(out),
      dirty: this.#getU64(out + 8),
      writeback: this.#getU64(out + 16),
    };
  }

  unlink(path: string): number {
    const address = this.#path(path, SCRATCH_PATH);
    if (address < 0) return address;
    return this.#ffi.syscall(this.sys.unlinkat, abi.AT_FDCWD, address, 0);
  }

  mkdir(path: string, mode: number): number {
    const address = this.#path(path, SCRATCH_PATH);
    if (address < 0) return address;
    return this.#ffi.syscall(this.sys.mkdirat, abi.AT_FDCWD, address, mode);
  }

  rename(from: string, to: string): number {
    const source = this.#path(from, SCRATCH_PATH);
    if (source < 0) return source;
    const target = this.#path(to, SCRATCH_PATH2);
    if (target < 0) return target;
    return this.#ffi.syscall(this.sys.renameat2, abi.AT_FDCWD, source, abi.AT_FDCWD, target, 0);
  }

  // Descriptors.

  /** For commands whose argument is a number; F_GETFL and F_SETFL speak O_* of abi/linux.ts. */
  fcntl(fd: number, command: number, argument = 0): number {
    const set = command === abi.F_SETFL;
    const native = set ? this.#openFlagsToHost(argument) : argument;
    const result = this.#ffi.syscall(this.sys.fcntl, fd, command, native);
    return command === abi.F_GETFL && result >= 0 ? this.#openFlagsFromHost(result) : result;
  }

  /** Makes `target` name the open file of `source`, at once; what it named before is closed. */
  dup3(source: number, target: number): number {
    return this.#ffi.syscall32(this.sys.dup3, source, target, abi.O_CLOEXEC, 0, 0, 0);
  }

  /** Takes, changes or (F_UNLCK) drops a lock of the open file description. -EAGAIN: a conflict. */
  setLock(fd: number, type: number, start: number, bytes: number): number {
    this.#flock(type, start, bytes);
    return this.#ffi.syscall(this.sys.fcntl, fd, abi.F_OFD_SETLK, this.#scratch + SCRATCH_STRUCT);
  }

  /** The type of a lock that stands against one of `type`: F_UNLCK when it could be taken. */
  testLock(fd: number, type: number, start: number, bytes: number): number {
    this.#flock(type, start, bytes);
    const address = this.#scratch + SCRATCH_STRUCT;
    const result = this.#ffi.syscall(this.sys.fcntl, fd, abi.F_OFD_GETLK, address);
    return result < 0 ? result : this.#view.getInt16(SCRATCH_STRUCT + abi.FLOCK_TYPE, true);
  }

  /** `argument`: a number, or the address of what the request reads or writes. */
  ioctl(fd: number, request: number, argument: number): number {
    return this.#ffi.syscall(this.sys.ioctl, fd, request, argument);
  }

  /** An ioctl that writes an int (BLKSSZGET) or, with `bytes` 8, a u64 (BLKGETSIZE64). */
  ioctlGet(fd: number, request: number, bytes: 4 | 8 = 4): number {
    this.#u64(SCRATCH_STRUCT, 0);
    const result = this.ioctl(fd, request, this.#scratch + SCRATCH_STRUCT);
    if (result < 0) return result;
    return bytes === 8 ? this.#getU64(SCRATCH_STRUCT) : this.#view.getUint32(SCRATCH_STRUCT, true);
  }

  /** Close-on-exec. */
  pipe(flags = 0): { readFd: number; writeFd: number } | number {
    const address = this.#scratch + SCRATCH_STRUCT;
    const result = this.#ffi.syscall(this.sys.pipe2, address, flags | abi.O_CLOEXEC);
    if (result < 0) return result;
    return { readFd: this.#getI32(SCRATCH_STRUCT), writeFd: this.#getI32(SCRATCH_STRUCT + 4) };
  }

  /** Close-on-exec. */
  eventfd(initial = 0, flags = 0): number {
    return this.#ffi.syscall(this.sys.eventfd2, initial, flags | abi.EFD_CLOEXEC);
  }

  /** Adds one to an eventfd. */
  signalEventfd(fd: number): number {
    return this.#ffi.syscall(this.sys.write, fd, this.#u64(SCRATCH_STRUCT, 1), 8);
  }

  /** Takes the count of an eventfd; blocks at 0 unless EFD_NONBLOCK. */
  drainEventfd(fd: number): number {
    const address = this.#scratch + SCRATCH_STRUCT;
    const result = this.#ffi.syscall(this.sys.read, fd, address, 8);
    return result < 0 ? result : this.#getU64(SCRATCH_STRUCT);
  }

  // Memory.

  mmap(
    address: number,
    bytes: number,
    prot: number,
    flags: number,
    fd: number,
    offset: number,
  ): number {
    return this.#ffi.syscall(this.sys.mmap, address, bytes, prot, flags, fd, offset);
  }

  munmap(address: number, bytes: number): number {
    return this.#ffi.syscall(this.sys.munmap, address, bytes);
  }

  madvise(address: number, bytes: number, advice: number): number {
    return this.#ffi.syscall(this.sys.madvise, address, bytes, advice);
  }

  // Sockets.

  /** Close-on-exec. */
  socket(domain: number, type: number, protocol = 0): number {
    return this.#ffi.syscall(this.sys.socket, domain, type | abi.O_CLOEXEC, protocol);
  }

  /** Two connected ends, close-on-exec. */
  socketpair(domain: number, type: number): readonly [number, number] | number {
    const at = SCRATCH_STRUCT;
    const address = this.#scratch + at;
    const result = this.#ffi.syscall(this.sys.socketpair, domain, type | abi.O_CLOEXEC, 0, address);
    return result < 0 ? result : [this.#getI32(at), this.#getI32(at + 4)];
  }

  /** -EINVAL for a name that is none: a path too long, an address not numeric. */
  bind(fd: number, name: SocketName): number {
    return this.#withName(this.sys.bind, fd, name);
  }

  connect(fd: number, name: SocketName): number {
    return this.#withName(this.sys.connect, fd, name);
  }

  listen(fd: number, backlog: number): number {
    return this.#ffi.syscall(this.sys.listen, fd, backlog);
  }

  /** Close-on-exec. `flags`: SOCK_NONBLOCK. */
  accept(fd: number, flags = 0): number {
    return this.#ffi.syscall32(this.sys.accept4, fd, 0, 0, flags | abi.O_CLOEXEC, 0, 0);
  }

  shutdown(fd: number, how: number): number {
    return this.#ffi.syscall32(this.sys.shutdown, fd, how, 0, 0, 0, 0);
  }

  /** Options that are an int. */
  setsockopt(fd: number, level: number, option: number, value: number): number {
    this.#view.setInt32(SCRATCH_STRUCT, value, true);
    const address = this.#scratch + SCRATCH_STRUCT;
    return this.#ffi.syscall(this.sys.setsockopt, fd, level, option, address, 4);
  }

  getsockopt(fd: number, level: number, option: number): number {
    this.#view.setUint32(SCRATCH_LENGTH, 4, true);
    const address = this.#scratch + SCRATCH_STRUCT;
    const length = this.#scratch + SCRATCH_LENGTH;
    const result = this.#ffi.syscall(this.sys.getsockopt, fd, level, option, address, length);
    return result < 0 ? result : this.#getI32(SCRATCH_STRUCT);
  }

  /** -EINVAL also for a family that is none of ours. */
  getsockname(fd: number): SocketName | number {
    return this.#name(this.sys.getsockname, fd);
  }

  getpeername(fd: number): SocketName | number {
    return this.#name(this.sys.getpeername, fd);
  }

  send(fd: number, address: number, bytes: number, flags: number): number {
    return this.#ffi.syscall(this.sys.sendto, fd, address, bytes, flags);
  }

  recv(fd: number, address: number, bytes: number, flags: number): number {
    return this.#ffi.syscall(this.sys.recvfrom, fd, address, bytes, flags);
  }

  sendmsg(fd: number, msghdr: number, flags: number): number {
    return this.#ffi.syscall(this.sys.sendmsg, fd, msghdr, flags);
  }

  recvmsg(fd: number, msghdr: number, flags: number): number {
    return this.#ffi.syscall(this.sys.recvmsg, fd, msghdr, flags);
  }

  // Waiting.

  epollCreate(): number {
    return this.#ffi.syscall(this.sys.epoll_create1, abi.EPOLL_CLOEXEC);
  }

  /** `data` comes back as the low half of the event's u64. */
  epollCtl(epollFd: number, operation: number, fd: number, events: number, data: number): number {
    this.#view.setUint32(SCRATCH_STRUCT, events, true);
    this.#u64(SCRATCH_STRUCT + abi.EPOLL_EVENT[this.arch].data, data);
    const address = this.#scratch + SCRATCH_STRUCT;
    return this.#ffi.syscall(this.sys.epoll_ctl, epollFd, operation, fd, address);
  }

  /** `timeoutMs` -1: no limit. Events are struct epoll_event of this architecture. */
  epollWait(epollFd: number, events: number, countMax: number, timeoutMs: number): number {
    return this.#ffi.syscall(this.sys.epoll_pwait, epollFd, events, countMax, timeoutMs, 0, 8);
  }

  /** One descriptor. Returns the POLL* bits that are ready, 0 after the time, or -errno. */
  poll(fd: number, events: number, timeoutMs: number): number {
    const at = SCRATCH_STRUCT;
    this.#view.setInt32(at, fd, true);
    this.#view.setUint32(at + 4, events & 0xffff, true);
    const timespec = timeoutMs < 0 ? 0 : this.#u64(at + 16, Math.floor(timeoutMs / 1000));
    this.#u64(at + 24, (timeoutMs % 1000) * 1_000_000);
    const result = this.#ffi.syscall(this.sys.ppoll, this.#scratch + at, 1, timespec, 0, 8);
    return result <= 0 ? result : this.#view.getUint16(at + 6, true);
  }

  ioUringSetup(entries: number, params: number): number {
    return this.#ffi.syscall(this.sys.io_uring_setup, entries, params);
  }

  /** `argument`: 0, or the address of what `flags` say. */
  ioUringEnter(
    fd: number,
    submitCount: number,
    completeCountMin: number,
    flags: number,
    argument: number,
    argumentBytes: number,
  ): number {
    return this.#ffi.syscall(
      this.sys.io_uring_enter,
      fd,
      submitCount,
      completeCountMin,
      flags,
      argument,
      argumentBytes,
    );
  }

  ioUringRegister(fd: number, opcode: number, argument: number, count: number): number {
    return this.#ffi.syscall(this.sys.io_uring_register, fd, opcode, argument, count);
  }

  // The process.

  /** Returns the mask before. Of the whole process, other threads included. */
  umask(mask: number): number {
    return this.#ffi.syscall32(this.sys.umask, mask, 0, 0, 0, 0, 0);
  }

  prctl(option: number, a = 0, b = 0, c = 0, d = 0): number {
    return this.#ffi.syscall(this.sys.prctl, option, a, b, c, d);
  }

  /** What `top -H` calls this thread; cut to 15 bytes. */
  setThreadName(name: string): number {
    const address = this.#path(name.slice(0, 15), SCRATCH_PATH);
    return address < 0 ? address : this.prctl(abi.PR_SET_NAME, address);
  }

  /** Microseconds since 1970. */
  realTimeUs(): number {
    const address = this.#scratch + SCRATCH_STRUCT;
    this.#ffi.syscall(this.sys.clock_gettime, abi.CLOCK_REALTIME, address);
    return this.#timeUs(SCRATCH_STRUCT);
  }

  /** Nanoseconds since the machine started: the same for all threads. */
  monotonicNs(): number {
    const address = this.#scratch + SCRATCH_STRUCT;
    this.#ffi.syscall(this.sys.clock_gettime, abi.CLOCK_MONOTONIC, address);
    const nanoseconds = this.#view.getUint32(SCRATCH_STRUCT + abi.TIMESPEC_NSEC, true);
    return this.#getU64(SCRATCH_STRUCT + abi.TIMESPEC_SEC) * 1e9 + nanoseconds;
  }

  /** The payload of a key: its length, of which at most `bytes` are written to `address`. */
  keyctlRead(serial: number, address: number, bytes: number): number {
    return this.#ffi.syscall(this.sys.keyctl, KEYCTL_READ, serial, address, bytes);
  }

  getpid(): number {
    return this.#ffi.syscall32(this.sys.getpid, 0, 0, 0, 0, 0, 0);
  }

  #statx(dirFd: number, path: string, flags: number): FileStatus | number {
    const pathAddress = this.#path(path, SCRATCH_PATH);
    if (pathAddress < 0) return pathAddress;
    const at = SCRATCH_STRUCT;
    this.#u8.fill(0, at, at + abi.STATX_SIZE);
    const mask = abi.STATX_BASIC_STATS | abi.STATX_DIOALIGN;
    const address = this.#scratch + at;
    const result = this.#ffi.syscall(this.sys.statx, dirFd, pathAddress, flags, mask, address);
    if (result < 0) return result;
    const u32 = (offset: number) => this.#view.getUint32(at + offset, true);
    return {
      mode: this.#view.getUint16(at + abi.STATX_MODE, true),
      bytes: this.#getU64(at + abi.STATX_BYTES),
      blocks: this.#getU64(at + abi.STATX_BLOCKS),
      ino: this.#getU64(at + abi.STATX_INO),
      dev: u32(abi.STATX_DEV_MAJOR) * 2 ** 20 + u32(abi.STATX_DEV_MINOR),
      rdev: u32(abi.STATX_RDEV_MAJOR) * 2 ** 20 + u32(abi.STATX_RDEV_MINOR),
      blockSize: u32(abi.STATX_BLKSIZE),
      changeTimeUs: this.#timeUs(at + abi.STATX_CTIME),
      directMemoryAlignment: u32(abi.STATX_DIO_MEM_ALIGN),
      directOffsetAlignment: u32(abi.STATX_DIO_OFFSET_ALIGN),
    };
  }

  /** Of a struct timespec, or a struct statx_timestamp. */
  #timeUs(at: number): number {
    const nanoseconds = this.#view.getUint32(at + abi.TIMESPEC_NSEC, true);
    return this.#getU64(at + abi.TIMESPEC_SEC) * 1_000_000 + Math.floor(nanoseconds / 1000);
  }

  #flock(type: number, start: number, bytes: number): void {
    const at = SCRATCH_STRUCT;
    // The pid must be 0, too.
    this.#u8.fill(0, at, at + abi.FLOCK_SIZE);
    this.#view.setInt16(at + abi.FLOCK_TYPE, type, true);
    this.#view.setInt16(at + abi.FLOCK_WHENCE, abi.SEEK_SET, true);
    this.#u64(at + abi.FLOCK_START, start);
    this.#u64(at + abi.FLOCK_LEN, bytes);
  }

  #withName(syscall: number, fd: number, name: SocketName): number {
    const bytes = encodeSocketName(name);
    if (bytes === undefined) return -EINVAL;
    this.#u8.set(bytes, SCRATCH_STRUCT);
    return this.#ffi.syscall(syscall, fd, this.#scratch + SCRATCH_STRUCT, bytes.length);
  }

  #name(syscall: number, fd: number): SocketName | number {
    this.#view.setUint32(SCRATCH_LENGTH, SOCKADDR_SIZE_MAX, true);
    const address = this.#scratch + SCRATCH_STRUCT;
    const result = this.#ffi.syscall(syscall, fd, address, this.#scratch + SCRATCH_LENGTH);
    if (result < 0) return result;
    const length = this.#view.getUint32(SCRATCH_LENGTH, true);
    const bytes = this.#u8.subarray(SCRATCH_STRUCT, SCRATCH_STRUCT + length);
    return decodeSocketName(bytes) ?? -EINVAL;
  }

  /** Puts a C string at `at` of the scratch; its address, or -errno. */
  #path(path: string, at: number): number {
    const target = this.#u8.subarray(at, at + PATH_BYTES_MAX);
    if (path.includes("\0")) return -EINVAL;
    const { read, written } = new TextEncoder().encodeInto(path, target);
    if (read < path.length) return -ENAMETOOLONG;
    this.#u8[at + written] = 0;
    return this.#scratch + at;
  }

  /** Puts a u64 at `at` of the scratch; its address. */
  #u64(at: number, value: number): number {
    this.#view.setUint32(at, value >>> 0, true);
    this.#view.setUint32(at + 4, (value / U32_RANGE) >>> 0, true);
    return this.#scratch + at;
  }

  #getU64(at: number): number {
    return this.#view.getUint32(at, true) + this.#view.getUint32(at + 4, true) * U32_RANGE;
  }

  #getI32(at: number): number {
    return this.#view.getInt32(at, true);
  }

  #openFlagsToHost(flags: number): number {
    return this.arch === "x64" ? flags : swapBits(flags, 0, 1);
  }

  #openFlagsFromHost(flags: number): number {
    return this.arch === "x64" ? flags : swapBits(flags, 1, 0);
  }
}

/** Open flags that arm64 has elsewhere: ours, theirs. */
const ARM64_OPEN_FLAGS = [
  [abi.O_DIRECT, abi.ARM64_O_DIRECT],
  [abi.O_DIRECTORY, abi.ARM64_O_DIRECTORY],
  [abi.O_NOFOLLOW, abi.ARM64_O_NOFOLLOW],
] as const;

const ARM64_OPEN_FLAGS_ALL = ARM64_OPEN_FLAGS.flat().reduce((all, flag) => all | flag, 0);

function swapBits(flags: number, from: 0 | 1, to: 0 | 1): number {
  let swapped = flags & ~ARM64_OPEN_FLAGS_ALL;
  for (const pair of ARM64_OPEN_FLAGS) if ((flags & pair[from]) !== 0) swapped |= pair[to];
  return swapped;
}
