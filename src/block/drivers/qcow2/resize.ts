/**
 * A new length of the guest's disk. Nothing else happens to the image meanwhile.
 * Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst; QEMU block/qcow2.c qcow2_co_truncate()
 */
import * as abi from "../../../abi/qcow2.ts";
import { strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import { roundUp } from "../../child-io.ts";
import { nodeBytes, SECTOR_BYTES } from "../../description.ts";
import { REQ_MAY_UNMAP } from "../../node.ts";
import type { Allocation } from "./allocator.ts";
import { cropGuest, readsAsZeroes, zeroGuest } from "./discard.ts";
import { setU64, viewOf } from "./header.ts";
import type { Image } from "./image.ts";
import { swapWords } from "./l2-tables.ts";

/** Throws OutportError, and nothing that a guest sees has changed. */
export async function resizeImage(image: Image, bytes: number): Promise<void> {
  const { header, layout } = image;
  if (Math.ceil(bytes / layout.tableSpan) > abi.QCOW_MAX_L1_SIZE / abi.ENTRY_BYTES) {
    throw new OutportError("limit", "Failed to grow the L1 table: File too large");
  }
  if (bytes % SECTOR_BYTES !== 0) {
    throw new OutportError("invalid", "The new size must be a multiple of 512");
  }
  if (image.snapshots.length > 0 && header.version < 3) {
    throw new OutportError("unsupported", "Can't resize a v2 image which has snapshots");
  }
  if (bytes === header.bytes) return;
  if (bytes < header.bytes) await shrink(image, bytes);
  else await grow(image, bytes);
}

async function shrink(image: Image, bytes: number): Promise<void> {
  const { header, layout, tables, writer, allocator, metadata } = image;
  const before = header.bytes;
  // Up to the next cluster it stays, and is nobody's.
  const first = roundUp(bytes, layout.clusterBytes);
  if (first < before) {
    const discarded = await cropGuest(image, first);
    if (discarded < 0) throw failure("Failed to discard cropped clusters", discarded);
  }
  while (writer.isCommitting) await writer.settled();
  const tablesLeft = Math.ceil(bytes / layout.tableSpan);
  for (let i = tablesLeft; i < Math.ceil(before / layout.tableSpan); i++) {
    const offset = tables.tableOffset(i);
    if (offset === 0) continue;
    tables.dropTable(i);
    metadata.remove(offset, layout.clusterBytes);
    allocator.free(offset, 1, "other");
  }
  const result = await writer.commit();
  if (result < 0) throw failure("Failed to reduce the number of L2 tables", result);
  await writeSize(image, bytes);
}

async function grow(image: Image, bytes: number): Promise<void> {
  const { header, layout, dataFile } = image;
  const before = header.bytes;
  const l1Size = Math.ceil(bytes / layout.tableSpan);
  if (l1Size > header.l1Size) await growL1(image, l1Size);
  if (dataFile !== null) {
    const result = await dataFile.lengthen(bytes, 0);
    if (result < 0) throw failure("Failed to resize the external data file", result);
  }
  // What was beyond the end reads as zeroes, whatever lies there or in a longer backing file.
  header.bytes = bytes;
  let result = await zeroTail(image, nodeBytes(before), bytes);
  // QSD differs: after a power cut, it may show what lies there.
  if (result === 0) result = await image.writer.commit();
  header.bytes = before;
  if (result < 0) throw failure("Failed to zero out new clusters", result);
  await writeSize(image, bytes);
}

async function zeroTail(image: Image, from: number, to: number): Promise<number> {
  const { layout, backingNode } = image;
  const hasBacking = backingNode !== null && backingNode.bytes > from;
  const backed = hasBacking ? Math.min(to, backingNode.bytes) : from;
  const end = Math.min(to, roundUp(Math.max(from, backed), layout.clusterBytes));
  if (end === from || (!hasBacking && (await readsAsZeroes(image, from, end)))) return 0;
  return zeroGuest(image, from, end - from, REQ_MAY_UNMAP);
}

/** The new table is on the disk before the header points to it. Throws OutportError. */
async function growL1(image: Image, needed: number): Promise<void> {
  const { header, layout, allocator, writer } = image;
  // Some more: the next time is cheaper then.
  const limit = abi.QCOW_MAX_L1_SIZE / abi.ENTRY_BYTES;
  const size = Math.min(Math.max(needed, Math.ceil(header.l1Size * 1.5)), limit);
  const clusters = Math.ceil((size * abi.ENTRY_BYTES) / layout.clusterBytes);
  const place = await allocator.allocateContiguous(clusters);
  if (typeof place === "number") throw failure("Failed to grow the L1 table", place);
  const result = await writer.exclusive(() => moveL1(image, size, place));
  if (result === 0) return;
  allocator.free(place.offset, clusters, "other");
  throw failure("Failed to grow the L1 table", result);
}

/** While no entry changes. 0 or -errno. */
async function moveL1(image: Image, size: number, place: Allocation): Promise<number> {
  const { header, layout, tables, allocator, file, writer, metadata } = image;
  const words = new Uint32Array((place.count * layout.clusterBytes) / 4);
  words.set(tables.l1);
  const bytes = new Uint8Array(swapWords(words).buffer);
  let result = await file.writeBytes(place.offset, bytes);
  // It may hold entries that the old one does not yet: what they point to must be there.
  if (result === 0) result = await writer.writeRefcounts();
  if (result === 0) result = await file.flush();
  if (result < 0) return result;
  const fieldOf = (l1Size: number, offset: number): Uint8Array => {
    const field = new Uint8Array(12);
    viewOf(field).setUint32(0, l1Size);
    setU64(viewOf(field), 4, offset);
    return field;
  };
  const old = fieldOf(header.l1Size, header.l1TableOffset);
  result = await image.replaceTable(abi.HEADER_L1_SIZE, old, fieldOf(size, place.offset));
  if (result < 0) return result;
  const before = { offset: header.l1TableOffset, bytes: header.l1Size * abi.ENTRY_BYTES };
  header.l1Size = size;
  header.l1TableOffset = place.offset;
  tables.growL1(size);
  metadata.remove(before.offset, before.bytes);
  metadata.add("active-l1", place.offset, size * abi.ENTRY_BYTES);
  const count = Math.ceil(before.bytes / layout.clusterBytes);
  if (count > 0) allocator.free(before.offset, count, "other");
  return 0;
}

async function writeSize(image: Image, bytes: number): Promise<void> {
  const { header } = image;
  const hi = Math.floor(bytes / 0x1_0000_0000);
  const result = await image.writeField(abi.HEADER_SIZE, hi, bytes % 0x1_0000_0000);
  if (result < 0) throw failure("Failed to update the image size", result);
  header.bytes = bytes;
}

function failure(what: string, result: number): OutportError {
  return new OutportError("io", `${what}: ${strerror(result)}`);
}
