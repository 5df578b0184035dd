/**
 * Opening an image: reads and checks its header and tables, in the order and the words of QSD.
 * Thread: iothread; may suspend.
 */
import * as abi from "../../../abi/qcow2.ts";
import { strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import type { OpenContext } from "../../driver.ts";
import { removeExtension } from "./bitmap-extension.ts";
import { checkKeySecret, encryptionPlace, openEncryption } from "./encryption.ts";
import { checkFeatures, parseExtras, parseHeader, type Qcow2Header } from "./header.ts";
import { Image } from "./image.ts";
import { ImageFile } from "./image-file.ts";
import { L2Tables, swapWords } from "./l2-tables.ts";
import { checkHeader, type Layout, layoutOf } from "./layout.ts";
import { type Qcow2Settings, settingsOf } from "./options.ts";
import { parseRefcountTable, Refcounts } from "./refcounts.ts";
import { repairImage } from "./repair.ts";
import { readSnapshots } from "./snapshots.ts";

/** More is kept than asked for: a block covers much, and allocating looks at each. */
const REFCOUNT_CACHE_BYTES_MIN = 2 * 1024 * 1024;

/** A header, and what its cluster holds beside it. */
export interface ReadHeader {
  readonly header: Qcow2Header;
  readonly cluster: Uint8Array;
}

/** Throws OutportError. `writable`: the image is to be. */
export async function readHeader(file: ImageFile, writable: boolean): Promise<ReadHeader> {
  const start = await bytesOf(file, 0, abi.HEADER_LENGTH_KNOWN, "Could not read qcow2 header");
  const header = parseHeader(start);
  const what = "Could not read qcow2 header";
  const cluster = await bytesOf(file, 0, 2 ** header.clusterBits, what);
  checkFeatures(header, cluster);
  checkHeader(header, writable, file.node.bytes);
  return { header, cluster };
}

/**
 * Throws OutportError. The children are open, those that the header names, too. `before`: the same
 * image as it is open, for its key. `hasBitmap`: the node has a dirty bitmap of that name already.
 */
export async function openImage(
  context: OpenContext,
  before?: Image,
  hasBitmap: (name: string) => boolean = () => false,
): Promise<Image> {
  const { reactor, children } = context;
  // It may have grown in other hands.
  children.file!.refreshLength?.();
  const file = new ImageFile(reactor, children.file!);
  const { header, cluster } = await readHeader(file, !context.readOnly);
  const layout = layoutOf(header);
  const l1 = await readL1(file, header);
  const settings = settingsOf(context.options, header, layout, context.discardUnmap);
  const refcounts = await readRefcounts(file, header, layout, settings);
  const extras = parseExtras(header, cluster);
  checkKeySecret(header, context.options);
  const place = encryptionPlace(header, extras);
  checkDataFile(layout, children["data-file"] !== undefined);
  const snapshots = await readSnapshots(file, header);
  const dataFile = layout.hasDataFile ? new ImageFile(reactor, children["data-file"]!) : null;
  const backing = children.backing === undefined ? null : new ImageFile(reactor, children.backing);
  const { l2EntryCacheBytes: sliceBytes, l2CacheEntries: slicesMax } = settings;
  const tables = new L2Tables({ layout, l1, sliceBytes, slicesMax });
  const keys = before?.encryption ?? null;
  const encryption = await openEncryption(context, place, file, dataFile, keys);
  const parts = { file, dataFile, backing, header, extras, layout, settings, tables, refcounts };
  const image = new Image({ context, ...parts, snapshots, encryption });
  try {
    await openBitmaps(image, hasBitmap);
    if (!context.readOnly && context.active !== false) await prepareForWriting(image);
  } catch (error) {
    image.abandon();
    if (before === undefined) encryption?.key.fill(0);
    throw error;
  }
  return image;
}

/** Throws OutportError. */
async function openBitmaps(image: Image, hasBitmap: (name: string) => boolean): Promise<void> {
  const { extras, context, bitmaps } = image;
  const isThere = extras.extensions.some(({ type }) => type === abi.QCOW2_EXT_MAGIC_BITMAPS);
  if (isThere && extras.bitmaps === null) {
    const what = "a program lacking bitmap support modified this file";
    context.log(`${context.nodeName}: ${what}, so all bitmaps are now considered inconsistent`);
  }
  if (context.active === false) {
    // Another process has them now: they are only listed.
    await bitmaps.readDirectory().catch(() => {});
    return;
  }
  await bitmaps.readDirectory();
  await bitmaps.load(hasBitmap, context.readOnly);
  if (!context.readOnly) await bitmaps.setInUse(true);
}

/** What an image needs before it is written to. Throws OutportError. */
async function prepareForWriting(image: Image): Promise<void> {
  const { header, extras } = image;
  const { hi, lo } = header.autoclear;
  const next = (lo & abi.QCOW2_AUTOCLEAR_MASK) >>> 0;
  if (hi !== 0 || next !== lo) {
    const result = await image.writeField(abi.HEADER_AUTOCLEAR_FEATURES, 0, next);
    if (result < 0) throw ioError("Could not update qcow2 header", result);
    header.autoclear = { hi: 0, lo: next };
  }
  if (extras.bitmaps === null) {
    const result = await removeExtension(image);
    if (result < 0) throw ioError("Could not update qcow2 header", result);
  }
  if ((header.incompatible.lo & abi.QCOW2_INCOMPAT_DIRTY) === 0) return;
  const result = await repairImage(image);
  if (result < 0) throw ioError("Could not repair dirty image", result);
}

async function readL1(file: ImageFile, header: Qcow2Header): Promise<Uint32Array> {
  const bytes = header.l1Size * abi.ENTRY_BYTES;
  const table = await bytesOf(file, header.l1TableOffset, bytes, "Could not read L1 table");
  return swapWords(new Uint32Array(table.buffer));
}

async function readRefcounts(
  file: ImageFile,
  { refcountTableOffset, refcountTableClusters }: Qcow2Header,
  layout: Layout,
  { refcountCacheEntries }: Qcow2Settings,
): Promise<Refcounts> {
  const bytes = refcountTableClusters * layout.clusterBytes;
  const what = "Could not initialize refcount handling";
  const table = parseRefcountTable(await bytesOf(file, refcountTableOffset, bytes, what));
  const blocksMax = Math.max(refcountCacheEntries, REFCOUNT_CACHE_BYTES_MIN / layout.clusterBytes);
  return new Refcounts(file, layout, table, blocksMax);
}

/** Throws OutportError. */
export function checkDataFile({ hasDataFile, isDataFileRaw }: Layout, isGiven: boolean): void {
  if (hasDataFile) {
    if (!isGiven) throw new OutportError("invalid", "'data-file' is required for this image");
    return;
  }
  if (isGiven) {
    const message = "'data-file' can only be set for images with an external data file";
    throw new OutportError("invalid", message);
  }
  if (isDataFileRaw) throw new OutportError("invalid", "data-file-raw requires a data file");
}

async function bytesOf(
  file: ImageFile,
  offset: number,
  bytes: number,
  what: string,
): Promise<Uint8Array> {
  const result = await file.readBytes(offset, bytes);
  if (typeof result === "number") throw ioError(what, result);
  return result;
}

function ioError(what: string, result: number): OutportError {
  return new OutportError("io", `${what}: ${strerror(result)}`);
}
