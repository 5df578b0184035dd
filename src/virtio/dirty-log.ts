/**
 * The log of pages that the back-end wrote to, for live migration: one bit per page, shared with
 * the front-end. Thread: iothread.
 * Spec: vhost-user.rst "Migration"
 */
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../abi/linux.ts";
import { VHOST_LOG_PAGE } from "../abi/vhost-user.ts";
import { EINVAL } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";

/** An offset given to mmap() is a multiple of any page size. */
const MAP_ALIGNMENT = 65536;
/** One bit per page of 4 KiB: enough for 16 TiB, and within what one view can hold. */
const LOG_BYTES_MAX = 512 * 1024 * 1024;

export class DirtyLog {
  #linux: Linux;
  #address: number;
  #mappedBytes: number;
  #bits: Uint8Array;

  private constructor(linux: Linux, address: number, mappedBytes: number, bits: Uint8Array) {
    this.#linux = linux;
    this.#address = address;
    this.#mappedBytes = mappedBytes;
    this.#bits = bits;
  }

  /** Maps `bytes` at `offset` of the file, which may be closed then. Returns it or -errno. */
  static map(linux: Linux, fd: number, offset: number, bytes: number): DirtyLog | number {
    if (!(bytes > 0 && bytes <= LOG_BYTES_MAX && offset >= 0)) return -EINVAL;
    const status = linux.fstat(fd);
    if (typeof status === "number") return status;
    if (offset + bytes > status.bytes) return -EINVAL;
    const skipped = offset % MAP_ALIGNMENT;
    const length = skipped + bytes;
    const protection = PROT_READ | PROT_WRITE;
    const address = linux.mmap(0, length, protection, MAP_SHARED, fd, offset - skipped);
    if (address < 0) return address;
    // SAFETY: mapped until unmap(), which its owner calls when nothing marks pages any more.
    const bits = new Uint8Array(linux.ffi.view(address + skipped, bytes));
    return new DirtyLog(linux, address, length, bits);
  }

  /** [guestAddress, guestAddress + bytes) was written to. What lies beyond the log is not told. */
  mark(guestAddress: number, bytes: number): void {
    const bits = this.#bits;
    const last = Math.floor((guestAddress + bytes - 1) / VHOST_LOG_PAGE);
    for (let page = Math.floor(guestAddress / VHOST_LOG_PAGE); page <= last; page++) {
      const at = Math.floor(page / 8);
      if (at >= bits.length) return;
      // The front-end takes bits out at the same time.
      Atomics.or(bits, at, 1 << (page % 8));
    }
  }

  unmap(): void {
    this.#linux.munmap(this.#address, this.#mappedBytes);
  }
}
