/**
 * The internal snapshots of an image, as its table lists them: read and checked. They are kept
 * intact: what they use has a refcount of its own. Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Snapshots"
 */
import * as abi from "../../../abi/qcow2.ts";
import { strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import { getU64, type Qcow2Header, viewOf } from "./header.ts";
import type { ImageFile } from "./image-file.ts";

export interface Snapshot {
  readonly id: string;
  readonly name: string;
  readonly l1TableOffset: number;
  readonly l1Size: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNs: number;
  readonly vmStateBytes: number;
  /** As it is in the table: sizes of 64 bits, icount, and what is not known here. */
  readonly extraData: Uint8Array;
  /** Bytes of the table up to its end. */
  readonly tableEnd: number;
}

/** Longest entry: both texts are at most 64 KiB long. */
const ENTRY_BYTES_MAX =
  abi.SNAPSHOT_HEADER_BYTES + abi.QCOW_MAX_SNAPSHOT_EXTRA_DATA + 2 * 65536 + 8;

/** Throws OutportError. */
export async function readSnapshots(file: ImageFile, header: Qcow2Header): Promise<Snapshot[]> {
  const { snapshotCount, snapshotsOffset } = header;
  const snapshots: Snapshot[] = [];
  // As much at a time as any entry may take.
  let window: Uint8Array = new Uint8Array(0);
  let windowStart = 0;
  let at = 0;
  for (let i = 0; i < snapshotCount; i++) {
    if (at + ENTRY_BYTES_MAX > windowStart + window.length) {
      const bytes = await file.readBytes(snapshotsOffset + at, 2 * ENTRY_BYTES_MAX);
      if (typeof bytes === "number") {
        const message = `Failed to read snapshot table: ${strerror(-bytes)}`;
        throw new OutportError("io", message);
      }
      window = bytes;
      windowStart = at;
    }
    const snapshot = parse(window.subarray(at - windowStart), i, at);
    if (snapshotsOffset + snapshot.tableEnd > file.node.bytes + 512) {
      // QSD differs: it reads zeroes there.
      throw new OutportError("corrupt", "Snapshot table offset invalid");
    }
    if (snapshot.tableEnd > abi.QCOW_MAX_SNAPSHOTS_SIZE) {
      throw new OutportError("limit", "Snapshot table is too big");
    }
    snapshots.push(snapshot);
    at = Math.ceil(snapshot.tableEnd / 8) * 8;
  }
  return snapshots;
}

function parse(bytes: Uint8Array, index: number, at: number): Snapshot {
  const view = viewOf(bytes);
  const extraBytes = view.getUint32(abi.SNAPSHOT_EXTRA_DATA_SIZE);
  if (extraBytes > abi.QCOW_MAX_SNAPSHOT_EXTRA_DATA) {
    const message = `Too much extra metadata in snapshot table entry ${index}`;
    throw new OutportError("limit", message);
  }
  const idAt = abi.SNAPSHOT_HEADER_BYTES + extraBytes;
  const nameAt = idAt + view.getUint16(abi.SNAPSHOT_ID_STR_SIZE);
  const end = nameAt + view.getUint16(abi.SNAPSHOT_NAME_SIZE);
  const text = (from: number, to: number): string =>
    new TextDecoder().decode(bytes.subarray(from, to));
  return {
    id: text(idAt, nameAt),
    name: text(nameAt, end),
    l1TableOffset: getU64(view, abi.SNAPSHOT_L1_TABLE_OFFSET),
    l1Size: Math.min(view.getUint32(abi.SNAPSHOT_L1_SIZE), abi.QCOW_MAX_L1_SIZE / 8),
    dateSeconds: view.getUint32(abi.SNAPSHOT_DATE_SEC),
    dateNanoseconds: view.getUint32(abi.SNAPSHOT_DATE_NSEC),
    vmClockNs: getU64(view, abi.SNAPSHOT_VM_CLOCK_NSEC),
    vmStateBytes: view.getUint32(abi.SNAPSHOT_VM_STATE_SIZE),
    extraData: bytes.slice(abi.SNAPSHOT_HEADER_BYTES, idAt),
    tableEnd: at + end,
  };
}
