/**
 * Virtqueues: layouts and constants. All fields are little-endian.
 * Spec: VIRTIO 1.3 §2.7 "Split Virtqueues", §2.8 "Packed Virtqueues", §6 "Reserved Feature Bits"
 */

/** Entries of a queue, at most: a power of two in a split one. */
export const VIRTQ_SIZE_MAX = 32768;

// Feature bits: numbers, not masks.
export const VIRTIO_F_INDIRECT_DESC = 28;
export const VIRTIO_F_EVENT_IDX = 29;
export const VIRTIO_F_VERSION_1 = 32;
export const VIRTIO_F_ACCESS_PLATFORM = 33;
export const VIRTIO_F_RING_PACKED = 34;
export const VIRTIO_F_IN_ORDER = 35;
export const VIRTIO_F_ORDER_PLATFORM = 36;
export const VIRTIO_F_SR_IOV = 37;
export const VIRTIO_F_NOTIFICATION_DATA = 38;
export const VIRTIO_F_NOTIF_CONFIG_DATA = 39;
export const VIRTIO_F_RING_RESET = 40;
/** Transitional devices only. */
export const VIRTIO_F_NOTIFY_ON_EMPTY = 24;
export const VIRTIO_F_ANY_LAYOUT = 27;

// Device status bits.
export const VIRTIO_CONFIG_S_ACKNOWLEDGE = 1;
export const VIRTIO_CONFIG_S_DRIVER = 2;
export const VIRTIO_CONFIG_S_DRIVER_OK = 4;
export const VIRTIO_CONFIG_S_FEATURES_OK = 8;
export const VIRTIO_CONFIG_S_NEEDS_RESET = 64;
export const VIRTIO_CONFIG_S_FAILED = 128;

// Descriptor flags.
export const VIRTQ_DESC_F_NEXT = 1;
export const VIRTQ_DESC_F_WRITE = 2;
export const VIRTQ_DESC_F_INDIRECT = 4;
/** Packed rings only. */
export const VIRTQ_DESC_F_AVAIL = 1 << 7;
export const VIRTQ_DESC_F_USED = 1 << 15;

/** struct virtq_desc: u64 addr, u32 len, u16 flags, u16 next. By bytes, and by u32. */
export const VIRTQ_DESC_SIZE = 16;
export const VIRTQ_DESC_ADDR = 0;
export const VIRTQ_DESC_LEN = 8;
export const VIRTQ_DESC_FLAGS = 12;
export const VIRTQ_DESC_NEXT = 14;
export const VIRTQ_DESC_U32 = 4;
export const VIRTQ_DESC_LEN_U32 = 2;
export const VIRTQ_DESC_FLAGS_NEXT_U32 = 3;

/** struct virtq_avail: u16 flags, u16 idx, u16 ring[], u16 used_event. By u16. */
export const VIRTQ_AVAIL_FLAGS_U16 = 0;
export const VIRTQ_AVAIL_IDX_U16 = 1;
export const VIRTQ_AVAIL_RING_U16 = 2;
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;
/** Of a queue with `size` entries, used_event included. */
export const virtqAvailBytes = (size: number): number => 6 + 2 * size;

/** struct virtq_used: u16 flags, u16 idx, { u32 id, u32 len } ring[], u16 avail_event. */
export const VIRTQ_USED_FLAGS_U16 = 0;
export const VIRTQ_USED_IDX_U16 = 1;
export const VIRTQ_USED_RING_U32 = 1;
export const VIRTQ_USED_ELEM_U32 = 2;
export const VIRTQ_USED_F_NO_NOTIFY = 1;
/** Of a queue with `size` entries, avail_event included. */
export const virtqUsedBytes = (size: number): number => 6 + 8 * size;

/** struct pvirtq_desc: u64 addr, u32 len, u16 id, u16 flags. By bytes, by u32, and by u16. */
export const PVIRTQ_DESC_SIZE = 16;
export const PVIRTQ_DESC_ID = 12;
export const PVIRTQ_DESC_FLAGS = 14;
export const PVIRTQ_DESC_U32 = 4;
export const PVIRTQ_DESC_LEN_U32 = 2;
export const PVIRTQ_DESC_ID_FLAGS_U32 = 3;
export const PVIRTQ_DESC_U16 = 8;
export const PVIRTQ_DESC_ID_U16 = 6;
export const PVIRTQ_DESC_FLAGS_U16 = 7;

/** struct pvirtq_event_suppress: u15 desc_event_off, u1 desc_event_wrap, u2 flags. By u16. */
export const PVIRTQ_EVENT_SUPPRESS_SIZE = 4;
export const PVIRTQ_EVENT_OFF_WRAP_U16 = 0;
export const PVIRTQ_EVENT_FLAGS_U16 = 1;
export const PVIRTQ_EVENT_WRAP = 1 << 15;
export const RING_EVENT_FLAGS_ENABLE = 0;
export const RING_EVENT_FLAGS_DISABLE = 1;
export const RING_EVENT_FLAGS_DESC = 2;
/** Reserved: like ENABLE it asks for every notification. */
export const RING_EVENT_FLAGS_MASK = 3;
