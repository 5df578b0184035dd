/**
 * What an image names as its backing file, changed while it is open: the name goes to a place of
 * its own first, and then one sector leads there. Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Header", "Header extensions"
 */
import * as abi from "../../../abi/qcow2.ts";
import { EINVAL, ENOSPC } from "../../../runtime/errno.ts";
import { type HeaderExtension, parseExtensions, parseExtras, setU64, viewOf } from "./header.ts";
import type { Image } from "./image.ts";

const SECTOR_BYTES = 512;

/** `name` "": none. 0 or -errno. Nothing is in flight. */
export async function changeBackingName(
  image: Image,
  name: string,
  format: string,
): Promise<number> {
  const { layout } = image;
  const text = new TextEncoder().encode(name);
  if (text.length > abi.BACKING_FILE_NAME_BYTES_MAX) return -EINVAL;
  // The data file alone makes up the disk.
  if (text.length > 0 && layout.hasDataFile && layout.isDataFileRaw) return -EINVAL;
  // A commit may set marks in the header.
  return image.writer.exclusive(() => change(image, text, text.length === 0 ? null : format));
}

async function change(image: Image, text: Uint8Array, format: string | null): Promise<number> {
  const { layout, file, header } = image;
  const cluster = await file.readBytes(0, layout.clusterBytes);
  if (typeof cluster === "number") return cluster;
  const { bytes, end } = withFormat(image, cluster, format);
  const nameAt = text.length === 0 ? 0 : placeOf(image, end, text.length);
  if (end > layout.clusterBytes || nameAt + text.length > layout.clusterBytes) return -ENOSPC;
  setU64(viewOf(bytes), abi.HEADER_BACKING_FILE_OFFSET, nameAt);
  viewOf(bytes).setUint32(abi.HEADER_BACKING_FILE_SIZE, text.length);
  bytes.set(text, nameAt);
  const result = await write(image, cluster, bytes, end, { at: nameAt, text });
  if (result < 0) return result;
  header.backingFileOffset = nameAt;
  header.backingFileBytes = text.length;
  const { bitmaps } = image.extras;
  image.extras = { ...parseExtras(header, bytes), bitmaps };
  return 0;
}

/** The header's cluster with that format in its extensions, and where these end. */
function withFormat(
  { header }: Image,
  cluster: Uint8Array,
  format: string | null,
): { bytes: Uint8Array; end: number } {
  const type = abi.QCOW2_EXT_MAGIC_BACKING_FORMAT;
  const extensions = parseExtensions(header, cluster);
  const data = new TextEncoder().encode(format ?? "");
  const index = extensions.findIndex((one) => one.type === type);
  // Without a name, nobody asks for its format.
  if (format !== null && index >= 0) extensions[index] = { type, data };
  else if (format !== null) extensions.push({ type, data });
  const table = tableOf(extensions);
  const end = header.headerLength + table.length;
  const bytes = new Uint8Array(Math.max(cluster.length, end));
  bytes.set(cluster);
  bytes.set(table, header.headerLength);
  return { bytes, end };
}

/** With the end mark. */
function tableOf(extensions: readonly HeaderExtension[]): Uint8Array {
  const lengthOf = ({ data }: HeaderExtension): number => {
    return abi.EXTENSION_DATA + Math.ceil(data.length / 8) * 8;
  };
  const length = extensions.reduce((sum, one) => sum + lengthOf(one), 0);
  const table = new Uint8Array(length + abi.EXTENSION_DATA);
  let at = 0;
  for (const one of extensions) {
    viewOf(table).setUint32(at + abi.EXTENSION_TYPE, one.type);
    viewOf(table).setUint32(at + abi.EXTENSION_LENGTH, one.data.length);
    table.set(one.data, at + abi.EXTENSION_DATA);
    at += lengthOf(one);
  }
  return table;
}

/** For a name, from `end` on, where the one that there is does not lie. */
function placeOf({ header }: Image, end: number, length: number): number {
  const { backingFileOffset: before, backingFileBytes: bytes } = header;
  const isFree = before === 0 || before + bytes <= end || end + length <= before;
  return isFree ? end : Math.ceil((before + bytes) / 8) * 8;
}

/** The name is there before anything leads to it. */
async function write(
  { file }: Image,
  before: Uint8Array,
  after: Uint8Array,
  end: number,
  name: { readonly at: number; readonly text: Uint8Array },
): Promise<number> {
  let result = name.text.length === 0 ? 0 : await file.writeBytes(name.at, name.text);
  // Extensions behind the first sector are the same, but where another format takes more room.
  const isSame = after.subarray(SECTOR_BYTES, end).every((byte, i) => {
    return byte === before[SECTOR_BYTES + i];
  });
  if (result === 0 && !isSame) {
    result = await file.writeBytes(SECTOR_BYTES, after.slice(SECTOR_BYTES, end));
  }
  if (result === 0) result = await file.flush();
  if (result === 0) result = await file.writeBytes(0, after.slice(0, SECTOR_BYTES));
  return result < 0 ? result : file.flush();
}
