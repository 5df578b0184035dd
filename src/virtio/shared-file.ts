/**
 * A small file that a front-end shares, mapped to be read and written: what tracks requests in
 * flight, the log of dirty pages. Thread: iothread.
 *
 * Its owner may shrink it, and a look at what is gone would end the process (SIGBUS): it is sealed
 * against that where it can be.
 */
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../abi/linux.ts";
import { F_ADD_SEALS, F_GET_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK } from "../abi/memfd.ts";
import { EINVAL } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";

/** An offset given to mmap() is a multiple of any page size. */
const MAP_ALIGNMENT = 65536;

/** Where it is mapped, for any thread of the process. */
export interface SharedFilePlace {
  readonly mapAddress: number;
  /** Bytes of the mapping before the part that was asked for. */
  readonly skipped: number;
  readonly bytes: number;
}

export class SharedFile {
  readonly place: SharedFilePlace;
  #linux: Linux;

  /** One of them owns the mapping: it is to unmap() it. */
  constructor(linux: Linux, place: SharedFilePlace) {
    this.#linux = linux;
    this.place = place;
  }

  get bytes(): number {
    return this.place.bytes;
  }

  /** Maps `bytes` at `offset` of the file, which may be closed then. Returns it or -errno. */
  static map(linux: Linux, fd: number, offset: number, bytes: number): SharedFile | number {
    if (!Number.isSafeInteger(offset + bytes) || offset < 0 || bytes <= 0) return -EINVAL;
    sealAgainstShrinking(linux, fd);
    const status = linux.fstat(fd);
    if (typeof status === "number") return status;
    if (offset + bytes > status.bytes) return -EINVAL;
    const skipped = offset % MAP_ALIGNMENT;
    const protection = PROT_READ | PROT_WRITE;
    const start = offset - skipped;
    const mapAddress = linux.mmap(0, skipped + bytes, protection, MAP_SHARED, fd, start);
    return mapAddress < 0 ? mapAddress : new SharedFile(linux, { mapAddress, skipped, bytes });
  }

  /** Bytes [at, at + bytes) of it. Not to be looked at after unmap(). */
  view(at: number, bytes: number): ArrayBuffer {
    // SAFETY: mapped until unmap(), which its owner calls when nobody uses a view any more.
    const { mapAddress, skipped } = this.place;
    return this.#linux.ffi.view(mapAddress + skipped + at, bytes);
  }

  unmap(): void {
    const { mapAddress, skipped, bytes } = this.place;
    this.#linux.munmap(mapAddress, skipped + bytes);
  }
}

/** True when the file can't shrink. */
export function sealAgainstShrinking(linux: Linux, fd: number): boolean {
  const seals = linux.fcntl(fd, F_GET_SEALS);
  if (seals < 0) return false;
  if ((seals & F_SEAL_SHRINK) !== 0) return true;
  if ((seals & F_SEAL_SEAL) !== 0) return false;
  return linux.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) === 0;
}
