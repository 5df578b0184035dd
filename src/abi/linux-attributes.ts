/**
 * Linux: attributes of files, and the ioctls that read and write them. The same on x86-64 and
 * arm64. Spec: linux/fs.h
 */
export const FS_IOC_GETFLAGS = 0x8008_6601;
export const FS_IOC_SETFLAGS = 0x4008_6602;
export const FS_NOCOW_FL = 0x0080_0000;

export const FS_IOC_FSGETXATTR = 0x801c_581f;
export const FS_IOC_FSSETXATTR = 0x401c_5820;
export const FS_XFLAG_EXTSIZE = 0x0000_0800;

// struct fsxattr
export const FSXATTR_XFLAGS = 0;
export const FSXATTR_EXTSIZE = 4;
export const FSXATTR_SIZE = 28;
