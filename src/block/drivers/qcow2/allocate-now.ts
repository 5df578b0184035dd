/**
 * The quickest way to allocate: at once, while a write is being resolved, where the clusters read
 * as zeroes before as after. So it doesn't matter that they are mapped before they are written:
 * whoever sees them in between, also after a crash, sees what was there. Thread: iothread.
 */
import type { Image } from "./image.ts";
import { mapClusters } from "./map-clusters.ts";
import { type Mapping, UNALLOCATED, ZERO_PLAIN } from "./mapping.ts";

/**
 * `mapping`: of `offset`, a run that a write is to cover from its start on. Sets its place and its
 * length. False when it has to be done in another way.
 */
export function allocateNow(image: Image, offset: number, mapping: Mapping): boolean {
  const { kind, bytes } = mapping;
  if (kind !== UNALLOCATED && kind !== ZERO_PLAIN) return false;
  const { layout, backing, writer, tables, locks, allocator } = image;
  // What is fresh reads as zeroes only where it is not decrypted.
  if (image.dataFile !== null || image.encryption !== null) return false;
  if (!image.isWritable || writer.isCommitting) return false;
  const { clusterBytes, tableSpan } = layout;
  const start = offset - (offset % clusterBytes);
  if (kind === UNALLOCATED && backing !== null && start < backing.node.bytes) return false;
  const slice = tables.find(offset);
  if (slice === null) return false;
  const l1Index = Math.floor(offset / tableSpan);
  const tableOffset = tables.tableOffset(l1Index);
  if (!tables.isTableCopied(l1Index) || tableOffset === 0) return false;
  if (image.metadata.dispute !== null) return false;
  const count = Math.ceil((offset + bytes - start) / clusterBytes);
  if (!locks.isFree(start, start + count * clusterBytes)) return false;
  const taken = allocator.takeFresh(count);
  if (taken === 0) return false;
  const part = Math.min(bytes, start + taken * clusterBytes - offset);
  mapping.host = allocator.freshOffset + (offset - start);
  mapping.bytes = part;
  mapClusters(image, slice, {
    start: offset,
    end: offset + part,
    host: mapping.host,
    isNew: true,
  });
  return true;
}
