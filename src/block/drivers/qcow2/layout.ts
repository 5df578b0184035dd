/**
 * Sizes that follow from a header and never change while the image is open, and the checks of what
 * it says of its tables. Pure. Thread: iothread.
 * Spec: QEMU docs/interop/qcow2.rst "Header", "Cluster mapping", "Extended L2 Entries"
 */
import * as abi from "../../../abi/qcow2.ts";
import { QCOW_MAX_SNAPSHOTS, SNAPSHOT_HEADER_BYTES } from "../../../abi/qcow2-snapshots.ts";
import { OutportError } from "../../../util/error.ts";
import type { Qcow2Header } from "./header.ts";

export interface Layout {
  readonly version: 2 | 3;
  readonly clusterBytes: number;
  /** 1, or 32 with extended L2 entries. */
  readonly subclusters: number;
  readonly subclusterBytes: number;
  readonly hasSubclusters: boolean;
  readonly l2EntryBytes: number;
  /** Entries of a whole L2 table, which is one cluster. */
  readonly l2Entries: number;
  /** Guest bytes that one L2 table covers. */
  readonly tableSpan: number;
  readonly refcountBits: number;
  /** Infinity where it is more than a number can count. */
  readonly refcountMax: number;
  readonly refcountBlockEntries: number;
  /** Guest data lies in an external data file. */
  readonly hasDataFile: boolean;
  readonly isDataFileRaw: boolean;
}

export function layoutOf(header: Qcow2Header): Layout {
  const clusterBytes = 2 ** header.clusterBits;
  const hasSubclusters = (header.incompatible.lo & abi.QCOW2_INCOMPAT_EXTL2) !== 0;
  const subclusters = hasSubclusters ? abi.QCOW_EXTL2_SUBCLUSTERS_PER_CLUSTER : 1;
  const l2EntryBytes = hasSubclusters ? abi.L2E_SIZE_EXTENDED : abi.L2E_SIZE_NORMAL;
  const l2Entries = clusterBytes / l2EntryBytes;
  const refcountBits = 2 ** header.refcountOrder;
  return {
    version: header.version,
    clusterBytes,
    subclusters,
    subclusterBytes: clusterBytes / subclusters,
    hasSubclusters,
    l2EntryBytes,
    l2Entries,
    tableSpan: l2Entries * clusterBytes,
    refcountBits,
    refcountMax: refcountBits > 53 ? Infinity : 2 ** refcountBits - 1,
    refcountBlockEntries: (clusterBytes * 8) / refcountBits,
    hasDataFile: (header.incompatible.lo & abi.QCOW2_INCOMPAT_DATA_FILE) !== 0,
    isDataFileRaw: (header.autoclear.lo & abi.QCOW2_AUTOCLEAR_DATA_FILE_RAW) !== 0,
  };
}

/**
 * What the header says of tables, against the format's limits and the file. `fileBytes`: of the
 * image file. Throws OutportError.
 */
export function checkHeader(header: Qcow2Header, writable: boolean, fileBytes: number): void {
  const clusterBytes = 2 ** header.clusterBits;
  if (writable && (header.incompatible.lo & abi.QCOW2_INCOMPAT_CORRUPT) !== 0) {
    const message = "qcow2: Image is corrupt; cannot be opened read/write";
    throw new OutportError("corrupt", message);
  }
  const isExtended = (header.incompatible.lo & abi.QCOW2_INCOMPAT_EXTL2) !== 0;
  const subclusters = isExtended ? abi.QCOW_EXTL2_SUBCLUSTERS_PER_CLUSTER : 1;
  if (clusterBytes / subclusters < 2 ** abi.MIN_CLUSTER_BITS) {
    fail(`Unsupported subcluster size: ${clusterBytes / subclusters}`);
  }
  if (header.refcountOrder > 6) {
    fail("Reference count entry width too large; may not exceed 64 bits");
  }
  if (header.refcountTableClusters === 0) {
    fail("Image does not contain a reference count table");
  }
  const check = (
    name: string,
    offset: number,
    entries: number,
    entryBytes: number,
    bytesMax: number,
  ): void => {
    if (entries > Math.floor(bytesMax / entryBytes)) fail(`${name} too large`);
    // QSD differs: it takes what lies behind the end of the file for zeroes.
    const isOutside = entries > 0 && offset >= fileBytes;
    if (offset % clusterBytes !== 0 || isOutside) fail(`${name} offset invalid`);
  };
  const { refcountTableOffset, refcountTableClusters, l1TableOffset, l1Size } = header;
  check(
    "Reference count table",
    refcountTableOffset,
    refcountTableClusters,
    clusterBytes,
    abi.QCOW_MAX_REFTABLE_SIZE,
  );
  check(
    "Snapshot table",
    header.snapshotsOffset,
    header.snapshotCount,
    SNAPSHOT_HEADER_BYTES,
    SNAPSHOT_HEADER_BYTES * QCOW_MAX_SNAPSHOTS,
  );
  check("Active L1 table", l1TableOffset, l1Size, abi.ENTRY_BYTES, abi.QCOW_MAX_L1_SIZE);
  const l1Needed = Math.ceil(header.bytes / layoutOf(header).tableSpan);
  if (l1Needed > 2 ** 31 - 1) fail("Image is too big");
  if (l1Size < l1Needed) fail("L1 table is too small");
}

function fail(message: string): never {
  throw new OutportError("invalid", message);
}
