/**
 * Decides for the epoll engine what is done on its own thread: reads and writes that the host
 * promises not to block on, and buffered writes as long as they prove quick. Thread: iothread.
 * Spec: preadv2(2) RWF_NOWAIT
 */
import { F_GETFL, O_DIRECT, O_DSYNC, RWF_NOWAIT } from "../abi/linux.ts";
import type { Linux } from "../runtime/linux.ts";
import type { Memory } from "./memory.ts";

/** A descriptor's number may come to mean another file: what is known of it is asked anew. */
const OPERATIONS_PER_CHECK = 256;
const PAGE_BYTES = 4096;
/**
 * A buffered write of 4 KiB takes 4 µs here and 20 µs through the offload threads, one of 1 MiB
 * 60 µs, where nothing is in its way; a writer that the host slows down waits for milliseconds.
 */
const WRITE_SLOW_NS = 2_000_000;
/** After a slow write others stay away from this thread 19 times as long: it waits 5 % at most. */
const WRITE_BACK_OFF = 19;
const WRITE_BACK_OFF_NS_MIN = 100_000_000;

/** File systems that keep everything in memory; they say that they can't do RWF_NOWAIT. */
const TMPFS_MAGIC = 0x0102_1994;
const RAMFS_MAGIC = 0x8584_58f6;
/** struct statfs: 120 bytes, the type first. */
export const STATFS_SIZE = 120;

/** Not on this thread. */
export const OFFLOAD = -1;

class FileMode {
  checkIn = 0;
  /** RWF_* to do it with, or OFFLOAD. */
  readFlags = OFFLOAD;
  writeFlags = OFFLOAD;
  inMemory = false;
  /** The host has kept its promise for reads of this file. */
  readsNowait = false;
}

export class FileModes {
  #linux: Linux;
  #nowNs: () => number;
  #statfs: (fd: number) => number;
  /** By descriptor. */
  #modes: (FileMode | undefined)[] = [];
  #writeStartNs = 0;
  #writeSlowUntilNs = 0;

  /** Uses STATFS_SIZE bytes at `at` of `memory` for itself. */
  constructor(linux: Linux, memory: Memory, at: number, nowNs: () => number) {
    this.#linux = linux;
    this.#nowNs = nowNs;
    this.#statfs = (fd) => {
      const result = linux.ffi.syscall(linux.sys.fstatfs, fd, memory.address + at);
      return result < 0 ? result : memory.view.getUint32(at, true);
    };
  }

  /** RWF_* with which a read doesn't block for long, or OFFLOAD. */
  readFlags(fd: number): number {
    return this.#mode(fd).readFlags;
  }

  /**
   * RWF_* with which a write doesn't block for long, or OFFLOAD. `bytes` is 0 when unknown. When it
   * is 0, no promise of the host, tell the end of the write by writeEnded().
   */
  writeFlags(fd: number, offset: number, bytes: number): number {
    const mode = this.#mode(fd);
    if (mode.writeFlags !== 0) return mode.writeFlags;
    // Of a page that it writes in part, the rest may have to be read first.
    const wholePages = bytes > 0 && offset % PAGE_BYTES === 0 && bytes % PAGE_BYTES === 0;
    if (!wholePages && !mode.inMemory) return OFFLOAD;
    this.#writeStartNs = this.#nowNs();
    return this.#writeStartNs < this.#writeSlowUntilNs ? OFFLOAD : 0;
  }

  /** True when a write of whole pages should be quick, promise of the host or not; as above. */
  mayWrite(fd: number): boolean {
    if (this.#mode(fd).writeFlags === OFFLOAD) return false;
    this.#writeStartNs = this.#nowNs();
    return this.#writeStartNs >= this.#writeSlowUntilNs;
  }

  writeEnded(): void {
    const endNs = this.#nowNs();
    const takenNs = endNs - this.#writeStartNs;
    if (takenNs < WRITE_SLOW_NS) return;
    this.#writeSlowUntilNs = endNs + Math.max(WRITE_BACK_OFF_NS_MIN, WRITE_BACK_OFF * takenNs);
  }

  /**
   * The host reads of this file what it can without blocking. A ring then does, too, many in one
   * system call. Asked for before each read: now and then it has to show it again.
   */
  readsNowait(fd: number): boolean {
    return this.#mode(fd).readsNowait;
  }

  /** A read with RWF_NOWAIT ended, with data or without. */
  nowaitReadEnded(fd: number): void {
    this.#mode(fd).readsNowait = true;
  }

  /** The host gives no promise for reads of this file: -EOPNOTSUPP. */
  refuseNowaitRead(fd: number): void {
    const mode = this.#mode(fd);
    this.#checkMemory(fd, mode);
    mode.readFlags = mode.inMemory ? 0 : OFFLOAD;
  }

  refuseNowaitWrite(fd: number): void {
    const mode = this.#mode(fd);
    this.#checkMemory(fd, mode);
    mode.writeFlags = 0;
  }

  #checkMemory(fd: number, mode: FileMode): void {
    const type = this.#statfs(fd);
    mode.inMemory = type === TMPFS_MAGIC || type === RAMFS_MAGIC;
  }

  #mode(fd: number): FileMode {
    let mode = this.#modes[fd];
    if (mode === undefined) {
      mode = new FileMode();
      this.#modes[fd] = mode;
    }
    if (--mode.checkIn < 0) {
      mode.checkIn = OPERATIONS_PER_CHECK;
      mode.readsNowait = false;
      const flags = this.#linux.fcntl(fd, F_GETFL);
      // O_SYNC includes O_DSYNC. Of direct I/O, RWF_NOWAIT waits for the disk all the same.
      mode.readFlags = (flags & O_DIRECT) === 0 ? RWF_NOWAIT : OFFLOAD;
      mode.writeFlags = (flags & (O_DIRECT | O_DSYNC)) === 0 ? RWF_NOWAIT : OFFLOAD;
    }
    return mode;
  }
}
