/**
 * Discard and write-zeroes on a host file or device, with all the ways in which hosts refuse
 * them; what was refused once is not tried again. Thread: iothread; everything may suspend.
 * Spec: fallocate(2), QEMU block/file-posix.c handle_aiocb_write_zeroes()
 */
import {
  BLKDISCARD,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  FALLOC_FL_ZERO_RANGE,
  SEEK_END,
} from "../../../abi/linux.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { EBUSY, EINVAL, ENODEV, ENOSYS, ENOTSUP, ENOTTY } from "../../../runtime/errno.ts";
import { REQ_MAY_UNMAP, REQ_NO_FALLBACK } from "../../node.ts";

const PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
/** Of ioctl()'s two u64; a buffer of the pool is more than enough. */
const RANGE_BYTES = 16;

export class Zeroing {
  #reactor: Reactor;
  #fd: number;
  /** Block size of a block device; 0 for a file. */
  #deviceBlock: number;
  #hasPunchHole = true;
  #hasZeroRange = true;
  #hasAllocate = true;
  #hasDeviceDiscard = true;

  constructor(reactor: Reactor, fd: number, deviceBlock: number) {
    this.#reactor = reactor;
    this.#fd = fd;
    this.#deviceBlock = deviceBlock;
  }

  /** 0 or -errno; -ENOTSUP where the host can't. The contents of the range are anything then. */
  async discard(offset: number, bytes: number): Promise<number> {
    if (this.#deviceBlock > 0) return this.#discardDevice(offset, bytes);
    if (!this.#hasPunchHole) return -ENOTSUP;
    const result = await this.#fallocate(PUNCH_HOLE, offset, bytes);
    if (result === -ENOTSUP) this.#hasPunchHole = false;
    return result;
  }

  /** `flags`: REQ_*. 0 or -errno; -ENOTSUP where zeroes must be written as data. */
  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    if ((flags & REQ_MAY_UNMAP) !== 0) {
      const result = await this.#fallocate(PUNCH_HOLE, offset, bytes);
      if (result !== -ENOTSUP && result !== -EINVAL && result !== -EBUSY) return result;
    }
    return this.#deviceBlock > 0
      ? this.#zeroDevice(offset, bytes, flags)
      : this.#zeroFile(offset, bytes);
  }

  async #zeroFile(offset: number, bytes: number): Promise<number> {
    if (this.#hasZeroRange) {
      const result = await this.#fallocate(FALLOC_FL_ZERO_RANGE, offset, bytes);
      // Some file systems have it, but not for every range.
      if (result !== -ENOTSUP && result !== -EINVAL) return result;
      if (result === -ENOTSUP) this.#hasZeroRange = false;
    }
    if (this.#hasPunchHole && this.#hasAllocate) {
      const result = await this.#fallocate(PUNCH_HOLE, offset, bytes);
      if (result === 0) return this.#allocate(offset, bytes);
      if (result !== -ENOTSUP && result !== -EINVAL) return result;
      if (result === -ENOTSUP) this.#hasPunchHole = false;
    }
    const end = this.#reactor.linux.lseek(this.#fd, 0, SEEK_END);
    if (this.#hasAllocate && end >= 0 && offset >= end) return this.#allocate(offset, bytes);
    return -ENOTSUP;
  }

  /** Gives a hole its blocks back. */
  async #allocate(offset: number, bytes: number): Promise<number> {
    const result = await this.#fallocate(0, offset, bytes);
    if (result === -ENOTSUP) this.#hasAllocate = false;
    return result;
  }

  async #zeroDevice(offset: number, bytes: number, flags: number): Promise<number> {
    // The host may do it by writing, which is what NO_FALLBACK forbids.
    if (!this.#hasZeroRange || (flags & REQ_NO_FALLBACK) !== 0) return -ENOTSUP;
    if (offset % this.#deviceBlock !== 0 || bytes % this.#deviceBlock !== 0) return -ENOTSUP;
    // The same as BLKZEROOUT, without a thread of its own.
    const mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    const result = await this.#fallocate(mode, offset, bytes);
    if (result === -ENOTSUP) this.#hasZeroRange = false;
    return result;
  }

  async #discardDevice(offset: number, bytes: number): Promise<number> {
    if (!this.#hasDeviceDiscard) return -ENOTSUP;
    const { memory, buffers, linux } = this.#reactor;
    const at = await this.#reactor.allocate(RANGE_BYTES);
    memory.setU64(at, offset);
    memory.setU64(at + 8, bytes);
    const args = [this.#fd, BLKDISCARD, memory.address + at];
    // SAFETY: the range stays in its buffer until the call is over.
    const result = await this.#reactor.op((engine, token) =>
      engine.call(linux.sys.ioctl, args, token),
    );
    buffers.free(at);
    const translated = translate(result);
    if (translated === -ENOTSUP) this.#hasDeviceDiscard = false;
    return translated;
  }

  async #fallocate(mode: number, offset: number, bytes: number): Promise<number> {
    const fd = this.#fd;
    return translate(
      await this.#reactor.op((engine, token) => engine.fallocate(fd, mode, offset, bytes, token)),
    );
  }
}

/** Hosts have many ways to say that they can't. */
function translate(result: number): number {
  const refused = result === -ENODEV || result === -ENOSYS || result === -ENOTTY;
  return refused ? -ENOTSUP : result;
}
