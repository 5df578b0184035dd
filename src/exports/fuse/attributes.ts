/**
 * The attributes of the one file that an export is. Thread: iothread.
 * Spec: linux/fuse.h fuse_attr, fuse_statx; QEMU block/export/fuse.c for what may be changed
 */
import * as fuse from "../../abi/fuse.ts";
import * as file from "../../abi/fuse-file.ts";
import { S_IFDIR, S_IFREG } from "../../abi/linux.ts";
import type { BlockNode } from "../../block/node.ts";
import { blockBytesOf } from "../../block/permissions.ts";
import type { Memory } from "../../io/memory.ts";
import { EACCES, ENOTSUP, EPERM, EROFS } from "../../runtime/errno.ts";

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
  #type = S_IFREG;
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

  /**
   * From now on it seems to be another kind of file. A kernel that hears so has nothing to do with
   * it any more: whatever programs do with the file fails with EIO.
   */
  revoke(): void {
    this.#type = S_IFDIR;
  }

  /** Writes fuse_attr_out. Returns its length. */
  write(memory: Memory, at: number): number {
    const { view, u8 } = memory;
    u8.fill(0, at, at + file.FUSE_ATTR_OUT_SIZE);
    memory.setU64(at + file.FUSE_ATTR_OUT_ATTR_VALID, VALID_SECONDS);
    const attr = at + file.FUSE_ATTR_OUT_ATTR;
    const { bytes, limits } = this.#options.node;
    const now = this.#options.nowSeconds();
    memory.setU64(attr + file.FUSE_ATTR_INO, fuse.FUSE_ROOT_ID);
    memory.setU64(attr + file.FUSE_ATTR_SIZE_OF, bytes);
    memory.setU64(attr + file.FUSE_ATTR_BLOCKS, this.#blocks());
    memory.setU64(attr + file.FUSE_ATTR_ATIME, now);
    memory.setU64(attr + file.FUSE_ATTR_MTIME, now);
    memory.setU64(attr + file.FUSE_ATTR_CTIME, now);
    view.setUint32(attr + file.FUSE_ATTR_MODE, this.#type | this.#mode, true);
    view.setUint32(attr + file.FUSE_ATTR_NLINK, 1, true);
    view.setUint32(attr + file.FUSE_ATTR_UID, this.#uid, true);
    view.setUint32(attr + file.FUSE_ATTR_GID, this.#gid, true);
    view.setUint32(attr + file.FUSE_ATTR_BLKSIZE, blockBytesOf(limits), true);
    return file.FUSE_ATTR_OUT_SIZE;
  }

  /** Writes fuse_statx_out. Returns its length. */
  writeStatx(memory: Memory, at: number): number {
    const { view, u8 } = memory;
    u8.fill(0, at, at + file.FUSE_STATX_OUT_SIZE);
    memory.setU64(at + file.FUSE_STATX_OUT_ATTR_VALID, VALID_SECONDS);
    const stat = at + file.FUSE_STATX_OUT_STAT;
    const { bytes, limits } = this.#options.node;
    const now = this.#options.nowSeconds();
    view.setUint32(stat + file.FUSE_STATX_MASK, STATX_BASIC_STATS, true);
    view.setUint32(stat + file.FUSE_STATX_BLKSIZE, blockBytesOf(limits), true);
    view.setUint32(stat + file.FUSE_STATX_NLINK, 1, true);
    view.setUint32(stat + file.FUSE_STATX_UID, this.#uid, true);
    view.setUint32(stat + file.FUSE_STATX_GID, this.#gid, true);
    view.setUint16(stat + file.FUSE_STATX_MODE, this.#type | this.#mode, true);
    memory.setU64(stat + file.FUSE_STATX_INO, fuse.FUSE_ROOT_ID);
    memory.setU64(stat + file.FUSE_STATX_SIZE_OF, bytes);
    memory.setU64(stat + file.FUSE_STATX_BLOCKS, this.#blocks());
    memory.setU64(stat + file.FUSE_STATX_ATIME, now);
    memory.setU64(stat + file.FUSE_STATX_CTIME, now);
    memory.setU64(stat + file.FUSE_STATX_MTIME, now);
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
