/**
 * The header of a qcow2 image and its extensions: parsed and checked, in QSD's words where they are
 * wrong, and written. Pure. Thread: iothread.
 * Spec: QEMU docs/interop/qcow2.rst "Header", "Header extensions", "Feature name table"
 */
import * as abi from "../../../abi/qcow2.ts";
import { type ErrorKind, OutportError } from "../../../util/error.ts";

/** A u64 in halves: bits must not be lost. */
export interface U64 {
  readonly hi: number;
  readonly lo: number;
}

/** What is written at once; the rest of the header's cluster stays as it is. */
export interface HeaderExtension {
  readonly type: number;
  readonly data: Uint8Array;
}

export interface Qcow2Header {
  readonly version: 2 | 3;
  backingFileOffset: number;
  backingFileBytes: number;
  readonly clusterBits: number;
  /** Of the guest's disk. */
  bytes: number;
  readonly cryptMethod: number;
  l1Size: number;
  l1TableOffset: number;
  refcountTableOffset: number;
  refcountTableClusters: number;
  snapshotCount: number;
  snapshotsOffset: number;
  incompatible: U64;
  readonly compatible: U64;
  autoclear: U64;
  readonly refcountOrder: number;
  readonly headerLength: number;
  readonly compressionType: number;
}

/** Where the directory of stored dirty bitmaps is. */
export interface BitmapsExtension {
  readonly count: number;
  readonly offset: number;
  readonly bytes: number;
}

/** What follows the fixed part. */
export interface HeaderExtras {
  /** All of them, in order, but the end mark. */
  readonly extensions: readonly HeaderExtension[];
  readonly backingFile: string | null;
  readonly backingFormat: string | null;
  readonly dataFile: string | null;
  /** Null: there are none that the image vouches for. */
  readonly bitmaps: BitmapsExtension | null;
}

/** Sizes up to the last cluster stay exact as numbers. */
export function getU64(view: DataView, at: number): number {
  return view.getUint32(at) * 0x1_0000_0000 + view.getUint32(at + 4);
}

export function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / 0x1_0000_0000));
  view.setUint32(at + 4, value % 0x1_0000_0000);
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * `bytes`: the start of the image, HEADER_LENGTH_KNOWN or more; zeroes beyond its end. Throws
 * OutportError.
 */
export function parseHeader(bytes: Uint8Array): Qcow2Header {
  const view = viewOf(bytes);
  if (view.getUint32(abi.HEADER_MAGIC) !== abi.QCOW_MAGIC) {
    fail("Image is not in qcow2 format");
  }
  const version = view.getUint32(abi.HEADER_VERSION);
  if (version !== 2 && version !== 3) fail(`Unsupported qcow2 version ${version}`, "unsupported");
  const clusterBits = view.getUint32(abi.HEADER_CLUSTER_BITS);
  if (clusterBits < abi.MIN_CLUSTER_BITS || clusterBits > abi.MAX_CLUSTER_BITS) {
    fail(`Unsupported cluster size: 2^${clusterBits}`, "unsupported");
  }
  const isV3 = version === 3;
  const headerLength = isV3 ? view.getUint32(abi.HEADER_HEADER_LENGTH) : abi.HEADER_LENGTH_V2;
  if (isV3 && headerLength < abi.HEADER_LENGTH_V3_MIN) fail("qcow2 header too short");
  if (headerLength > 2 ** clusterBits) fail("qcow2 header exceeds cluster size");
  const backingFileOffset = getU64(view, abi.HEADER_BACKING_FILE_OFFSET);
  if (backingFileOffset > 2 ** clusterBits) fail("Invalid backing file offset");
  const features = (at: number): U64 =>
    isV3 ? { hi: view.getUint32(at), lo: view.getUint32(at + 4) } : { hi: 0, lo: 0 };
  const hasCompressionType = headerLength > abi.HEADER_COMPRESSION_TYPE;
  return {
    version,
    backingFileOffset,
    backingFileBytes: view.getUint32(abi.HEADER_BACKING_FILE_SIZE),
    clusterBits,
    bytes: getU64(view, abi.HEADER_SIZE),
    cryptMethod: view.getUint32(abi.HEADER_CRYPT_METHOD),
    l1Size: view.getUint32(abi.HEADER_L1_SIZE),
    l1TableOffset: getU64(view, abi.HEADER_L1_TABLE_OFFSET),
    refcountTableOffset: getU64(view, abi.HEADER_REFCOUNT_TABLE_OFFSET),
    refcountTableClusters: view.getUint32(abi.HEADER_REFCOUNT_TABLE_CLUSTERS),
    snapshotCount: view.getUint32(abi.HEADER_NB_SNAPSHOTS),
    snapshotsOffset: getU64(view, abi.HEADER_SNAPSHOTS_OFFSET),
    incompatible: features(abi.HEADER_INCOMPATIBLE_FEATURES),
    compatible: features(abi.HEADER_COMPATIBLE_FEATURES),
    autoclear: features(abi.HEADER_AUTOCLEAR_FEATURES),
    refcountOrder: isV3 ? view.getUint32(abi.HEADER_REFCOUNT_ORDER) : 4,
    headerLength,
    compressionType: hasCompressionType ? bytes[abi.HEADER_COMPRESSION_TYPE]! : 0,
  };
}

/** `cluster`: the image's first cluster. Throws OutportError. */
export function checkFeatures(header: Qcow2Header, cluster: Uint8Array): void {
  const { incompatible, compressionType } = header;
  if (compressionType > abi.QCOW2_COMPRESSION_TYPE_ZSTD) {
    fail(`qcow2: unknown compression type: ${compressionType}`, "unsupported");
  }
  const hasCompressionBit = (incompatible.lo & abi.QCOW2_INCOMPAT_COMPRESSION) !== 0;
  if (hasCompressionBit !== compressionType > 0) {
    const must = hasCompressionBit ? "must not be set" : "must be set";
    fail(`qcow2: Compression type incompatible feature bit ${must}`);
  }
  const unknown = { hi: incompatible.hi, lo: (incompatible.lo & ~abi.QCOW2_INCOMPAT_MASK) >>> 0 };
  if (unknown.hi !== 0 || unknown.lo !== 0) throw unsupportedFeatures(header, cluster, unknown);
}

function unsupportedFeatures(header: Qcow2Header, cluster: Uint8Array, unknown: U64): OutportError {
  let { hi, lo } = unknown;
  const names: string[] = [];
  for (const { type, bit, name } of featureNames(header, cluster)) {
    const inLow = bit < 32;
    const mask = (1 << (bit & 31)) >>> 0;
    const has = ((inLow ? lo : hi) & mask) !== 0;
    if (type !== abi.QCOW2_FEAT_TYPE_INCOMPATIBLE || bit > 63 || !has) continue;
    names.push(name);
    if (inLow) lo = (lo & ~mask) >>> 0;
    else hi = (hi & ~mask) >>> 0;
  }
  if (hi !== 0 || lo !== 0) {
    const rest = hi === 0 ? lo.toString(16) : hi.toString(16) + lo.toString(16).padStart(8, "0");
    names.push(`Unknown incompatible feature: ${rest}`);
  }
  return new OutportError("unsupported", `Unsupported qcow2 feature(s): ${names.join(", ")}`);
}

/** Up to the first that has no name. A table that can't be read has none. */
function featureNames(
  header: Qcow2Header,
  cluster: Uint8Array,
): { type: number; bit: number; name: string }[] {
  const names: { type: number; bit: number; name: string }[] = [];
  let extensions: readonly HeaderExtension[];
  try {
    extensions = parseExtensions(header, cluster);
  } catch {
    return names;
  }
  const table = extensions.find(({ type }) => type === abi.QCOW2_EXT_MAGIC_FEATURE_TABLE)?.data;
  if (table === undefined) return names;
  const { FEATURE_ENTRY_BYTES, FEATURE_NAME, FEATURE_NAME_BYTES } = abi;
  for (let at = 0; at + FEATURE_ENTRY_BYTES <= table.length; at += FEATURE_ENTRY_BYTES) {
    const name = table.subarray(at + FEATURE_NAME, at + FEATURE_NAME + FEATURE_NAME_BYTES);
    if (name[0] === 0) break;
    const [type, bit] = [table[at + abi.FEATURE_TYPE]!, table[at + abi.FEATURE_BIT]!];
    names.push({ type, bit, name: textOf(name) });
  }
  return names;
}

/** Throws OutportError. `cluster`: the image's first cluster. */
export function parseExtensions(header: Qcow2Header, cluster: Uint8Array): HeaderExtension[] {
  const view = viewOf(cluster);
  const end = header.backingFileOffset > 0 ? header.backingFileOffset : 2 ** header.clusterBits;
  const extensions: HeaderExtension[] = [];
  for (let at = header.headerLength; at < end; ) {
    if (at + abi.EXTENSION_DATA > end) fail("Header extension too large");
    const type = view.getUint32(at + abi.EXTENSION_TYPE);
    const length = view.getUint32(at + abi.EXTENSION_LENGTH);
    at += abi.EXTENSION_DATA;
    if (length > end - at) fail("Header extension too large");
    if (type === abi.QCOW2_EXT_MAGIC_END) break;
    extensions.push({ type, data: cluster.slice(at, at + length) });
    at += Math.ceil(length / 8) * 8;
  }
  return extensions;
}

/** Extensions, the names in them and that of the backing file. Throws OutportError. */
export function parseExtras(header: Qcow2Header, cluster: Uint8Array): HeaderExtras {
  const extensions = parseExtensions(header, cluster);
  const last = (type: number): Uint8Array | undefined =>
    extensions.filter((one) => one.type === type).at(-1)?.data;
  const format = last(abi.QCOW2_EXT_MAGIC_BACKING_FORMAT);
  if (format !== undefined && format.length > abi.BACKING_FORMAT_NAME_BYTES_MAX) {
    const limit = abi.BACKING_FORMAT_NAME_BYTES_MAX + 1;
    fail(`ERROR: ext_backing_format: len=${format.length} too large (>=${limit})`);
  }
  const bitmaps = parseBitmaps(header, last(abi.QCOW2_EXT_MAGIC_BITMAPS));
  const crypto = last(abi.QCOW2_EXT_MAGIC_CRYPTO_HEADER);
  if (crypto !== undefined && header.cryptMethod !== abi.QCOW_CRYPT_LUKS) {
    fail("CRYPTO header extension only expected with LUKS encryption method");
  }
  const dataFile = last(abi.QCOW2_EXT_MAGIC_DATA_FILE);
  return {
    extensions,
    backingFile: parseBackingFile(header, cluster),
    backingFormat: format === undefined ? null : textOf(format),
    dataFile: dataFile === undefined ? null : textOf(dataFile),
    bitmaps,
  };
}

function parseBackingFile(header: Qcow2Header, cluster: Uint8Array): string | null {
  const { backingFileOffset: offset, backingFileBytes: bytes } = header;
  if (offset === 0) return null;
  if (bytes > Math.min(abi.BACKING_FILE_NAME_BYTES_MAX, 2 ** header.clusterBits - offset)) {
    fail("Backing file name too long");
  }
  const name = textOf(cluster.subarray(offset, offset + bytes));
  return name === "" ? null : name;
}

function parseBitmaps(header: Qcow2Header, data: Uint8Array | undefined): BitmapsExtension | null {
  if (data === undefined) return null;
  if (data.length !== abi.BITMAPS_EXTENSION_BYTES) fail("bitmaps_ext: Invalid extension length");
  if ((header.autoclear.lo & abi.QCOW2_AUTOCLEAR_BITMAPS) === 0) return null;
  const view = viewOf(data);
  if (view.getUint32(abi.BITMAPS_RESERVED) !== 0) fail("bitmaps_ext: Reserved field is not zero");
  const count = view.getUint32(abi.BITMAPS_NB_BITMAPS);
  if (count > abi.QCOW2_MAX_BITMAPS) {
    const limit = `exceeding the QEMU supported maximum of ${abi.QCOW2_MAX_BITMAPS}`;
    fail(`bitmaps_ext: Image has ${count} bitmaps, ${limit}`);
  }
  if (count === 0) fail("found bitmaps extension with zero bitmaps");
  const offset = getU64(view, abi.BITMAPS_DIRECTORY_OFFSET);
  if (offset % 2 ** header.clusterBits !== 0) fail("bitmaps_ext: invalid bitmap directory offset");
  const bytes = getU64(view, abi.BITMAPS_DIRECTORY_SIZE);
  if (bytes > abi.QCOW2_MAX_BITMAP_DIRECTORY_SIZE) {
    const limit = `the maximum supported size (${abi.QCOW2_MAX_BITMAP_DIRECTORY_SIZE})`;
    fail(`bitmaps_ext: bitmap directory size (${bytes}) exceeds ${limit}`);
  }
  return { count, offset, bytes };
}

/** Up to the first NUL. */
export function textOf(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
}

function fail(message: string, kind: ErrorKind = "invalid"): never {
  throw new OutportError(kind, message);
}
