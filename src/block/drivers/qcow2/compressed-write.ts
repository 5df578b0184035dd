/**
 * Writes of clusters that are kept compressed: read as far as the write does not cover them,
 * compressed, written to a place of their own, and only then mapped. Thread: iothread; everything
 * may suspend.
 * Spec: QEMU block/qcow2.c qcow2_co_pwritev_compressed_task()
 */
import { EFBIG, EIO, ENOSPC, ENOTSUP } from "../../../runtime/errno.ts";
import { roundUp } from "../../child-io.ts";
import { type Change, changeGuest, wordOf } from "./change.ts";
import { compressedEndMax, compressedEntry } from "./compressed.ts";
import type { DeflatePlace } from "./deflate-places.ts";
import { freeEntry } from "./free-entry.ts";
import type { Image } from "./image.ts";
import { INVALID, newMapping } from "./mapping.ts";
import { readGuest } from "./read.ts";
import { needsPlace, writeInSlice } from "./write.ts";

/** Clusters of one request that are compressed at a time. */
const WORKERS_MAX = 4;
/** What is read around a write goes through a buffer of this size. */
const PART_BYTES = 256 * 1024;

/** 0 or -errno. `address`: in the reactor's memory. */
export function writeCompressedGuest(
  image: Image,
  offset: number,
  bytes: number,
  address: number,
): Promise<number> {
  // QSD differs: it writes compressed clusters of an encrypted image, in clear.
  if (image.dataFile !== null || image.encryption !== null) return Promise.resolve(-ENOTSUP);
  return changeGuest(image, offset, bytes, (change) =>
    writeClusters(image, change, address + (change.offset - offset)),
  );
}

async function writeClusters(image: Image, change: Change, address: number): Promise<number> {
  const { clusterBytes } = image.layout;
  const { slice, offset, bytes } = change;
  const end = offset + bytes;
  let next = offset;
  let error = 0;
  const work = async (): Promise<void> => {
    while (next < end && error === 0) {
      const at = next;
      next = Math.min(at - (at % clusterBytes) + clusterBytes, end);
      const one = { slice, offset: at, bytes: next - at };
      const result = await writeCluster(image, one, address + (at - offset));
      error ||= result;
    }
  };
  const workers = Math.min(WORKERS_MAX, Math.ceil(bytes / clusterBytes));
  await Promise.all(Array.from({ length: workers }, work));
  return error;
}

/** A part of one cluster. 0 or -errno. */
async function writeCluster(image: Image, change: Change, address: number): Promise<number> {
  const { slice, offset, bytes } = change;
  if (image.map.lookup(offset, bytes, newMapping()) === INVALID) {
    return image.loader.reportEntry(offset, true);
  }
  const start = offset - (offset % image.layout.clusterBytes);
  const isWhole = offset === start && offset + bytes === clusterEnd(image, start);
  // Others may write there at any moment: then it can't be read and written to another place.
  if (!isWhole && !needsPlace(image, slice, start)) return writeInSlice(image, change, address);
  // QSD differs: it fails with EIO when there is something already, compressed or not.
  const result = await image.deflatePlaces.withPlace(async (place) => {
    const filled = isWhole ? 0 : await readAround(image, place, start);
    if (filled < 0) return filled;
    setInput(image, place, change, address);
    const length = await image.codec.deflate(place.memory, place.input, place.output);
    if (length === -ENOSPC) return INCOMPRESSIBLE;
    return length < 0 ? length : store(image, change, place, length);
  });
  return result === INCOMPRESSIBLE ? writeInSlice(image, change, address) : result;
}

/** Beside 0 and -errno. */
const INCOMPRESSIBLE = 1;

/** The disk may end before the cluster does. */
function clusterEnd(image: Image, start: number): number {
  return Math.min(start + image.layout.clusterBytes, roundUp(image.header.bytes, 512));
}

/** What the cluster at `start` has now. 0 or -errno. */
function readAround(image: Image, { memory, input }: DeflatePlace, start: number): Promise<number> {
  const { reactor } = image;
  const end = clusterEnd(image, start);
  return image.copyPlaces.withBuffer(Math.min(PART_BYTES, end - start), async (at) => {
    const address = reactor.memory.address + at;
    for (let done = 0; start + done < end; done += PART_BYTES) {
      const part = Math.min(PART_BYTES, end - start - done);
      const result = await readGuest(image, start + done, part, address);
      if (result < 0) return result;
      memory.u8.set(reactor.memory.u8.subarray(at, at + part), input + done);
    }
    return 0;
  });
}

/** Puts a write over it; behind the end of the disk there are zeroes. */
function setInput(
  image: Image,
  { memory, input }: DeflatePlace,
  { offset, bytes }: Change,
  address: number,
): void {
  const { clusterBytes } = image.layout;
  const inCluster = offset % clusterBytes;
  const { memory: source } = image.reactor;
  const at = address - source.address;
  memory.u8.set(source.u8.subarray(at, at + bytes), input + inCluster);
  const diskEnd = clusterEnd(image, offset - inCluster) - (offset - inCluster);
  memory.u8.fill(0, input + diskEnd, input + clusterBytes);
}

/** Writes and maps the first `length` bytes of the output. 0 or -errno. */
async function store(
  image: Image,
  { slice, offset }: Change,
  { memory, output }: DeflatePlace,
  length: number,
): Promise<number> {
  const { compressedSpace, file, writer, header, layout } = image;
  const host = await compressedSpace.allocate(length);
  if (host < 0) return host;
  const fits = host + length <= compressedEndMax(header.clusterBits);
  let result = fits ? image.checkOverlap(host, length) : -EFBIG;
  if (result === 0)
    result = await file.writeBytes(host, memory.u8.subarray(output, output + length));
  if (result < 0) {
    compressedSpace.free(host, length);
    return result;
  }
  while (writer.isCommitting) await writer.settled();
  if (image.isBroken) return -EIO;
  const { words } = slice;
  const word = wordOf(image, slice, offset);
  freeEntry(image, words[word]!, words[word + 1]!, "never");
  // Who waited for long may have read there what was given up meanwhile.
  image.inflated.forget(host);
  const { hi, lo } = compressedEntry(host, length, header.clusterBits);
  words[word] = hi;
  words[word + 1] = lo;
  if (layout.hasSubclusters) words.fill(0, word + 2, word + 4);
  image.tables.markDirty(slice, word, word + layout.l2EntryBytes / 4);
  return 0;
}
