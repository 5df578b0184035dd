/**
 * LUKS version 1: layout and constants of its header. All numbers in it are big-endian.
 * Spec: LUKS1 On-Disk Format Specification 1.2.3 "2.3 LUKS partition header"
 */

export const LUKS_MAGIC = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe] as const;
export const LUKS_VERSION = 1;

// Offsets of header fields.
export const LUKS_HEADER_VERSION = 6;
export const LUKS_HEADER_CIPHER_NAME = 8;
export const LUKS_HEADER_CIPHER_MODE = 40;
export const LUKS_HEADER_HASH_SPEC = 72;
export const LUKS_HEADER_PAYLOAD_OFFSET = 104;
export const LUKS_HEADER_KEY_BYTES = 108;
export const LUKS_HEADER_MK_DIGEST = 112;
export const LUKS_HEADER_MK_DIGEST_SALT = 132;
export const LUKS_HEADER_MK_DIGEST_ITER = 164;
export const LUKS_HEADER_UUID = 168;
export const LUKS_HEADER_KEY_SLOTS = 208;
export const LUKS_HEADER_BYTES = 592;

/** Of the cipher's name, its mode and the hash; the last byte is zero. */
export const LUKS_NAME_BYTES = 32;
export const LUKS_DIGESTSIZE = 20;
export const LUKS_SALTSIZE = 32;
export const LUKS_UUID_BYTES = 40;
export const LUKS_NUMKEYS = 8;

// Of a key slot.
export const LUKS_SLOT_ACTIVE = 0;
export const LUKS_SLOT_ITERATIONS = 4;
export const LUKS_SLOT_SALT = 8;
export const LUKS_SLOT_KEY_MATERIAL_OFFSET = 40;
export const LUKS_SLOT_STRIPES = 44;
export const LUKS_SLOT_BYTES = 48;

export const LUKS_KEY_DISABLED = 0x0000dead;
export const LUKS_KEY_ENABLED = 0x00ac71f3;
export const LUKS_STRIPES = 4000;
/** What offsets and lengths in the header count, and what is encrypted at a time. */
export const LUKS_SECTOR_BYTES = 512;
/** Where key material begins, and what it is aligned to. */
export const LUKS_ALIGN_KEYSLOTS = 4096;
