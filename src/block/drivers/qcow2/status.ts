/**
 * Block status of an image: what its tables say, and where that is worth asking, what its file
 * says. Thread: iothread; a Promise where something must be loaded.
 * Spec: QEMU block/qcow2.c qcow2_co_block_status(), qcow2_detect_metadata_preallocation()
 */
import { ENOMEDIUM } from "../../../runtime/errno.ts";
import { type BlockStatus, STATUS_ALLOCATED, STATUS_DATA, STATUS_ZERO } from "../../node.ts";
import type { Image } from "./image.ts";
import {
  COMPRESSED,
  INVALID,
  MISSING,
  NORMAL,
  newMapping,
  UNALLOCATED,
  UNALLOCATED_PLACED,
} from "./mapping.ts";

const mapping = newMapping();

/** See BlockNode.blockStatus(). */
export function statusOfGuest(
  image: Image,
  offset: number,
  bytes: number,
  out: BlockStatus,
): number | Promise<number> {
  if (image.isBroken) return -ENOMEDIUM;
  const kind = image.map.lookup(offset, bytes, mapping);
  out.bytes = mapping.bytes;
  out.depth = 1;
  switch (kind) {
    case MISSING:
      return afterLoad(image, offset, bytes, out);
    case NORMAL:
      return statusOfData(image, mapping.host, mapping.bytes, out);
    case COMPRESSED:
      out.flags = STATUS_DATA | STATUS_ALLOCATED;
      return 0;
    case INVALID:
      return image.loader.reportEntry(offset);
    case UNALLOCATED:
    case UNALLOCATED_PLACED:
      return statusBelow(image, offset, mapping.bytes, out);
    default:
      out.flags = STATUS_ZERO | STATUS_ALLOCATED;
      return 0;
  }
}

async function afterLoad(
  image: Image,
  offset: number,
  bytes: number,
  out: BlockStatus,
): Promise<number> {
  const slice = await image.loader.load(offset);
  return typeof slice === "number" ? slice : statusOfGuest(image, offset, bytes, out);
}

/** Where clusters were allocated before they were needed, the file may know more. */
function statusOfData(
  image: Image,
  host: number,
  bytes: number,
  out: BlockStatus,
): number | Promise<number> {
  out.flags = STATUS_DATA | STATUS_ALLOCATED;
  // Holes of the file are no zeroes of a guest whose data is encrypted.
  if (image.isPreallocated === false || image.encryption !== null) return 0;
  if (image.isPreallocated === null) {
    return isPreallocated(image).then((is) => {
      image.isPreallocated = is;
      return statusOfData(image, host, bytes, out);
    });
  }
  const { node } = image.data;
  const inside = node.bytes - host;
  if (inside <= 0) {
    out.flags |= STATUS_ZERO;
    return 0;
  }
  const result = node.blockStatus(host, Math.min(bytes, inside), out);
  const depth1 = (status: number): number => {
    const isZero = status === 0 && (out.flags & STATUS_ZERO) !== 0;
    // Behind the end of the file it goes on with zeroes.
    if (status < 0 || (isZero && out.bytes === inside)) out.bytes = bytes;
    out.flags = STATUS_DATA | STATUS_ALLOCATED | (isZero ? STATUS_ZERO : 0);
    out.depth = 1;
    return 0;
  };
  return typeof result === "number" ? depth1(result) : result.then(depth1);
}

/** More clusters are counted than the host has space for. */
async function isPreallocated(image: Image): Promise<boolean> {
  const { file, layout, refcounts } = image;
  const { actualBytes } = file.node.describe();
  if (actualBytes === undefined) return false;
  const real = Math.floor(actualBytes / layout.clusterBytes);
  const threshold = Math.max(Math.floor((real * 10) / 9), real + 2);
  const end = Math.ceil(file.node.bytes / layout.clusterBytes);
  const entries = layout.refcountBlockEntries;
  let count = 0;
  for (let first = 0; first < end && count < threshold; first += entries) {
    const blockIndex = first / entries;
    if (!refcounts.has(blockIndex)) continue;
    const block = await refcounts.load(blockIndex);
    if (typeof block === "number") return false;
    const last = Math.min(entries, end - first);
    for (let entry = 0; entry < last; entry++) if (refcounts.get(block, entry) !== 0) count++;
  }
  return count >= threshold;
}

function statusBelow(
  { backingNode }: Image,
  offset: number,
  bytes: number,
  out: BlockStatus,
): number | Promise<number> {
  if (backingNode === null) {
    out.flags = STATUS_ZERO;
    out.depth = 0;
    return 0;
  }
  const inside = backingNode.bytes - offset;
  if (inside <= 0) {
    // What a short backing file lacks counts as its own.
    out.flags = STATUS_ZERO | STATUS_ALLOCATED;
    out.depth = 2;
    return 0;
  }
  const result = backingNode.blockStatus(offset, Math.min(bytes, inside), out);
  return typeof result === "number" ? deeper(result, out) : result.then((r) => deeper(r, out));
}

/** The extent is one layer further down, if it is anywhere. */
function deeper(result: number, out: BlockStatus): number {
  if (result === 0 && out.depth > 0) out.depth++;
  return result;
}
