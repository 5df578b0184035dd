/**
 * Reading the guest's disk whatever it is made of, and whether it is known to be zeroes.
 * Thread: iothread; everything async may suspend.
 */
import { ENOMEDIUM } from "../../../runtime/errno.ts";
import { assert } from "../../../util/error.ts";
import { type CompressedPlace, compressedPlace } from "./compressed.ts";
import type { Image } from "./image.ts";
import {
  COMPRESSED,
  INVALID,
  type Mapping,
  MISSING,
  NORMAL,
  newMapping,
  UNALLOCATED,
  UNALLOCATED_PLACED,
} from "./mapping.ts";

/** As many threads inflate at a time, at most. */
const READ_AHEAD_CLUSTERS = 3;

/** To native memory at `address`. In bounds. 0 or -errno. */
export async function readGuest(
  image: Image,
  offset: number,
  bytes: number,
  address: number,
): Promise<number> {
  const mapping = newMapping();
  for (let done = 0; done < bytes; ) {
    if (image.isBroken) return -ENOMEDIUM;
    const at = offset + done;
    image.map.lookup(at, bytes - done, mapping);
    if (mapping.kind === COMPRESSED) readAhead(image, at + mapping.bytes, offset + bytes);
    const result =
      mapping.kind === MISSING
        ? await load(image, at)
        : await readRun(image, at, mapping, address + done);
    if (result < 0) return result;
    if (mapping.kind !== MISSING) done += result;
  }
  return 0;
}

async function load(image: Image, offset: number): Promise<number> {
  const slice = await image.loader.load(offset);
  return typeof slice === "number" ? slice : 0;
}

/** Returns the bytes done, or -errno. */
async function readRun(
  image: Image,
  offset: number,
  { kind, host, bytes }: Mapping,
  address: number,
): Promise<number> {
  const { memory } = image.reactor;
  switch (kind) {
    case NORMAL:
      return (await image.data.read(host, bytes, address)) || bytes;
    case COMPRESSED:
      return readFromCompressed(image, offset, bytes, address);
    case INVALID:
      return image.loader.reportEntry(offset);
    case UNALLOCATED:
    case UNALLOCATED_PLACED:
      if (image.backing !== null) {
        return (await image.backing.read(offset, bytes, address)) || bytes;
      }
  }
  memory.zero(address, bytes);
  return bytes;
}

/** Up to the end of the cluster at most. Returns the bytes done, or -errno. */
async function readFromCompressed(
  image: Image,
  offset: number,
  bytes: number,
  address: number,
): Promise<number> {
  const from = offset % image.layout.clusterBytes;
  return (await image.inflated.read(placeOf(image, offset), from, bytes, address)) || bytes;
}

/** Has the next compressed clusters of a request inflated while one waits for the first. */
function readAhead(image: Image, start: number, end: number): void {
  const { clusterBytes } = image.layout;
  const mapping = newMapping();
  const aheadEnd = Math.min(end, start + READ_AHEAD_CLUSTERS * clusterBytes);
  for (let at = start; at < aheadEnd; at += clusterBytes) {
    if (image.map.lookup(at, 1, mapping) !== COMPRESSED) return;
    if (!image.inflated.prefetch(placeOf(image, at))) return;
  }
}

/** Of the compressed cluster at `offset`, whose entry has just been looked at. */
function placeOf({ layout, tables, header }: Image, offset: number): CompressedPlace {
  const slice = tables.find(offset);
  assert(slice !== null, "the entry has just been looked at");
  const index = Math.floor((offset - slice.key * tables.sliceSpan) / layout.clusterBytes);
  const word = index * (layout.l2EntryBytes / 4);
  return compressedPlace(slice.words[word]!, slice.words[word + 1]!, header.clusterBits);
}

/** True: all of it reads as zeroes, by the tables in memory and the backing file's length. */
export function isKnownZero(image: Image, offset: number, bytes: number): boolean {
  const mapping = newMapping();
  for (let done = 0; done < bytes; done += mapping.bytes) {
    const kind = image.map.lookup(offset + done, bytes - done, mapping);
    if (kind === UNALLOCATED || kind === UNALLOCATED_PLACED) {
      const { backing } = image;
      if (backing !== null && offset + done < backing.node.bytes) return false;
    } else if (kind >= NORMAL) {
      return false;
    }
  }
  return true;
}
