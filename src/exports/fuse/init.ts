/**
 * FUSE_INIT: what kernel and session agree on. Thread: iothread.
 * Spec: linux/fuse.h, "Version negotiation"; Linux fs/fuse/inode.c
 */
import * as fuse from "../../abi/fuse.ts";
import type { Memory } from "../../io/memory.ts";
import { EPROTO } from "../../runtime/errno.ts";
import type { FuseRequest } from "./transport.ts";

/** Older kernels have no notification that a file has changed. */
const MINOR_MIN = 12;
/** Before it, the reply was shorter. */
const MINOR_FULL_REPLY = 23;
/** The kernel's own unit; those of hosts with larger pages allow no less. */
const PAGE_BYTES = 4096;
/** fuse_init_in without flags2: what older kernels send. */
const INIT_IN_SIZE_MIN = 16;
/** Asynchronous requests that the kernel lets loose on us at once. */
const BACKGROUND_MAX = 128;
const CONGESTION_THRESHOLD = 96;

const FLAGS =
  fuse.FUSE_ASYNC_READ |
  // Opening with O_TRUNC leaves the disk as it is.
  fuse.FUSE_ATOMIC_O_TRUNC |
  fuse.FUSE_BIG_WRITES |
  fuse.FUSE_ASYNC_DIO |
  fuse.FUSE_MAX_PAGES |
  fuse.FUSE_INIT_EXT;
const FLAGS_2 = fuse.FUSE_DIRECT_IO_ALLOW_MMAP_2;

/** What others want of the kernel beyond that: queues of io_uring, passthrough. */
export interface InitExtras {
  /** FUSE_*_2 */
  readonly flags2: number;
  readonly maxStackDepth: number;
}

/** What was agreed on. */
export interface Agreed {
  readonly minor: number;
  readonly flags: number;
  readonly flags2: number;
}

/**
 * Writes fuse_init_out for the request at its `at`. Returns the length, with what was agreed on
 * (null: the kernel is to ask again), or -errno.
 */
export function negotiate(
  memory: Memory,
  request: FuseRequest,
  transferBytesMax: number,
  extras: InitExtras | null,
): { readonly bytes: number; readonly agreed: Agreed | null } | number {
  const { argsAt, argsBytes, at } = request;
  const { view, u8 } = memory;
  if (argsBytes < INIT_IN_SIZE_MIN) return -EPROTO;
  const major = view.getUint32(argsAt + fuse.FUSE_INIT_IN_MAJOR, true);
  const kernelMinor = view.getUint32(argsAt + fuse.FUSE_INIT_IN_MINOR, true);
  const readahead = view.getUint32(argsAt + fuse.FUSE_INIT_IN_MAX_READAHEAD, true);
  const offered = view.getUint32(argsAt + fuse.FUSE_INIT_IN_FLAGS, true);
  const hasMore = (offered & fuse.FUSE_INIT_EXT) !== 0 && argsBytes >= fuse.FUSE_INIT_IN_FLAGS2 + 4;
  const offered2 = hasMore ? view.getUint32(argsAt + fuse.FUSE_INIT_IN_FLAGS2, true) : 0;
  if (major < fuse.FUSE_KERNEL_VERSION) return -EPROTO;
  const set32 = (field: number, value: number) => view.setUint32(at + field, value >>> 0, true);
  u8.fill(0, at, at + fuse.FUSE_INIT_OUT_SIZE);
  set32(fuse.FUSE_INIT_OUT_MAJOR, fuse.FUSE_KERNEL_VERSION);
  set32(fuse.FUSE_INIT_OUT_MINOR, fuse.FUSE_KERNEL_MINOR_VERSION);
  if (major > fuse.FUSE_KERNEL_VERSION) return { bytes: fuse.FUSE_INIT_OUT_SIZE, agreed: null };
  if (kernelMinor < MINOR_MIN) return -EPROTO;
  const minor = Math.min(kernelMinor, fuse.FUSE_KERNEL_MINOR_VERSION);
  const flags = offered & FLAGS;
  const flags2 = offered2 & (FLAGS_2 | (extras?.flags2 ?? 0));
  set32(fuse.FUSE_INIT_OUT_MAX_READAHEAD, readahead);
  set32(fuse.FUSE_INIT_OUT_FLAGS, flags);
  view.setUint16(at + fuse.FUSE_INIT_OUT_MAX_BACKGROUND, BACKGROUND_MAX, true);
  view.setUint16(at + fuse.FUSE_INIT_OUT_CONGESTION_THRESHOLD, CONGESTION_THRESHOLD, true);
  set32(fuse.FUSE_INIT_OUT_MAX_WRITE, transferBytesMax);
  set32(fuse.FUSE_INIT_OUT_TIME_GRAN, 1);
  view.setUint16(at + fuse.FUSE_INIT_OUT_MAX_PAGES, transferBytesMax / PAGE_BYTES, true);
  set32(fuse.FUSE_INIT_OUT_FLAGS2, flags2);
  set32(fuse.FUSE_INIT_OUT_MAX_STACK_DEPTH, extras?.maxStackDepth ?? 0);
  const isFull = minor >= MINOR_FULL_REPLY;
  const bytes = isFull ? fuse.FUSE_INIT_OUT_SIZE : fuse.FUSE_COMPAT_22_INIT_OUT_SIZE;
  return { bytes, agreed: { minor, flags, flags2 } };
}
