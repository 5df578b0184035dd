/**
 * The snapshot table of qcow2 images. All numbers in it are big-endian.
 * Spec: QEMU docs/interop/qcow2.rst "Snapshots"
 */

// A snapshot table entry, up to its extra data.
export const SNAPSHOT_L1_TABLE_OFFSET = 0;
export const SNAPSHOT_L1_SIZE = 8;
export const SNAPSHOT_ID_STR_SIZE = 12;
export const SNAPSHOT_NAME_SIZE = 14;
export const SNAPSHOT_DATE_SEC = 16;
export const SNAPSHOT_DATE_NSEC = 20;
export const SNAPSHOT_VM_CLOCK_NSEC = 24;
export const SNAPSHOT_VM_STATE_SIZE = 32;
export const SNAPSHOT_EXTRA_DATA_SIZE = 36;
export const SNAPSHOT_HEADER_BYTES = 40;
// Of its extra data; all of them u64.
export const SNAPSHOT_EXTRA_VM_STATE_SIZE = 0;
export const SNAPSHOT_EXTRA_DISK_SIZE = 8;
export const SNAPSHOT_EXTRA_ICOUNT = 16;
export const SNAPSHOT_EXTRA_BYTES = 24;

// Limits of QEMU's driver.
export const QCOW_MAX_SNAPSHOTS = 65536;
export const QCOW_MAX_SNAPSHOTS_SIZE = 1024 * QCOW_MAX_SNAPSHOTS;
export const QCOW_MAX_SNAPSHOT_EXTRA_DATA = 1024;
