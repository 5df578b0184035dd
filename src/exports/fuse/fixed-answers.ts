/**
 * Answers of FUSE that say nothing of the disk. Thread: iothread.
 * Spec: linux/fuse.h fuse_open_out, fuse_statfs_out
 */
import * as file from "../../abi/fuse-file.ts";
import type { Memory } from "../../io/memory.ts";
import type { OpenAnswer } from "./passthrough.ts";

const BLOCK_BYTES = 512;
const NAME_BYTES_MAX = 255;

/** Writes fuse_open_out. Returns its length. */
export function writeOpen({ view, u8 }: Memory, at: number, answer: OpenAnswer): number {
  u8.fill(0, at, at + file.FUSE_OPEN_OUT_SIZE);
  view.setUint32(at + file.FUSE_OPEN_OUT_FH, answer.handle, true);
  view.setUint32(at + file.FUSE_OPEN_OUT_OPEN_FLAGS, answer.openFlags, true);
  view.setInt32(at + file.FUSE_OPEN_OUT_BACKING_ID, answer.backingId, true);
  return file.FUSE_OPEN_OUT_SIZE;
}

/** Writes fuse_statfs_out, as QSD does: there is no file system to speak of. Returns its length. */
export function writeStatfs({ view, u8 }: Memory, at: number): number {
  u8.fill(0, at, at + file.FUSE_STATFS_OUT_SIZE);
  view.setUint32(at + file.FUSE_KSTATFS_BSIZE, BLOCK_BYTES, true);
  view.setUint32(at + file.FUSE_KSTATFS_NAMELEN, NAME_BYTES_MAX, true);
  return file.FUSE_STATFS_OUT_SIZE;
}
