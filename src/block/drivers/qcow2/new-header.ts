/**
 * The header of a new image, with its extensions and the name of its backing file. Pure. Thread:
 * iothread.
 * Spec: QEMU docs/interop/qcow2.rst "Header", "Header extensions", "Feature name table"
 */
import * as abi from "../../../abi/qcow2.ts";
import {
  CRYPTO_EXTENSION_BYTES,
  CRYPTO_LENGTH,
  CRYPTO_OFFSET,
} from "../../../abi/qcow2-encryption.ts";
import { EINVAL, ENOSPC, strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import type { NewImage } from "./create-options.ts";
import { setU64, viewOf } from "./header.ts";

/** What older programs can tell their users of an image that they can't open: type, bit, name. */
const FEATURES: readonly (readonly [number, number, string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];
/** Larger clusters have room for their names. */
const CLUSTER_BYTES_WITHOUT_NAMES = 4096;

/** `dataFile`: the name of the data file, if there is one. Throws OutportError. */
export function newHeader(image: NewImage, dataFile: string | undefined): Uint8Array<ArrayBuffer> {
  const extensions = extensionsOf(image, dataFile);
  const name = new TextEncoder().encode(image.backingFile);
  const fixedBytes = image.version === 2 ? abi.HEADER_LENGTH_V2 : abi.HEADER_LENGTH_KNOWN;
  const nameOffset = fixedBytes + extensions.length;
  if (name.length > abi.BACKING_FILE_NAME_BYTES_MAX) throw cannotAssign(image, EINVAL);
  const bytes = nameOffset + name.length;
  if (bytes > image.clusterBytes) {
    if (name.length > 0) throw cannotAssign(image, ENOSPC);
    const message = `Could not update qcow2 header: ${strerror(ENOSPC)}`;
    throw new OutportError("limit", message);
  }
  const header = new Uint8Array(bytes);
  fillFixed(viewOf(header), image);
  header.set(extensions, fixedBytes);
  header.set(name, nameOffset);
  if (name.length > 0) {
    setU64(viewOf(header), abi.HEADER_BACKING_FILE_OFFSET, nameOffset);
    viewOf(header).setUint32(abi.HEADER_BACKING_FILE_SIZE, name.length);
  }
  return header;
}

function fillFixed(view: DataView, image: NewImage): void {
  view.setUint32(abi.HEADER_MAGIC, abi.QCOW_MAGIC);
  view.setUint32(abi.HEADER_VERSION, image.version);
  view.setUint32(abi.HEADER_CLUSTER_BITS, Math.log2(image.clusterBytes));
  setU64(view, abi.HEADER_SIZE, image.bytes);
  const isEncrypted = image.encryptionBytes > 0;
  view.setUint32(abi.HEADER_CRYPT_METHOD, isEncrypted ? abi.QCOW_CRYPT_LUKS : abi.QCOW_CRYPT_NONE);
  view.setUint32(abi.HEADER_L1_SIZE, image.l1Entries);
  setU64(view, abi.HEADER_L1_TABLE_OFFSET, image.l1Entries === 0 ? 0 : image.l1TableOffset);
  setU64(view, abi.HEADER_REFCOUNT_TABLE_OFFSET, image.clusterBytes);
  view.setUint32(abi.HEADER_REFCOUNT_TABLE_CLUSTERS, image.refcountTableClusters);
  if (image.version === 2) return;
  const incompatible =
    (image.hasDataFile ? abi.QCOW2_INCOMPAT_DATA_FILE : 0) |
    (image.isZstd ? abi.QCOW2_INCOMPAT_COMPRESSION : 0) |
    (image.hasSubclusters ? abi.QCOW2_INCOMPAT_EXTL2 : 0);
  const compatible = image.hasLazyRefcounts ? abi.QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
  const autoclear = image.isDataFileRaw ? abi.QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0;
  setU64(view, abi.HEADER_INCOMPATIBLE_FEATURES, incompatible);
  setU64(view, abi.HEADER_COMPATIBLE_FEATURES, compatible);
  setU64(view, abi.HEADER_AUTOCLEAR_FEATURES, autoclear);
  view.setUint32(abi.HEADER_REFCOUNT_ORDER, Math.log2(image.refcountBits));
  view.setUint32(abi.HEADER_HEADER_LENGTH, abi.HEADER_LENGTH_KNOWN);
  const { QCOW2_COMPRESSION_TYPE_ZLIB, QCOW2_COMPRESSION_TYPE_ZSTD } = abi;
  const compression = image.isZstd ? QCOW2_COMPRESSION_TYPE_ZSTD : QCOW2_COMPRESSION_TYPE_ZLIB;
  view.setUint8(abi.HEADER_COMPRESSION_TYPE, compression);
}

/** With the end mark. */
function extensionsOf(image: NewImage, dataFile: string | undefined): Uint8Array {
  const { backingFormat, version, clusterBytes } = image;
  const parts: Uint8Array[] = [];
  const add = (type: number, data: Uint8Array): void => {
    const part = new Uint8Array(abi.EXTENSION_DATA + Math.ceil(data.length / 8) * 8);
    viewOf(part).setUint32(abi.EXTENSION_TYPE, type);
    viewOf(part).setUint32(abi.EXTENSION_LENGTH, data.length);
    part.set(data, abi.EXTENSION_DATA);
    parts.push(part);
  };
  const text = (value: string): Uint8Array => new TextEncoder().encode(value);
  if (backingFormat !== undefined) add(abi.QCOW2_EXT_MAGIC_BACKING_FORMAT, text(backingFormat));
  if (dataFile !== undefined) add(abi.QCOW2_EXT_MAGIC_DATA_FILE, text(dataFile));
  if (image.encryptionBytes > 0) {
    const pointer = new Uint8Array(CRYPTO_EXTENSION_BYTES);
    setU64(viewOf(pointer), CRYPTO_OFFSET, image.encryptionOffset);
    setU64(viewOf(pointer), CRYPTO_LENGTH, image.encryptionBytes);
    add(abi.QCOW2_EXT_MAGIC_CRYPTO_HEADER, pointer);
  }
  if (version === 3 && clusterBytes > CLUSTER_BYTES_WITHOUT_NAMES) {
    add(abi.QCOW2_EXT_MAGIC_FEATURE_TABLE, featureNames());
  }
  add(abi.QCOW2_EXT_MAGIC_END, new Uint8Array(0));
  const bytes = parts.reduce((sum, part) => sum + part.length, 0);
  const all = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function featureNames(): Uint8Array {
  const table = new Uint8Array(FEATURES.length * abi.FEATURE_ENTRY_BYTES);
  for (const [i, [type, bit, name]] of FEATURES.entries()) {
    const at = i * abi.FEATURE_ENTRY_BYTES;
    table[at + abi.FEATURE_TYPE] = type;
    table[at + abi.FEATURE_BIT] = bit;
    table.set(new TextEncoder().encode(name), at + abi.FEATURE_NAME);
  }
  return table;
}

function cannotAssign({ backingFile, backingFormat }: NewImage, errno: number): OutportError {
  const format = backingFormat === undefined ? "" : ` with format '${backingFormat}'`;
  const message = `Could not assign backing file '${backingFile}'${format}: ${strerror(errno)}`;
  return new OutportError("limit", message);
}
