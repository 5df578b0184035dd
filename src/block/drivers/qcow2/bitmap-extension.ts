/**
 * The header extension that leads to the dirty bitmaps of an image: written so that at any moment
 * it tells of one directory as a whole, or the header says that it is out of date.
 * Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Bitmaps extension"
 */
import * as abi from "../../../abi/qcow2.ts";
import { ENOSPC } from "../../../runtime/errno.ts";
import {
  type BitmapsExtension,
  type HeaderExtension,
  parseExtensions,
  setU64,
  viewOf,
} from "./header.ts";
import type { Image } from "./image.ts";

/** What a disk writes as a whole. */
const SECTOR_BYTES = 512;
const WHOLE_BYTES = abi.EXTENSION_DATA + abi.BITMAPS_EXTENSION_BYTES;

/** Where things are in the header's cluster. */
interface Places {
  /** Of the extension; -1: there is none. */
  readonly at: number;
  /** Others follow it. */
  readonly isLast: boolean;
  /** Of the end mark, or where the extensions may go no further. */
  readonly end: number;
  readonly limit: number;
}

/**
 * Has the header lead to another directory, which is on the disk with all it refers to. 0 or
 * -errno: it leads to the one before then, to none, or nothing is written any more.
 */
export async function writeExtension(image: Image, next: BitmapsExtension): Promise<number> {
  const data = dataOf(next);
  const places = placesIn(image.header, image.extras.extensions);
  let result: number;
  if (places.at < 0) result = await insert(image, places, data);
  else result = await replace(image, places.at + abi.EXTENSION_DATA, data);
  if (result === 0) result = await setAutoclear(image, true);
  if (result < 0) return result;
  image.extras = { ...image.extras, bitmaps: next };
  return rememberExtensions(image);
}

/** The header leads to no bitmaps any more. 0 or -errno. */
export async function removeExtension(image: Image): Promise<number> {
  const result = await setAutoclear(image, false);
  if (result < 0) return result;
  image.extras = { ...image.extras, bitmaps: null };
  const { at, isLast } = placesIn(image.header, image.extras.extensions);
  // Between others it stays: the cleared bit says that it means nothing.
  if (at < 0 || !isLast) return 0;
  const removed = await image.file.writeBytes(at, new Uint8Array(abi.EXTENSION_DATA));
  return removed < 0 ? removed : rememberExtensions(image);
}

async function setAutoclear(image: Image, isSet: boolean): Promise<number> {
  const { hi, lo } = image.header.autoclear;
  const bit = abi.QCOW2_AUTOCLEAR_BITMAPS;
  const next = (isSet ? lo | bit : lo & ~bit) >>> 0;
  if (next === lo) return 0;
  const result = await image.writeField(abi.HEADER_AUTOCLEAR_FEATURES, hi, next);
  // Where it may be set, it counts as set.
  if (result === 0 || isSet) image.header.autoclear = { hi, lo: next };
  return result;
}

/** `at`: of the data. 0 or -errno. */
async function replace(image: Image, at: number, data: Uint8Array): Promise<number> {
  const isWhole = at % SECTOR_BYTES <= SECTOR_BYTES - data.length;
  const { bitmaps } = image.extras;
  if (bitmaps !== null && isWhole) return image.replaceTable(at, dataOf(bitmaps), data);
  // A power cut may leave half of it: nobody believes it meanwhile.
  const cleared = await setAutoclear(image, false);
  if (cleared < 0) return cleared;
  const result = await image.file.writeBytes(at, data);
  return result < 0 ? result : image.file.flush();
}

/** The end mark is replaced last. 0 or -errno. */
async function insert(image: Image, places: Places, data: Uint8Array): Promise<number> {
  const { file } = image;
  // Until it is all there, it means nothing.
  let result = await setAutoclear(image, false);
  if (result < 0) return result;
  const bytes = new Uint8Array(WHOLE_BYTES + abi.EXTENSION_DATA);
  const view = viewOf(bytes);
  view.setUint32(abi.EXTENSION_TYPE, abi.QCOW2_EXT_MAGIC_BITMAPS);
  view.setUint32(abi.EXTENSION_LENGTH, data.length);
  bytes.set(data, abi.EXTENSION_DATA);
  if (places.end + bytes.length > places.limit) {
    result = await moveBackingName(image, places, places.end + bytes.length);
    if (result < 0) return result;
  }
  const { EXTENSION_DATA } = abi;
  result = await file.writeBytes(places.end + EXTENSION_DATA, bytes.subarray(EXTENSION_DATA));
  if (result === 0) result = await file.flush();
  if (result === 0) result = await file.writeBytes(places.end, bytes.subarray(0, EXTENSION_DATA));
  return result < 0 ? result : file.flush();
}

/** To a place behind it, which begins at `from` at the earliest. 0 or -errno. */
async function moveBackingName(
  image: Image,
  { end, limit }: Places,
  from: number,
): Promise<number> {
  const { header, layout, file } = image;
  const { backingFileOffset: before, backingFileBytes: length } = header;
  // Without an end mark, the name would be taken for an extension.
  if (before === 0 || end + abi.EXTENSION_DATA > limit) return -ENOSPC;
  const target = Math.max(from, Math.ceil((before + length) / 8) * 8);
  if (target + length > layout.clusterBytes) return -ENOSPC;
  const name = await file.readBytes(before, length);
  if (typeof name === "number") return name;
  let result = await file.writeBytes(target, name);
  if (result === 0) result = await file.flush();
  if (result === 0) result = await image.writeField(abi.HEADER_BACKING_FILE_OFFSET, 0, target);
  if (result === 0) header.backingFileOffset = target;
  return result;
}

async function rememberExtensions(image: Image): Promise<number> {
  const { file, layout, header } = image;
  const cluster = await file.readBytes(0, layout.clusterBytes);
  if (typeof cluster === "number") return cluster;
  image.extras = { ...image.extras, extensions: parseExtensions(header, cluster) };
  return 0;
}

function placesIn(
  header: Pick<Image["header"], "headerLength" | "backingFileOffset" | "clusterBits">,
  extensions: readonly HeaderExtension[],
): Places {
  let at = -1;
  let end = header.headerLength;
  let isLast = false;
  for (const { type, data } of extensions) {
    isLast = type === abi.QCOW2_EXT_MAGIC_BITMAPS;
    if (isLast) at = end;
    end += abi.EXTENSION_DATA + Math.ceil(data.length / 8) * 8;
  }
  const limit = header.backingFileOffset > 0 ? header.backingFileOffset : 2 ** header.clusterBits;
  return { at, isLast, end, limit };
}

function dataOf({ count, offset, bytes }: BitmapsExtension): Uint8Array {
  const data = new Uint8Array(abi.BITMAPS_EXTENSION_BYTES);
  const view = viewOf(data);
  view.setUint32(abi.BITMAPS_NB_BITMAPS, count);
  setU64(view, abi.BITMAPS_DIRECTORY_SIZE, bytes);
  setU64(view, abi.BITMAPS_DIRECTORY_OFFSET, offset);
  return data;
}
