/**
 * The qcow2 image format: layout and constants. All numbers in it are big-endian.
 * Spec: QEMU docs/interop/qcow2.rst
 */

/** "QFI\xfb" */
export const QCOW_MAGIC = 0x514649fb;

// Offsets of header fields.
export const HEADER_MAGIC = 0;
export const HEADER_VERSION = 4;
export const HEADER_BACKING_FILE_OFFSET = 8;
export const HEADER_BACKING_FILE_SIZE = 16;
export const HEADER_CLUSTER_BITS = 20;
export const HEADER_SIZE = 24;
export const HEADER_CRYPT_METHOD = 32;
export const HEADER_L1_SIZE = 36;
export const HEADER_L1_TABLE_OFFSET = 40;
export const HEADER_REFCOUNT_TABLE_OFFSET = 48;
export const HEADER_REFCOUNT_TABLE_CLUSTERS = 56;
export const HEADER_NB_SNAPSHOTS = 60;
export const HEADER_SNAPSHOTS_OFFSET = 64;
// Version 3 and higher.
export const HEADER_INCOMPATIBLE_FEATURES = 72;
export const HEADER_COMPATIBLE_FEATURES = 80;
export const HEADER_AUTOCLEAR_FEATURES = 88;
export const HEADER_REFCOUNT_ORDER = 96;
export const HEADER_HEADER_LENGTH = 100;
// Additional fields.
export const HEADER_COMPRESSION_TYPE = 104;
/** With all the fields that are known here, and their padding. */
export const HEADER_LENGTH_KNOWN = 112;
export const HEADER_LENGTH_V2 = 72;
export const HEADER_LENGTH_V3_MIN = 104;

export const QCOW2_INCOMPAT_DIRTY = 1 << 0;
export const QCOW2_INCOMPAT_CORRUPT = 1 << 1;
export const QCOW2_INCOMPAT_DATA_FILE = 1 << 2;
export const QCOW2_INCOMPAT_COMPRESSION = 1 << 3;
export const QCOW2_INCOMPAT_EXTL2 = 1 << 4;
/** Those that are known here. */
export const QCOW2_INCOMPAT_MASK = 0x1f;

export const QCOW2_COMPAT_LAZY_REFCOUNTS = 1 << 0;

export const QCOW2_AUTOCLEAR_BITMAPS = 1 << 0;
export const QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1 << 1;
/** Those that are known here. */
export const QCOW2_AUTOCLEAR_MASK = 0x3;

export const QCOW_CRYPT_NONE = 0;
export const QCOW_CRYPT_AES = 1;
export const QCOW_CRYPT_LUKS = 2;

export const QCOW2_COMPRESSION_TYPE_ZLIB = 0;
export const QCOW2_COMPRESSION_TYPE_ZSTD = 1;

// Header extensions: type, length of the data, data, padding to a multiple of 8.
export const EXTENSION_TYPE = 0;
export const EXTENSION_LENGTH = 4;
export const EXTENSION_DATA = 8;
export const QCOW2_EXT_MAGIC_END = 0;
export const QCOW2_EXT_MAGIC_BACKING_FORMAT = 0xe2792aca;
export const QCOW2_EXT_MAGIC_FEATURE_TABLE = 0x6803f857;
export const QCOW2_EXT_MAGIC_BITMAPS = 0x23852875;
export const QCOW2_EXT_MAGIC_CRYPTO_HEADER = 0x0537be77;
export const QCOW2_EXT_MAGIC_DATA_FILE = 0x44415441;

// An entry of the feature name table.
export const FEATURE_TYPE = 0;
export const FEATURE_BIT = 1;
export const FEATURE_NAME = 2;
export const FEATURE_NAME_BYTES = 46;
export const FEATURE_ENTRY_BYTES = 48;
export const QCOW2_FEAT_TYPE_INCOMPATIBLE = 0;

// The bitmaps extension.
export const BITMAPS_NB_BITMAPS = 0;
export const BITMAPS_RESERVED = 4;
export const BITMAPS_DIRECTORY_SIZE = 8;
export const BITMAPS_DIRECTORY_OFFSET = 16;
export const BITMAPS_EXTENSION_BYTES = 24;

// A bitmap directory entry, up to its extra data and its name.
export const BITMAP_TABLE_OFFSET = 0;
export const BITMAP_TABLE_SIZE = 8;
export const BITMAP_FLAGS = 12;
export const BITMAP_TYPE = 16;
export const BITMAP_GRANULARITY_BITS = 17;
export const BITMAP_NAME_SIZE = 18;
export const BITMAP_EXTRA_DATA_SIZE = 20;
export const BITMAP_HEADER_BYTES = 24;
export const BME_FLAG_IN_USE = 1 << 0;
export const BME_FLAG_AUTO = 1 << 1;
/** Those that are known here. */
export const BME_FLAGS_MASK = 0x3;
export const BT_DIRTY_TRACKING_BITMAP = 1;

// Bits of bitmap table entries: of their upper and lower halves.
export const BME_TABLE_ENTRY_RESERVED_HI = 0xff00_0000;
export const BME_TABLE_ENTRY_RESERVED_LO = 0x0000_01fe;
/** With no offset: all bits of the part are set. */
export const BME_TABLE_ENTRY_FLAG_ALL_ONES_LO = 1;

/** Entries of L1, refcount and standard L2 tables. */
export const ENTRY_BYTES = 8;
export const L2E_SIZE_NORMAL = 8;
export const L2E_SIZE_EXTENDED = 16;
export const QCOW_EXTL2_SUBCLUSTERS_PER_CLUSTER = 32;

// Bits of L1 and L2 entries: of their upper and lower halves.
/** The refcount is exactly one. */
export const QCOW_OFLAG_COPIED_HI = 0x8000_0000;
export const QCOW_OFLAG_COMPRESSED_HI = 0x4000_0000;
export const QCOW_OFLAG_ZERO_LO = 1;
export const OFFSET_MASK_HI = 0x00ff_ffff;
export const OFFSET_MASK_LO = 0xffff_fe00;

/** Of the refcount table: bits 9 to 63. */
export const REFT_OFFSET_MASK_LO = 0xffff_fe00;

// Limits of QEMU's driver.
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
export const QCOW_MAX_REFTABLE_SIZE = 8 * 1024 * 1024;
export const QCOW_MAX_L1_SIZE = 32 * 1024 * 1024;
export const QCOW2_MAX_BITMAPS = 65535;
export const QCOW2_MAX_BITMAP_DIRECTORY_SIZE = 1024 * QCOW2_MAX_BITMAPS;
/** Entries of a bitmap's table. */
export const BME_MAX_TABLE_SIZE = 0x800_0000;
/** Bytes of a bitmap's bits. */
export const BME_MAX_PHYS_SIZE = 0x2000_0000;
export const BME_MAX_GRANULARITY_BITS = 31;
export const BME_MIN_GRANULARITY_BITS = 9;
export const BME_MAX_NAME_SIZE = 1023;
export const DEFAULT_L2_CACHE_MAX_SIZE = 32 * 1024 * 1024;
export const MIN_L2_CACHE_SIZE = 2;
export const MIN_REFCOUNT_CACHE_SIZE = 4;
/** Seconds. */
export const DEFAULT_CACHE_CLEAN_INTERVAL = 600;
export const BACKING_FILE_NAME_BYTES_MAX = 1023;
export const BACKING_FORMAT_NAME_BYTES_MAX = 15;
