/**
 * The regions that track requests in flight for a back-end that is started again: layouts.
 * All fields are in the byte order of the machine.
 * Spec: QEMU docs/interop/vhost-user.rst "Inflight I/O tracking"
 */

/** What each queue's region is a multiple of. */
export const INFLIGHT_ALIGNMENT = 64;
export const INFLIGHT_VERSION = 1;

// QueueRegionSplit: byte offsets, then DescStateSplit[].
export const QUEUE_REGION_SPLIT_SIZE = 16;
export const QUEUE_REGION_SPLIT_FEATURES = 0;
export const QUEUE_REGION_SPLIT_VERSION = 8;
export const QUEUE_REGION_SPLIT_DESC_NUM = 10;
export const QUEUE_REGION_SPLIT_LAST_BATCH_HEAD = 12;
export const QUEUE_REGION_SPLIT_USED_IDX = 14;
// DescStateSplit.
export const DESC_STATE_SPLIT_SIZE = 16;
export const DESC_STATE_SPLIT_INFLIGHT = 0;
export const DESC_STATE_SPLIT_NEXT = 6;
export const DESC_STATE_SPLIT_COUNTER = 8;

// QueueRegionPacked: byte offsets, then DescStatePacked[].
export const QUEUE_REGION_PACKED_SIZE = 32;
export const QUEUE_REGION_PACKED_FEATURES = 0;
export const QUEUE_REGION_PACKED_VERSION = 8;
export const QUEUE_REGION_PACKED_DESC_NUM = 10;
export const QUEUE_REGION_PACKED_FREE_HEAD = 12;
export const QUEUE_REGION_PACKED_OLD_FREE_HEAD = 14;
export const QUEUE_REGION_PACKED_USED_IDX = 16;
export const QUEUE_REGION_PACKED_OLD_USED_IDX = 18;
export const QUEUE_REGION_PACKED_USED_WRAP_COUNTER = 20;
export const QUEUE_REGION_PACKED_OLD_USED_WRAP_COUNTER = 21;
// DescStatePacked.
export const DESC_STATE_PACKED_SIZE = 32;
export const DESC_STATE_PACKED_INFLIGHT = 0;
export const DESC_STATE_PACKED_NEXT = 2;
export const DESC_STATE_PACKED_LAST = 4;
export const DESC_STATE_PACKED_NUM = 6;
export const DESC_STATE_PACKED_COUNTER = 8;
export const DESC_STATE_PACKED_ID = 16;
export const DESC_STATE_PACKED_FLAGS = 18;
export const DESC_STATE_PACKED_LEN = 20;
export const DESC_STATE_PACKED_ADDR = 24;
