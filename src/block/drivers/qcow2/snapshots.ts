/**
 * The snapshot table of an image: its entries, read and checked, and written. Thread: iothread; may
 * suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Snapshots"
 */
import { ENTRY_BYTES, QCOW_MAX_L1_SIZE } from "../../../abi/qcow2.ts";
import * as abi from "../../../abi/qcow2-snapshots.ts";
import { strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import { getU64, type Qcow2Header, setU64, viewOf } from "./header.ts";
import type { ImageFile } from "./image-file.ts";

export interface Snapshot {
  readonly id: string;
  readonly name: string;
  readonly l1TableOffset: number;
  readonly l1Size: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNs: bigint;
  readonly vmStateBytes: number;
  /** Instructions so far; null: not counted. */
  readonly icount: number | null;
  /** As it is in the table, with what is not known here, but the padding. */
  readonly entry: Uint8Array;
}

/** Longest entry: both texts are at most 64 KiB long. */
const ENTRY_BYTES_MAX =
  abi.SNAPSHOT_HEADER_BYTES + abi.QCOW_MAX_SNAPSHOT_EXTRA_DATA + 2 * 65536 + 8;
/** Of all L1 tables of snapshots, in clusters, as each of these is kept in mind. */
const L1_CLUSTERS_MAX = 2 ** 20;
/** Read as text, so that they fit into QEMU's own fields. */
const TEXT_BYTES_MAX = 255;
const NO_ICOUNT = 0xffff_ffff;

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
    const snapshot = parse(window.subarray(at - windowStart), i);
    const end = at + snapshot.entry.length;
    if (snapshotsOffset + end > file.node.bytes + 512) {
      // QSD differs: it reads zeroes there.
      throw new OutportError("corrupt", "Snapshot table offset invalid");
    }
    if (end > abi.QCOW_MAX_SNAPSHOTS_SIZE) {
      throw new OutportError("limit", "Snapshot table is too big");
    }
    snapshots.push(snapshot);
    at = padded(end);
  }
  if (!areL1TablesFew(snapshots, header)) {
    // QSD differs: it looks at the L1 tables when it has to.
    throw new OutportError("limit", "Snapshot table is too big");
  }
  return snapshots;
}

/** Few enough for an image that is to be opened. */
export function areL1TablesFew(
  snapshots: readonly Snapshot[],
  { clusterBits }: Pick<Qcow2Header, "clusterBits">,
): boolean {
  const clustersOf = ({ l1Size }: Snapshot): number =>
    Math.ceil((l1Size * ENTRY_BYTES) / 2 ** clusterBits);
  return snapshots.reduce((sum, one) => sum + clustersOf(one), 0) <= L1_CLUSTERS_MAX;
}

function parse(bytes: Uint8Array, index: number): Snapshot {
  const view = viewOf(bytes);
  const extraBytes = view.getUint32(abi.SNAPSHOT_EXTRA_DATA_SIZE);
  if (extraBytes > abi.QCOW_MAX_SNAPSHOT_EXTRA_DATA) {
    const message = `Too much extra metadata in snapshot table entry ${index}`;
    throw new OutportError("limit", message);
  }
  const extraAt = abi.SNAPSHOT_HEADER_BYTES;
  const idAt = extraAt + extraBytes;
  const nameAt = idAt + view.getUint16(abi.SNAPSHOT_ID_STR_SIZE);
  const end = nameAt + view.getUint16(abi.SNAPSHOT_NAME_SIZE);
  const text = (from: number, to: number): string =>
    new TextDecoder().decode(bytes.subarray(from, to));
  const hasLargeState = extraBytes >= abi.SNAPSHOT_EXTRA_DISK_SIZE;
  const icountAt = extraAt + abi.SNAPSHOT_EXTRA_ICOUNT;
  const hasIcount =
    extraBytes >= abi.SNAPSHOT_EXTRA_BYTES && view.getUint32(icountAt) !== NO_ICOUNT;
  return {
    id: text(idAt, nameAt),
    name: text(nameAt, end),
    l1TableOffset: getU64(view, abi.SNAPSHOT_L1_TABLE_OFFSET),
    l1Size: Math.min(view.getUint32(abi.SNAPSHOT_L1_SIZE), QCOW_MAX_L1_SIZE / ENTRY_BYTES),
    dateSeconds: view.getUint32(abi.SNAPSHOT_DATE_SEC),
    dateNanoseconds: view.getUint32(abi.SNAPSHOT_DATE_NSEC),
    vmClockNs: view.getBigUint64(abi.SNAPSHOT_VM_CLOCK_NSEC),
    vmStateBytes: hasLargeState
      ? getU64(view, extraAt + abi.SNAPSHOT_EXTRA_VM_STATE_SIZE)
      : view.getUint32(abi.SNAPSHOT_VM_STATE_SIZE),
    icount: hasIcount ? getU64(view, icountAt) : null,
    entry: bytes.slice(0, end),
  };
}

/** What a new entry says; its L1 table is the caller's. */
export interface NewSnapshot {
  readonly id: string;
  readonly name: string;
  readonly l1TableOffset: number;
  readonly l1Size: number;
  readonly diskBytes: number;
  /** Since 1970. */
  readonly timeUs: number;
}

/** Without a state of a virtual machine. */
export function makeSnapshot(snapshot: NewSnapshot): Snapshot {
  const id = new TextEncoder().encode(snapshot.id);
  const name = new TextEncoder().encode(snapshot.name);
  const idAt = abi.SNAPSHOT_HEADER_BYTES + abi.SNAPSHOT_EXTRA_BYTES;
  const bytes = new Uint8Array(idAt + id.length + name.length);
  const view = viewOf(bytes);
  setU64(view, abi.SNAPSHOT_L1_TABLE_OFFSET, snapshot.l1TableOffset);
  view.setUint32(abi.SNAPSHOT_L1_SIZE, snapshot.l1Size);
  view.setUint16(abi.SNAPSHOT_ID_STR_SIZE, id.length);
  view.setUint16(abi.SNAPSHOT_NAME_SIZE, name.length);
  view.setUint32(abi.SNAPSHOT_DATE_SEC, Math.floor(snapshot.timeUs / 1e6));
  view.setUint32(abi.SNAPSHOT_DATE_NSEC, (snapshot.timeUs % 1e6) * 1000);
  // As QSD has it, whose virtual clock is the real one.
  view.setBigUint64(abi.SNAPSHOT_VM_CLOCK_NSEC, BigInt(snapshot.timeUs) * 1000n);
  view.setUint32(abi.SNAPSHOT_EXTRA_DATA_SIZE, abi.SNAPSHOT_EXTRA_BYTES);
  const extraAt = abi.SNAPSHOT_HEADER_BYTES;
  setU64(view, extraAt + abi.SNAPSHOT_EXTRA_DISK_SIZE, snapshot.diskBytes);
  view.setUint32(extraAt + abi.SNAPSHOT_EXTRA_ICOUNT, NO_ICOUNT);
  view.setUint32(extraAt + abi.SNAPSHOT_EXTRA_ICOUNT + 4, NO_ICOUNT);
  bytes.set(id, idAt);
  bytes.set(name, idAt + id.length);
  return parse(bytes, 0);
}

/** The table as it is written. */
export function snapshotTable(snapshots: readonly Snapshot[]): Uint8Array {
  const table = new Uint8Array(snapshotTableBytes(snapshots));
  let at = 0;
  for (const { entry } of snapshots) {
    table.set(entry, at);
    at = padded(at + entry.length);
  }
  return table;
}

/** Up to the end of the last entry. */
export function snapshotTableBytes(snapshots: readonly Snapshot[]): number {
  return snapshots.reduce((at, { entry }) => padded(at) + entry.length, 0);
}

/** One more than the highest number that is one. */
export function nextSnapshotId(snapshots: readonly Snapshot[]): string {
  const numbers = snapshots.map(({ id }) => Number(/^\d+/.exec(id)?.[0] ?? 0));
  return String(Math.min(Math.max(0, ...numbers), Number.MAX_SAFE_INTEGER - 1) + 1);
}

/** As much of a name as the table takes from QEMU: whole characters. */
export function cutName(name: string): string {
  let bytes = new TextEncoder().encode(name);
  if (bytes.length <= TEXT_BYTES_MAX) return name;
  bytes = bytes.subarray(0, TEXT_BYTES_MAX);
  // QSD differs: it cuts a character in two.
  return new TextDecoder().decode(bytes).replace(/\ufffd$/, "");
}

function padded(bytes: number): number {
  return Math.ceil(bytes / 8) * 8;
}
