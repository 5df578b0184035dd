/**
 * The FUSE protocol between the kernel and who serves a file system: values and layouts, in the
 * host's byte order. Offsets are in bytes inside the structure that the prefix names.
 * Thread: any.
 *
 * Spec: Linux include/uapi/linux/fuse.h, protocol 7.45
 */
export const FUSE_KERNEL_VERSION = 7;
export const FUSE_KERNEL_MINOR_VERSION = 45;
export const FUSE_ROOT_ID = 1;

// enum fuse_opcode
export const FUSE_LOOKUP = 1;
export const FUSE_FORGET = 2;
export const FUSE_GETATTR = 3;
export const FUSE_SETATTR = 4;
export const FUSE_OPEN = 14;
export const FUSE_READ = 15;
export const FUSE_WRITE = 16;
export const FUSE_STATFS = 17;
export const FUSE_RELEASE = 18;
export const FUSE_FSYNC = 20;
export const FUSE_SETXATTR = 21;
export const FUSE_GETXATTR = 22;
export const FUSE_LISTXATTR = 23;
export const FUSE_REMOVEXATTR = 24;
export const FUSE_FLUSH = 25;
export const FUSE_INIT = 26;
export const FUSE_ACCESS = 34;
export const FUSE_INTERRUPT = 36;
export const FUSE_DESTROY = 38;
export const FUSE_IOCTL = 39;
export const FUSE_POLL = 40;
export const FUSE_NOTIFY_REPLY = 41;
export const FUSE_BATCH_FORGET = 42;
export const FUSE_FALLOCATE = 43;
export const FUSE_LSEEK = 46;
export const FUSE_COPY_FILE_RANGE = 47;
export const FUSE_SYNCFS = 50;
export const FUSE_STATX = 52;
export const FUSE_COPY_FILE_RANGE_64 = 53;

// enum fuse_notify_code
export const FUSE_NOTIFY_INVAL_INODE = 2;

// FUSE_INIT flags; those from bit 32 on are in flags2, here by their bit there.
export const FUSE_ASYNC_READ = 1 << 0;
export const FUSE_ATOMIC_O_TRUNC = 1 << 3;
export const FUSE_BIG_WRITES = 1 << 5;
export const FUSE_ASYNC_DIO = 1 << 15;
export const FUSE_MAX_PAGES = 1 << 22;
export const FUSE_INIT_EXT = 1 << 30;
export const FUSE_DIRECT_IO_ALLOW_MMAP_2 = 1 << (36 - 32);

// fuse_open_out.open_flags
export const FOPEN_DIRECT_IO = 1 << 0;
export const FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6;

// fuse_setattr_in.valid
export const FATTR_MODE = 1 << 0;
export const FATTR_UID = 1 << 1;
export const FATTR_GID = 1 << 2;
export const FATTR_SIZE = 1 << 3;
export const FATTR_FH = 1 << 6;
export const FATTR_LOCKOWNER = 1 << 9;

export const FUSE_IN_HEADER_SIZE = 40;
export const FUSE_IN_HEADER_LEN = 0;
export const FUSE_IN_HEADER_OPCODE = 4;
export const FUSE_IN_HEADER_UNIQUE = 8;
export const FUSE_IN_HEADER_NODEID = 16;
export const FUSE_IN_HEADER_UID = 24;

export const FUSE_OUT_HEADER_SIZE = 16;
export const FUSE_OUT_HEADER_LEN = 0;
/** 0 or -errno; of a notification its code, and `unique` is 0. */
export const FUSE_OUT_HEADER_ERROR = 4;
export const FUSE_OUT_HEADER_UNIQUE = 8;

export const FUSE_INIT_IN_SIZE = 64;
export const FUSE_INIT_IN_MAJOR = 0;
export const FUSE_INIT_IN_MINOR = 4;
export const FUSE_INIT_IN_MAX_READAHEAD = 8;
export const FUSE_INIT_IN_FLAGS = 12;
export const FUSE_INIT_IN_FLAGS2 = 16;

export const FUSE_INIT_OUT_SIZE = 64;
/** What kernels of protocol 7.5 to 7.22 expect. */
export const FUSE_COMPAT_22_INIT_OUT_SIZE = 24;
export const FUSE_INIT_OUT_MAJOR = 0;
export const FUSE_INIT_OUT_MINOR = 4;
export const FUSE_INIT_OUT_MAX_READAHEAD = 8;
export const FUSE_INIT_OUT_FLAGS = 12;
export const FUSE_INIT_OUT_MAX_BACKGROUND = 16;
export const FUSE_INIT_OUT_CONGESTION_THRESHOLD = 18;
export const FUSE_INIT_OUT_MAX_WRITE = 20;
export const FUSE_INIT_OUT_TIME_GRAN = 24;
export const FUSE_INIT_OUT_MAX_PAGES = 28;
export const FUSE_INIT_OUT_FLAGS2 = 32;
export const FUSE_INIT_OUT_MAX_STACK_DEPTH = 36;
