/**
 * The log of pages that the back-end wrote to, for live migration: one bit per page, shared with
 * the front-end. Thread: iothread.
 * Spec: vhost-user.rst "Migration"
 */
import { VHOST_LOG_PAGE } from "../abi/vhost-user.ts";
import { EINVAL } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { SharedFile, type SharedFilePlace } from "./shared-file.ts";

/** One bit per page of 4 KiB: enough for 16 TiB, and within what one view can hold. */
const LOG_BYTES_MAX = 512 * 1024 * 1024;

export class DirtyLog {
  #file: SharedFile;
  #bits: Uint8Array;

  /** Of a mapping that becomes its own. */
  constructor(file: SharedFile) {
    this.#file = file;
    this.#bits = new Uint8Array(file.view(0, file.bytes));
  }

  /** Maps `bytes` at `offset` of the file, which may be closed then. Returns it or -errno. */
  static map(linux: Linux, fd: number, offset: number, bytes: number): DirtyLog | number {
    if (!(bytes <= LOG_BYTES_MAX)) return -EINVAL;
    const file = SharedFile.map(linux, fd, offset, bytes);
    return typeof file === "number" ? file : new DirtyLog(file);
  }

  get place(): SharedFilePlace {
    return this.#file.place;
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

  /** When nothing marks pages any more. */
  unmap(): void {
    this.#file.unmap();
  }
}
