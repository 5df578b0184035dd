/**
 * The log that dm-log-writes and blklogwrites write: one sector with the superblock, then per
 * entry a sector with its head and the sectors of its data. All fields are little-endian.
 * Spec: Linux drivers/md/dm-log-writes.c, Documentation/admin-guide/device-mapper/log-writes.rst
 */

export const WRITE_LOG_MAGIC = 0x6a736677736872n;
export const WRITE_LOG_VERSION = 1n;

/** struct log_write_super */
export const LOG_SUPER_BYTES = 28;
export const LOG_SUPER_MAGIC = 0;
export const LOG_SUPER_VERSION = 8;
export const LOG_SUPER_NR_ENTRIES = 16;
export const LOG_SUPER_SECTORSIZE = 24;

/** struct log_write_entry */
export const LOG_ENTRY_BYTES = 32;
export const LOG_ENTRY_SECTOR = 0;
export const LOG_ENTRY_NR_SECTORS = 8;
export const LOG_ENTRY_FLAGS = 16;
export const LOG_ENTRY_DATA_LEN = 24;

export const LOG_FLUSH_FLAG = 1 << 0;
export const LOG_FUA_FLAG = 1 << 1;
export const LOG_DISCARD_FLAG = 1 << 2;
export const LOG_MARK_FLAG = 1 << 3;
export const LOG_FLAG_MASK = 15;
