/**
 * The virtio block device: layouts and constants. All fields are little-endian.
 * Spec: VIRTIO 1.3 §5.2 "Block Device"
 */

/** Of capacity, of sectors in requests, and of every limit in sectors. */
export const VIRTIO_BLK_SECTOR_BYTES = 512;

// Feature bits: numbers, not masks.
export const VIRTIO_BLK_F_SIZE_MAX = 1;
export const VIRTIO_BLK_F_SEG_MAX = 2;
export const VIRTIO_BLK_F_GEOMETRY = 4;
export const VIRTIO_BLK_F_RO = 5;
export const VIRTIO_BLK_F_BLK_SIZE = 6;
export const VIRTIO_BLK_F_FLUSH = 9;
export const VIRTIO_BLK_F_TOPOLOGY = 10;
export const VIRTIO_BLK_F_CONFIG_WCE = 11;
export const VIRTIO_BLK_F_MQ = 12;
export const VIRTIO_BLK_F_DISCARD = 13;
export const VIRTIO_BLK_F_WRITE_ZEROES = 14;
export const VIRTIO_BLK_F_LIFETIME = 15;
export const VIRTIO_BLK_F_SECURE_ERASE = 16;
export const VIRTIO_BLK_F_ZONED = 17;

// struct virtio_blk_config: byte offsets.
/** With the zoned part; what a device without it shows ends at VIRTIO_BLK_CONFIG_ZONED. */
export const VIRTIO_BLK_CONFIG_SIZE = 96;
export const VIRTIO_BLK_CONFIG_CAPACITY = 0;
export const VIRTIO_BLK_CONFIG_SIZE_MAX = 8;
export const VIRTIO_BLK_CONFIG_SEG_MAX = 12;
export const VIRTIO_BLK_CONFIG_GEOMETRY = 16;
export const VIRTIO_BLK_CONFIG_BLK_SIZE = 20;
export const VIRTIO_BLK_CONFIG_PHYSICAL_BLOCK_EXP = 24;
export const VIRTIO_BLK_CONFIG_ALIGNMENT_OFFSET = 25;
export const VIRTIO_BLK_CONFIG_MIN_IO_SIZE = 26;
export const VIRTIO_BLK_CONFIG_OPT_IO_SIZE = 28;
export const VIRTIO_BLK_CONFIG_WCE = 32;
export const VIRTIO_BLK_CONFIG_NUM_QUEUES = 34;
export const VIRTIO_BLK_CONFIG_MAX_DISCARD_SECTORS = 36;
export const VIRTIO_BLK_CONFIG_MAX_DISCARD_SEG = 40;
export const VIRTIO_BLK_CONFIG_DISCARD_SECTOR_ALIGNMENT = 44;
export const VIRTIO_BLK_CONFIG_MAX_WRITE_ZEROES_SECTORS = 48;
export const VIRTIO_BLK_CONFIG_MAX_WRITE_ZEROES_SEG = 52;
export const VIRTIO_BLK_CONFIG_WRITE_ZEROES_MAY_UNMAP = 56;
export const VIRTIO_BLK_CONFIG_MAX_SECURE_ERASE_SECTORS = 60;
export const VIRTIO_BLK_CONFIG_MAX_SECURE_ERASE_SEG = 64;
export const VIRTIO_BLK_CONFIG_SECURE_ERASE_SECTOR_ALIGNMENT = 68;
export const VIRTIO_BLK_CONFIG_ZONED = 72;

// struct virtio_blk_req, the device-readable part: byte offsets.
export const VIRTIO_BLK_OUTHDR_SIZE = 16;
export const VIRTIO_BLK_OUTHDR_TYPE = 0;
export const VIRTIO_BLK_OUTHDR_IOPRIO = 4;
export const VIRTIO_BLK_OUTHDR_SECTOR = 8;

// Types of requests.
export const VIRTIO_BLK_T_IN = 0;
export const VIRTIO_BLK_T_OUT = 1;
export const VIRTIO_BLK_T_FLUSH = 4;
export const VIRTIO_BLK_T_GET_ID = 8;
export const VIRTIO_BLK_T_GET_LIFETIME = 10;
export const VIRTIO_BLK_T_DISCARD = 11;
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;
export const VIRTIO_BLK_T_SECURE_ERASE = 14;

/** What GET_ID returns: NUL-padded, not terminated when full. */
export const VIRTIO_BLK_ID_BYTES = 20;

// struct virtio_blk_discard_write_zeroes: byte offsets.
export const VIRTIO_BLK_DISCARD_WRITE_ZEROES_SIZE = 16;
export const VIRTIO_BLK_DISCARD_WRITE_ZEROES_SECTOR = 0;
export const VIRTIO_BLK_DISCARD_WRITE_ZEROES_NUM_SECTORS = 8;
export const VIRTIO_BLK_DISCARD_WRITE_ZEROES_FLAGS = 12;
export const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1;

// The status byte.
export const VIRTIO_BLK_S_OK = 0;
export const VIRTIO_BLK_S_IOERR = 1;
export const VIRTIO_BLK_S_UNSUPP = 2;
