/**
 * The attributes of the one file that an export is. Thread: iothread.
 * Spec: linux/fuse.h fuse_attr, fuse_statx; QEMU block/export/fuse.c for what may be changed
 */
import * as fuse from "../../abi/fuse.ts";
import * as file from "../../abi/fuse-file.ts";
import type { BlockNode } from "../../block/node.ts";
import type { Memory } from "../../io/memory.ts";
import { EACCES, ENOTSUP, EPERM, EROFS } from "../../runtime/errno.ts";

const S_IFREG = 0o100000;
const MODE_BITS = 0o7777;
const MODE_READABLE = 0o400;
const MODE_WRITABLE = 0o200;
const MODE_OTHERS = 0o077;
const MODE_ANY_WRITE = 0o222;
const VALID_SECONDS = 1;
const BLOCK_BYTES = 512;
/** All that struct stat has. */
const STATX_BASIC_STATS = 0x7ff;
/** They say what else the request carries, not what to change. */
const FATTR_NO_CHANGE = fuse.FATTR_FH | fuse.FATTR_LOCKOWNER;

/** What changes with SETATTR, and moves along with the export. */
export interface Ownership {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

export interface AttributesOptions {
  readonly node: BlockNode;
  readonly writable: boolean;
  readonly allowOther: boolean;
  readonly nowSeconds: () => number;
}

export class Attributes {
  #options: AttributesOptions;
  #mode: number;
  #uid: number;
  #gid: number;

  constructor(options: AttributesOptions, owner: Omit<Ownership, "mode"> & { mode?: number }) {
    this.#options = options;
    this.#mode = owner.mode ?? MODE_READABLE | (options.writable ? MODE_WRITABLE : 0);
    this.#uid = owner.uid;
    this.#gid = owner.gid;
  }

  get ownership(): Ownership {
    return { mode: this.#mode, uid: this.#uid, gid: this.#gid };
  }

  /** Writes fuse_attr_out. Returns its length. */
  write({ view, u8 }: Memory, at: number): number {
    u8.fill(0, at, at + file.FUSE_ATTR_OUT_SIZE);
    setU64(view, at + file.FUSE_ATTR_OUT_ATTR_VALID, VALID_SECONDS);
    const attr = at + file.FUSE_ATTR_OUT_ATTR;
    const { bytes, limits } = this.#options.node;
    const now = this.#options.nowSeconds();
    setU64(view, attr + file.FUSE_ATTR_INO, fuse.FUSE_ROOT_ID);
    setU64(view, attr + file.FUSE_ATTR_SIZE_OF, bytes);
    setU64(view, attr + file.FUSE_ATTR_BLOCKS, this.#blocks());
    setU64(view, attr + file.FUSE_ATTR_ATIME, now);
    setU64(view, attr + file.FUSE_ATTR_MTIME, now);
    setU64(view, attr + file.FUSE_ATTR_CTIME, now);
    view.setUint32(attr + file.FUSE_ATTR_MODE, S_IFREG | this.#mode, true);
    view.setUint32(attr + file.FUSE_ATTR_NLINK, 1, true);
    view.setUint32(attr + file.FUSE_ATTR_UID, this.#uid, true);
    view.setUint32(attr + file.FUSE_ATTR_GID, this.#gid, true);
    view.setUint32(attr + file.FUSE_ATTR_BLKSIZE, limits.requestAlignment, true);
    return file.FUSE_ATTR_OUT_SIZE;
  }

  /** Writes fuse_statx_out. Returns its length. */
  writeStatx({ view, u8 }: Memory, at: number): number {
    u8.fill(0, at, at + file.FUSE_STATX_OUT_SIZE);
    setU64(view, at + file.FUSE_STATX_OUT_ATTR_VALID, VALID_SECONDS);
    const stat = at + file.FUSE_STATX_OUT_STAT;
    const { bytes, limits } = this.#options.node;
    const now = this.#options.nowSeconds();
    view.setUint32(stat + file.FUSE_STATX_MASK, STATX_BASIC_STATS, true);
    view.setUint32(stat + file.FUSE_STATX_BLKSIZE, limits.requestAlignment, true);
    view.setUint32(stat + file.FUSE_STATX_NLINK, 1, true);
    view.setUint32(stat + file.FUSE_STATX_UID, this.#uid, true);
    view.setUint32(stat + file.FUSE_STATX_GID, this.#gid, true);
    view.setUint16(stat + file.FUSE_STATX_MODE, S_IFREG | this.#mode, true);
    setU64(view, stat + file.FUSE_STATX_INO, fuse.FUSE_ROOT_ID);
    setU64(view, stat + file.FUSE_STATX_SIZE_OF, bytes);
    setU64(view, stat + file.FUSE_STATX_BLOCKS, this.#blocks());
    setU64(view, stat + file.FUSE_STATX_ATIME, now);
    setU64(view, stat + file.FUSE_STATX_CTIME, now);
    setU64(view, stat + file.FUSE_STATX_MTIME, now);
    return file.FUSE_STATX_OUT_SIZE;
  }

  /** Whether a SETATTR may be: 0 or -errno. Nothing changes yet. */
  check(valid: number, mode: number): number {
    const { allowOther, writable } = this.#options;
    const owner = allowOther ? fuse.FATTR_UID | fuse.FATTR_GID : 0;
    const allowed = fuse.FATTR_SIZE | fuse.FATTR_MODE | owner | FATTR_NO_CHANGE;
    if ((valid & ~allowed) !== 0) return -ENOTSUP;
    if ((valid & fuse.FATTR_MODE) !== 0) {
      // Nobody but the owner gets at the file.
      if (!allowOther && (mode & MODE_OTHERS) !== 0) return -EPERM;
      if (!writable && (mode & MODE_ANY_WRITE) !== 0) return -EROFS;
    }
    return (valid & fuse.FATTR_SIZE) !== 0 && !writable ? -EACCES : 0;
  }

  /** All but the length of what check() allowed. */
  set(valid: number, { mode, uid, gid }: Ownership): void {
    if ((valid & fuse.FATTR_MODE) !== 0) this.#mode = mode & MODE_BITS;
    if ((valid & fuse.FATTR_UID) !== 0) this.#uid = uid;
    if ((valid & fuse.FATTR_GID) !== 0) this.#gid = gid;
  }

  #blocks(): number {
    const { node } = this.#options;
    // As QSD: what takes no space at all seems to be there in full.
    return Math.ceil((node.describe().actualBytes || node.bytes) / BLOCK_BYTES);
  }
}

export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true);
}

/** Inexact from 2^53 on, which is beyond every disk. */
export function getU64(view: DataView, at: number): number {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * 0x1_0000_0000;
}
