/**
 * Copying into the image what still comes from its backing file. Thread: iothread; everything async
 * may suspend.
 */
import { roundUp } from "../../child-io.ts";
import { isZero } from "../../zeroes.ts";
import { type Change, changeGuest } from "./change.ts";
import type { Image } from "./image.ts";
import { INVALID, newMapping, UNALLOCATED, UNALLOCATED_PLACED } from "./mapping.ts";
import { readGuest } from "./read.ts";
import { writeInSlice } from "./write.ts";
import { zeroInSlice } from "./zero-entries.ts";

/** At a time. */
const COPY_BYTES = 256 * 1024;

/** Allocates what is not, with what the backing file has there. 0 or -errno. */
export function copyUpGuest(image: Image, offset: number, bytes: number): Promise<number> {
  const { memory } = image.reactor;
  // First the buffer: who has one may wait for clusters, not the other way round.
  return image.partPlaces.withBuffer(COPY_BYTES, (at) =>
    changeGuest(image, offset, bytes, (change) =>
      copyUpInSlice(image, change, memory.address + at),
    ),
  );
}

/** `buffer`: address of COPY_BYTES. */
async function copyUpInSlice(
  image: Image,
  { slice, offset, bytes }: Change,
  buffer: number,
): Promise<number> {
  const { reactor, layout } = image;
  const mapping = newMapping();
  const end = Math.min(
    roundUp(offset + bytes, layout.clusterBytes),
    roundUp(image.header.bytes, 512),
  );
  let at = offset - (offset % layout.clusterBytes);
  let result = 0;
  while (at < end && result === 0) {
    const kind = image.map.lookup(at, Math.min(end - at, COPY_BYTES), mapping);
    const part = mapping.bytes;
    if (kind === INVALID) result = image.loader.reportEntry(at);
    if (kind === UNALLOCATED || kind === UNALLOCATED_PLACED) {
      result = await readGuest(image, at, part, buffer);
      const change = { slice, offset: at, bytes: part };
      const isWhole = at % layout.subclusterBytes === 0 && part % layout.subclusterBytes === 0;
      if (result === 0 && isWhole && layout.version >= 3 && isZero(reactor, buffer, part)) {
        result = await zeroInSlice(image, change, 0);
      } else if (result === 0) {
        result = await writeInSlice(image, change, buffer);
      }
    }
    at += part;
  }
  return result;
}
