/**
 * Linux: files, memory, polling and ioctls. Values of x86-64; where arm64 differs, `Linux`
 * translates.
 * Spec: Linux include/uapi (asm-generic/fcntl.h, linux/stat.h, linux/mman.h, linux/fs.h, ...)
 */
import type { Arch } from "./syscalls.ts";

// open() flags.
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_ACCMODE = 3;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_TRUNC = 0o1000;
export const O_APPEND = 0o2000;
export const O_NONBLOCK = 0o4000;
export const O_DSYNC = 0o10000;
export const O_DIRECT = 0o40000;
export const O_DIRECTORY = 0o200000;
export const O_NOFOLLOW = 0o400000;
export const O_CLOEXEC = 0o2000000;
/** Of arm64, where they differ. */
export const ARM64_O_DIRECTORY = 0o40000;
export const ARM64_O_NOFOLLOW = 0o100000;
export const ARM64_O_DIRECT = 0o200000;

export const AT_FDCWD = -100;
export const AT_EMPTY_PATH = 0x1000;

export const SEEK_SET = 0;
export const SEEK_END = 2;
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

export const FALLOC_FL_KEEP_SIZE = 0x01;
export const FALLOC_FL_PUNCH_HOLE = 0x02;
export const FALLOC_FL_ZERO_RANGE = 0x10;
export const POSIX_FADV_DONTNEED = 4;

// preadv2() and pwritev2() flags.
export const RWF_DSYNC = 0x02;
export const RWF_NOWAIT = 0x08;

// File types in st_mode.
export const S_IFMT = 0o170000;
export const S_IFSOCK = 0o140000;
export const S_IFLNK = 0o120000;
export const S_IFREG = 0o100000;
export const S_IFBLK = 0o060000;
export const S_IFDIR = 0o040000;
export const S_IFCHR = 0o020000;
export const S_IFIFO = 0o010000;

// struct statx: byte offsets.
export const STATX_SIZE = 256;
export const STATX_MASK = 0;
export const STATX_BLKSIZE = 4;
export const STATX_MODE = 28;
export const STATX_INO = 32;
export const STATX_BYTES = 40;
export const STATX_BLOCKS = 48;
export const STATX_CTIME = 96;
export const STATX_RDEV_MAJOR = 128;
export const STATX_RDEV_MINOR = 132;
export const STATX_DEV_MAJOR = 136;
export const STATX_DEV_MINOR = 140;
export const STATX_DIO_MEM_ALIGN = 152;
export const STATX_DIO_OFFSET_ALIGN = 156;
// statx() masks.
export const STATX_BASIC_STATS = 0x7ff;
export const STATX_DIOALIGN = 0x2000;

// fcntl() commands.
export const F_GETFD = 1;
export const F_SETFD = 2;
export const F_GETFL = 3;
export const F_SETFL = 4;
export const F_OFD_GETLK = 36;
export const F_OFD_SETLK = 37;
export const F_DUPFD_CLOEXEC = 1030;
export const F_SETPIPE_SZ = 1031;
export const FD_CLOEXEC = 1;
export const F_RDLCK = 0;
export const F_WRLCK = 1;
export const F_UNLCK = 2;
// struct flock: byte offsets.
export const FLOCK_SIZE = 32;
export const FLOCK_TYPE = 0;
export const FLOCK_WHENCE = 2;
export const FLOCK_START = 8;
export const FLOCK_LEN = 16;
export const FLOCK_PID = 24;

export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_ANONYMOUS = 0x20;
export const MAP_NORESERVE = 0x4000;
export const MAP_POPULATE = 0x8000;
export const MAP_FIXED_NOREPLACE = 0x100000;
export const MADV_DONTNEED = 4;
export const MADV_DONTDUMP = 16;

export const EFD_NONBLOCK = O_NONBLOCK;
export const EFD_CLOEXEC = O_CLOEXEC;

// poll() events; epoll has the same values.
export const POLLIN = 0x001;
export const POLLOUT = 0x004;
export const POLLERR = 0x008;
export const POLLHUP = 0x010;
export const POLLRDHUP = 0x2000;

export const EPOLL_CTL_ADD = 1;
export const EPOLL_CTL_DEL = 2;
export const EPOLL_CTL_MOD = 3;
export const EPOLLET = 0x8000_0000;
export const EPOLLONESHOT = 0x4000_0000;
export const EPOLL_CLOEXEC = O_CLOEXEC;
/** struct epoll_event, u32 events at 0: its size, and where its u64 data is. */
export const EPOLL_EVENT: Readonly<Record<Arch, { readonly size: number; readonly data: number }>> =
  { x64: { size: 12, data: 4 }, arm64: { size: 16, data: 8 } };

export const SPLICE_F_MOVE = 1;
export const SPLICE_F_NONBLOCK = 2;

// Block device ioctls.
export const BLKROGET = 0x125e;
export const BLKSECTGET = 0x1267;
export const BLKSSZGET = 0x1268;
export const BLKDISCARD = 0x1277;
/** Writes a u64. */
export const BLKGETSIZE64 = 0x8008_1272;

export const PR_SET_NAME = 15;
export const CLOCK_REALTIME = 0;
export const CLOCK_MONOTONIC = 1;
// struct timespec: byte offsets.
export const TIMESPEC_SIZE = 16;
export const TIMESPEC_SEC = 0;
export const TIMESPEC_NSEC = 8;
// struct iovec: byte offsets.
export const IOVEC_SIZE = 16;
export const IOVEC_BASE = 0;
export const IOVEC_LEN = 8;
// struct cachestat_range and cachestat: bytes, then u64 fields in order.
export const CACHESTAT_RANGE_SIZE = 16;
export const CACHESTAT_SIZE = 40;
