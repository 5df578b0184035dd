/**
 * Reads and writes of files on the reactor's own thread, where they don't block: what is in the
 * page cache, or goes into it. Thread: iothread. Spec: preadv2(2), pwritev2(2)
 */
import { IOVEC_BASE, IOVEC_LEN, RWF_NOWAIT, SPLICE_F_MOVE } from "../abi/linux.ts";
import { EAGAIN, EINTR, EOPNOTSUPP } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { FileModes, OFFLOAD } from "./file-modes.ts";
import { Memory } from "./memory.ts";

const IOVEC_AT = 0;
const STATFS_AT = 64;
const MEMORY_BYTES = 4096;

export class InlineFiles {
  readonly modes: FileModes;
  #linux: Linux;
  #memory: Memory;

  constructor(linux: Linux, nowNs: () => number) {
    this.#linux = linux;
    this.#memory = new Memory(linux, MEMORY_BYTES);
    this.modes = new FileModes(linux, this.#memory, STATFS_AT, nowNs);
  }

  /** -EAGAIN: this could block. */
  read(fd: number, address: number, bytes: number, offset: number): number {
    return this.readv(fd, this.#iovec(address, bytes), 1, offset);
  }

  readv(fd: number, iov: number, iovCount: number, offset: number): number {
    const flags = this.modes.readFlags(fd);
    if (flags === OFFLOAD) return -EAGAIN;
    let result = -EINTR;
    while (result === -EINTR) result = this.#linux.preadv2(fd, iov, iovCount, offset, flags);
    if (result === -EOPNOTSUPP && flags !== 0) {
      this.modes.refuseNowaitRead(fd);
      return this.readv(fd, iov, iovCount, offset);
    }
    if (flags !== 0) this.modes.nowaitReadEnded(fd);
    // Linux 5.9 and 5.10 say so of pages that are not there, too: preadv2(2), BUGS.
    return result === 0 ? -EAGAIN : result;
  }

  /** -EAGAIN: this could block. */
  write(fd: number, address: number, bytes: number, offset: number): number {
    const { modes } = this;
    if (modes.writeFlags(fd, offset, bytes) === 0) {
      let result = -EINTR;
      while (result === -EINTR) result = this.#linux.pwrite(fd, address, bytes, offset);
      modes.writeEnded();
      return result;
    }
    return this.writev(fd, this.#iovec(address, bytes), 1, offset, bytes);
  }

  /** `bytes` in all, 0 when that isn't known. */
  writev(fd: number, iov: number, iovCount: number, offset: number, bytes: number): number {
    const { modes } = this;
    const flags = modes.writeFlags(fd, offset, bytes);
    if (flags === OFFLOAD) return -EAGAIN;
    let result = -EINTR;
    while (result === -EINTR) result = this.#linux.pwritev2(fd, iov, iovCount, offset, flags);
    if (result === -EOPNOTSUPP && flags === RWF_NOWAIT) {
      modes.refuseNowaitWrite(fd);
      return this.writev(fd, iov, iovCount, offset, bytes);
    }
    if (flags === 0) modes.writeEnded();
    return result;
  }

  /** -EAGAIN: this could block for long. */
  writeFromPipe(pipeFd: number, bytes: number, fd: number, offset: number): number {
    if (!this.modes.mayWrite(fd)) return -EAGAIN;
    let result = -EINTR;
    while (result === -EINTR) {
      result = this.#linux.splice(pipeFd, -1, fd, offset, bytes, SPLICE_F_MOVE);
    }
    this.modes.writeEnded();
    return result;
  }

  close(): void {
    this.#memory.unmap();
  }

  /** For one call. */
  #iovec(address: number, bytes: number): number {
    this.#memory.setU64(IOVEC_AT + IOVEC_BASE, address);
    this.#memory.setU64(IOVEC_AT + IOVEC_LEN, bytes);
    return this.#memory.address + IOVEC_AT;
  }
}
