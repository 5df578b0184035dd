/**
 * Files that a front-end shares, mapped to be read and written: the guest's memory, and small ones
 * that track requests in flight or dirty pages. Thread: iothread.
 *
 * Their owner may shrink them, and a look at what is gone would end the process (SIGBUS): they are
 * sealed against that where they can be.
 */
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../abi/linux.ts";
import { F_ADD_SEALS, F_GET_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK } from "../abi/memfd.ts";
import { EINVAL } from "../runtime/errno.ts";
import type { FileStatus, Linux } from "../runtime/linux.ts";
import { assert } from "../util/error.ts";

/** Offsets and lengths of a mapping are multiples of any ordinary page size. */
const PAGE_BYTES_MAX = 65536;
/** Of a file's block size: that of a huge page, for a file of huge pages. */
const HUGE_PAGE_BYTES_MAX = 2 ** 34;

/** Where a small one is mapped, for any thread of the process. */
export interface SharedFilePlace {
  readonly mapAddress: number;
  readonly mapBytes: number;
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
    const mapping = mapShared(linux, { fd, offset, bytes });
    if (typeof mapping === "number") return mapping;
    const { mapAddress, mapBytes, skipped } = mapping;
    return new SharedFile(linux, { mapAddress, mapBytes, skipped, bytes });
  }

  /** Bytes [at, at + bytes) of it. Not to be looked at after unmap(). */
  view(at: number, bytes: number): ArrayBuffer {
    // SAFETY: mapped until unmap(), which its owner calls when nobody uses a view any more.
    const { mapAddress, skipped } = this.place;
    return this.#linux.ffi.view(mapAddress + skipped + at, bytes);
  }

  unmap(): void {
    const { mapAddress, mapBytes } = this.place;
    const result = this.#linux.munmap(mapAddress, mapBytes);
    assert(result === 0, "what is mapped can be unmapped");
  }
}

/** Whole pages of a file, for munmap(). */
export interface Mapping {
  readonly file: FileStatus;
  /** It can't shrink. */
  readonly isSealed: boolean;
  readonly mapAddress: number;
  readonly mapBytes: number;
  /** Bytes of the mapping before the part that was asked for. */
  readonly skipped: number;
}

/** Maps `bytes` at `offset` of a file of any kind, if it has them. `flags`: MAP_*. Or -errno. */
export function mapShared(
  linux: Linux,
  part: { readonly fd: number; readonly offset: number; readonly bytes: number },
  flags = 0,
): Mapping | number {
  const { fd, offset, bytes } = part;
  if (!Number.isSafeInteger(offset + bytes) || offset < 0 || bytes <= 0) return -EINVAL;
  const isSealed = sealAgainstShrinking(linux, fd);
  const file = linux.fstat(fd);
  if (typeof file === "number") return file;
  if (offset + bytes > file.bytes) return -EINVAL;
  // Files of huge pages take nothing but whole ones, for munmap(), too.
  const pageBytes = Math.max(PAGE_BYTES_MAX, file.blockSize);
  if (pageBytes > HUGE_PAGE_BYTES_MAX) return -EINVAL;
  const skipped = offset % pageBytes;
  const mapBytes = Math.ceil((skipped + bytes) / pageBytes) * pageBytes;
  const protection = PROT_READ | PROT_WRITE;
  const start = offset - skipped;
  const mapAddress = linux.mmap(0, mapBytes, protection, MAP_SHARED | flags, fd, start);
  return mapAddress < 0 ? mapAddress : { file, isSealed, mapAddress, mapBytes, skipped };
}

/** True when the file can't shrink. */
function sealAgainstShrinking(linux: Linux, fd: number): boolean {
  const seals = linux.fcntl(fd, F_GET_SEALS);
  if (seals < 0) return false;
  if ((seals & F_SEAL_SHRINK) !== 0) return true;
  if ((seals & F_SEAL_SEAL) !== 0) return false;
  return linux.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) === 0;
}
