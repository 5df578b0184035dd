/**
 * What O_DIRECT asks of offsets, lengths and memory: told by the host, or found by trying.
 * Thread: iothread; synchronous.
 * Spec: statx(2) STATX_DIOALIGN, QEMU block/file-posix.c raw_probe_alignment()
 */
import type { Reactor } from "../../../io/reactor.ts";
import { EINVAL } from "../../../runtime/errno.ts";
import type { FileStatus } from "../../../runtime/linux.ts";
import { OutportError } from "../../../util/error.ts";
import { isBlockDevice, logicalBlockBytes } from "./host-file.ts";

export interface Alignment {
  /** Of offsets and lengths. */
  readonly request: number;
  /** Of addresses. */
  readonly memory: number;
}

/** The page cache takes everything. */
export const BUFFERED: Alignment = { request: 1, memory: 1 };

/** Kernels say less than a sector for memory; nothing is gained from it. */
const MEMORY_MIN = 512;
const CANDIDATES = [512, 1024, 2048, 4096];
/** Works wherever the trial proves nothing. */
const SAFE = 4096;

/** Throws OutportError. */
export async function directAlignment(
  reactor: Reactor,
  fd: number,
  status: FileStatus,
): Promise<Alignment> {
  const told = isBlockDevice(status)
    ? logicalBlockBytes(reactor.linux, fd)
    : status.directOffsetAlignment;
  const at = await reactor.allocate(2 * SAFE);
  const address = reactor.memory.address + at;
  const takes = (where: number, bytes: number) =>
    reactor.linux.pread(fd, where, bytes, 0) !== -EINVAL;
  // Where single bytes can be read (an empty file, some network file systems), trials say nothing.
  const blind = takes(address, 1);
  const request =
    told > 1 ? told : blind ? SAFE : CANDIDATES.find((bytes) => takes(address, bytes));
  const memory = blind ? SAFE : CANDIDATES.find((bytes) => takes(address + bytes, SAFE));
  reactor.buffers.free(at);
  if (request === undefined || memory === undefined) {
    throw new OutportError("unsupported", "Could not find working O_DIRECT alignment");
  }
  return { request, memory: Math.max(memory, MEMORY_MIN) };
}
