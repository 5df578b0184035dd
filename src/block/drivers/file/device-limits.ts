/**
 * What the host tells of the limits of a block device, for query-named-block-nodes: requests need
 * not keep to any of them, the host splits and joins. Thread: iothread; short synchronous calls.
 * Spec: QEMU block/file-posix.c raw_refresh_limits(); the kernel's Documentation/block/queue-sysfs
 */
import { BLKSECTGET, O_RDONLY } from "../../../abi/linux.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { type HostFile, logicalBlockBytes } from "./host-file.ts";

const SECTOR_BYTES = 512;
/** Of a device number: major × 2^20 + minor. */
const MINORS = 2 ** 20;
/** A number and a newline. */
const ATTRIBUTE_BYTES_MAX = 64;

/** Members of BlockLimitsInfo. */
export async function deviceLimits(
  reactor: Reactor,
  { fd, status }: HostFile,
  direct: boolean,
): Promise<Record<string, number>> {
  const limits: Record<string, number> = {};
  const sectors = reactor.linux.ioctlGet(fd, BLKSECTGET);
  if (sectors > 0) limits["max-hw-transfer"] = sectors * SECTOR_BYTES;
  const segments = await queueAttribute(reactor, status.rdev, "max_segments");
  if (segments > 0) limits["max-hw-iov"] = segments;
  const granularity = await queueAttribute(reactor, status.rdev, "discard_granularity");
  if (granularity > 0) limits["discard-alignment"] = granularity;
  if (!direct) limits["write-zeroes-alignment"] = logicalBlockBytes(reactor.linux, fd);
  return limits;
}

/** 0 when the host does not say. A partition's are its disk's. */
async function queueAttribute(reactor: Reactor, rdev: number, name: string): Promise<number> {
  const device = `/sys/dev/block/${Math.floor(rdev / MINORS)}:${rdev % MINORS}`;
  for (const directory of [`${device}/queue`, `${device}/../queue`]) {
    const text = await readText(reactor, `${directory}/${name}`);
    if (text !== undefined) return Number.parseInt(text, 10) || 0;
  }
  return 0;
}

async function readText(reactor: Reactor, path: string): Promise<string | undefined> {
  const { linux, memory, buffers } = reactor;
  const fd = linux.open(path, O_RDONLY);
  if (fd < 0) return undefined;
  const at = await reactor.allocate(ATTRIBUTE_BYTES_MAX);
  const bytes = linux.pread(fd, memory.address + at, ATTRIBUTE_BYTES_MAX, 0);
  const text = bytes < 0 ? undefined : new TextDecoder().decode(memory.u8.slice(at, at + bytes));
  buffers.free(at);
  linux.close(fd);
  return text;
}
