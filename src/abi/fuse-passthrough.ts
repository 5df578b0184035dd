/**
 * FUSE passthrough: the kernel reads and writes a host file of ours itself; as fuse.ts.
 * Thread: any.
 * Spec: Linux include/uapi/linux/fuse.h; Documentation/filesystems/fuse-passthrough.rst
 */

// FUSE_INIT, by its bit in flags2.
export const FUSE_PASSTHROUGH_2 = 1 << (37 - 32);

// fuse_open_out.open_flags
export const FOPEN_PASSTHROUGH = 1 << 7;

export const FUSE_DEV_IOC_BACKING_OPEN = 0x4010_e501;
export const FUSE_DEV_IOC_BACKING_CLOSE = 0x4004_e502;

export const FUSE_BACKING_MAP_SIZE = 16;
export const FUSE_BACKING_MAP_FD = 0;
export const FUSE_BACKING_MAP_FLAGS = 4;
export const FUSE_BACKING_MAP_PADDING = 8;
