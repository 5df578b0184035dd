/**
 * FUSE requests on a file, what they carry and what answers them; as fuse.ts. Thread: any.
 * Spec: Linux include/uapi/linux/fuse.h
 */

/** What FLUSH, FSYNC and RELEASE begin with: what OPEN has answered. */
export const FUSE_FH_SIZE = 8;

// fuse_open_in is {u32 flags, u32 open_flags}.
export const FUSE_OPEN_IN_SIZE = 8;
export const FUSE_OPEN_IN_FLAGS = 0;
export const FUSE_OPEN_OUT_SIZE = 16;
export const FUSE_OPEN_OUT_FH = 0;
export const FUSE_OPEN_OUT_OPEN_FLAGS = 8;
export const FUSE_OPEN_OUT_BACKING_ID = 12;

export const FUSE_READ_IN_SIZE = 40;
export const FUSE_READ_IN_OFFSET = 8;
export const FUSE_READ_IN_SIZE_OF = 16;

/** The data follow. */
export const FUSE_WRITE_IN_SIZE = 40;
export const FUSE_WRITE_IN_OFFSET = 8;
export const FUSE_WRITE_IN_SIZE_OF = 16;
export const FUSE_WRITE_IN_FLAGS = 32;
export const FUSE_WRITE_OUT_SIZE = 8;
export const FUSE_WRITE_OUT_SIZE_OF = 0;

export const FUSE_FALLOCATE_IN_SIZE = 32;
export const FUSE_FALLOCATE_IN_OFFSET = 8;
export const FUSE_FALLOCATE_IN_LENGTH = 16;
export const FUSE_FALLOCATE_IN_MODE = 24;

export const FUSE_LSEEK_IN_SIZE = 24;
export const FUSE_LSEEK_IN_OFFSET = 8;
export const FUSE_LSEEK_IN_WHENCE = 16;
export const FUSE_LSEEK_OUT_SIZE = 8;
export const FUSE_LSEEK_OUT_OFFSET = 0;

export const FUSE_SETATTR_IN_SIZE = 88;
export const FUSE_SETATTR_IN_VALID = 0;
export const FUSE_SETATTR_IN_SIZE_OF = 16;
export const FUSE_SETATTR_IN_MODE = 68;
export const FUSE_SETATTR_IN_UID = 76;
export const FUSE_SETATTR_IN_GID = 80;

export const FUSE_ATTR_INO = 0;
export const FUSE_ATTR_SIZE_OF = 8;
export const FUSE_ATTR_BLOCKS = 16;
export const FUSE_ATTR_ATIME = 24;
export const FUSE_ATTR_MTIME = 32;
export const FUSE_ATTR_CTIME = 40;
export const FUSE_ATTR_MODE = 60;
export const FUSE_ATTR_NLINK = 64;
export const FUSE_ATTR_UID = 68;
export const FUSE_ATTR_GID = 72;
export const FUSE_ATTR_BLKSIZE = 80;

export const FUSE_ATTR_OUT_SIZE = 104;
export const FUSE_ATTR_OUT_ATTR_VALID = 0;
export const FUSE_ATTR_OUT_ATTR = 16;

export const FUSE_STATX_OUT_SIZE = 288;
export const FUSE_STATX_OUT_ATTR_VALID = 0;
export const FUSE_STATX_OUT_STAT = 32;
export const FUSE_STATX_MASK = 0;
export const FUSE_STATX_BLKSIZE = 4;
export const FUSE_STATX_NLINK = 16;
export const FUSE_STATX_UID = 20;
export const FUSE_STATX_GID = 24;
export const FUSE_STATX_MODE = 28;
export const FUSE_STATX_INO = 32;
export const FUSE_STATX_SIZE_OF = 40;
export const FUSE_STATX_BLOCKS = 48;
export const FUSE_STATX_ATIME = 64;
export const FUSE_STATX_CTIME = 96;
export const FUSE_STATX_MTIME = 112;

export const FUSE_STATFS_OUT_SIZE = 80;
export const FUSE_KSTATFS_BSIZE = 40;
export const FUSE_KSTATFS_NAMELEN = 44;

export const FUSE_NOTIFY_INVAL_INODE_OUT_SIZE = 24;
export const FUSE_NOTIFY_INVAL_INODE_OUT_INO = 0;
/** Negative: the attributes only. */
export const FUSE_NOTIFY_INVAL_INODE_OUT_OFF = 8;
