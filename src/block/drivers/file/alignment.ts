/**
 * What O_DIRECT asks of offsets, lengths and memory: told by the host, or found by trying.
 * Thread: iothread; synchronous.
 * Spec: statx(2) STATX_DIOALIGN, QEMU block/file-posix.c raw_probe_alignment()
 */
import type { Reactor } from "../../../io/reactor.ts";
import { EINVAL } from "../../../runtime/errno.ts";
import type { FileStatus } from "../../../runtime/linux.ts";
import { OutportError } from "../../../util/error.ts";
import type { OpenContext } from "../../driver.ts";
import { ALIGNMENT_MAX, type BlockLimits } from "../../node.ts";
import { type HostFile, isBlockDevice, logicalBlockBytes } from "./host-file.ts";

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
/** What one system call moves at most, in whole pages. */
const TRANSFER_BYTES_MAX = 2 ** 31 - 4096;

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
  let memory: number | undefined = status.directMemoryAlignment;
  if (memory === 0)
    memory = blind ? SAFE : CANDIDATES.find((bytes) => takes(address + bytes, SAFE));
  reactor.buffers.free(at);
  if (request === undefined || request > ALIGNMENT_MAX || memory === undefined) {
    throw new OutportError("unsupported", "Could not find working O_DIRECT alignment");
  }
  return { request, memory: Math.max(memory, MEMORY_MIN) };
}

/** `deviceBlock`: block size of a block device, 0 for a file. Throws OutportError. */
export async function fileLimits(
  context: OpenContext,
  { fd, status }: HostFile,
  deviceBlock: number,
): Promise<BlockLimits> {
  const alignment = context.cacheDirect
    ? await directAlignment(context.reactor, fd, status)
    : BUFFERED;
  return {
    requestAlignment: alignment.request,
    memoryAlignment: alignment.memory,
    transferBytesMax: TRANSFER_BYTES_MAX,
    discardAlignment: Math.max(alignment.request, deviceBlock, 1),
  };
}
