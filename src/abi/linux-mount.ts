/**
 * Linux: mounting.
 * Spec: Linux include/uapi/linux/{mount,stat,fcntl}.h, proc_pid_mountinfo(5)
 */

// mount() flags.
export const MS_RDONLY = 0x01;
export const MS_NOSUID = 0x02;
export const MS_NODEV = 0x04;
export const MS_NOATIME = 0x400;

// umount2() flags.
export const MNT_FORCE = 1;
export const MNT_DETACH = 2;

// open() and statx(), beyond those of linux.ts.
export const O_PATH = 0o10000000;
export const AT_STATX_DONT_SYNC = 0x4000;
export const STATX_MNT_ID = 0x1000;
/** struct statx: byte offset of a u64. */
export const STATX_MNT_ID_AT = 144;
