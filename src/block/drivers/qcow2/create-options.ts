/**
 * BlockdevCreateOptionsQcow2: what a new image is to be like, checked in QSD's words, and where its
 * parts come to lie. Pure. Thread: main, iothread.
 *
 * All clusters are in use and in one run: header, refcount table, refcount blocks, L1 table, and
 * with preallocation L2 tables and guest data.
 * Spec: qapi/block-core.json BlockdevCreateOptionsQcow2; QEMU block/qcow2.c qcow2_co_create()
 */
import type { GenericSchema } from "valibot";
import * as abi from "../../../abi/qcow2.ts";
import { preallocMode } from "../../../qapi/block.ts";
import { cryptoCreateOptions } from "../../../qapi/crypto.ts";
import { bool, doc, enumeration, int, optional, size, str } from "../../../qapi/scalars.ts";
import type { ObjectMembers } from "../../../qapi/types.ts";
import { EFBIG, strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import { type EncryptOptions, encryptionHeaderBytes } from "./encryption-create.ts";

const DEFAULT_CLUSTER_BYTES = 65536;
const DEFAULT_REFCOUNT_BITS = 16;
const SECTOR_BYTES = 512;

export interface Qcow2CreateOptions {
  readonly "data-file-raw"?: boolean;
  readonly "extended-l2"?: boolean;
  readonly size: number;
  readonly version?: "v2" | "v3";
  readonly "backing-file"?: string;
  readonly "backing-fmt"?: string;
  readonly encrypt?: EncryptOptions;
  readonly "cluster-size"?: number;
  readonly preallocation?: Preallocation;
  readonly "lazy-refcounts"?: boolean;
  readonly "refcount-bits"?: number;
  readonly "compression-type"?: "zlib" | "zstd";
}

export type Preallocation = "off" | "metadata" | "falloc" | "full";

export const qcow2CreateMembers = (driverName: GenericSchema): ObjectMembers => ({
  "data-file-raw": optional(bool, "The data file can be read without the image (default: false)"),
  "extended-l2": optional(bool, "Clusters have subclusters (default: false)"),
  size: doc(size, "Length of the guest's disk, bytes"),
  version: optional(enumeration("BlockdevQcow2Version", ["v2", "v3"]), "Default: v3"),
  "backing-file": optional(str, "Backing file as the image is to name it"),
  "backing-fmt": optional(driverName, "Driver of the backing file"),
  encrypt: optional(cryptoCreateOptions, "How guest data is encrypted (default: not at all)"),
  "cluster-size": optional(size, "Bytes per cluster (default: 65536)"),
  preallocation: optional(preallocMode, "What has its place at once (default: off)"),
  "lazy-refcounts": optional(bool, "Refcounts are written late (default: false)"),
  "refcount-bits": optional(int, "Bits per refcount (default: 16)"),
  "compression-type": optional(
    enumeration("Qcow2CompressionType", ["zlib", "zstd"]),
    "How compressed clusters are compressed (default: zlib)",
  ),
});

/** A new image. Places are byte offsets in the image file. */
export interface NewImage {
  readonly version: 2 | 3;
  /** Of the guest's disk. */
  readonly bytes: number;
  readonly clusterBytes: number;
  readonly refcountBits: number;
  readonly hasSubclusters: boolean;
  readonly hasDataFile: boolean;
  readonly isDataFileRaw: boolean;
  readonly hasLazyRefcounts: boolean;
  readonly isZstd: boolean;
  readonly backingFile: string;
  readonly backingFormat: string | undefined;
  readonly preallocation: Preallocation;
  readonly refcountTableClusters: number;
  readonly refcountBlocksOffset: number;
  readonly l1TableOffset: number;
  readonly l1Entries: number;
  /** Of the encryption header; 0: there is none. */
  readonly encryptionOffset: number;
  readonly encryptionBytes: number;
  readonly l2TablesOffset: number;
  readonly l2TableCount: number;
  /** Where guest data lies in the image file: nowhere in use without preallocation. */
  readonly dataOffset: number;
  readonly dataClusters: number;
  readonly clusterCount: number;
  readonly fileBytes: number;
}

/** Throws OutportError. */
export function planImage(options: Qcow2CreateOptions, hasDataFile: boolean): NewImage {
  const { size: bytes, version = "v3", "extended-l2": hasSubclusters = false } = options;
  const { "cluster-size": clusterBytes = DEFAULT_CLUSTER_BYTES } = options;
  const { "refcount-bits": refcountBits = DEFAULT_REFCOUNT_BITS } = options;
  // What is larger counts as the last number, see scalars.ts, and is too large below.
  if (bytes % SECTOR_BYTES !== 0 && bytes < Number.MAX_SAFE_INTEGER) {
    fail(`Image size must be a multiple of ${SECTOR_BYTES} bytes`);
  }
  checkClusters(version, clusterBytes, hasSubclusters);
  checkBacking(options, hasSubclusters);
  checkRefcounts(options, version, refcountBits);
  checkDataFile(options, version, hasDataFile);
  const isZstd = options["compression-type"] === "zstd";
  if (isZstd && version === "v2") {
    fail(`Non-zlib compression type is only supported with ${MODERN}`);
  }
  const encryptionBytes = encryptionHeaderBytes(options.encrypt);
  if (bytes < 0) fail("Could not resize image: Image size cannot be negative");
  const isDataFileRaw = options["data-file-raw"] ?? false;
  const { preallocation = "off" } = options;
  return {
    version: version === "v2" ? 2 : 3,
    bytes,
    clusterBytes,
    refcountBits,
    hasSubclusters,
    hasDataFile,
    isDataFileRaw,
    hasLazyRefcounts: options["lazy-refcounts"] ?? false,
    isZstd,
    backingFile: options["backing-file"] ?? "",
    backingFormat: options["backing-fmt"],
    // What lies raw in another file is where it is from the beginning.
    preallocation: isDataFileRaw && preallocation === "off" ? "metadata" : preallocation,
    encryptionBytes,
    ...placesOf(options, {
      ...{ bytes, clusterBytes, refcountBits, hasSubclusters, hasDataFile, encryptionBytes },
    }),
  };
}

const MODERN = "compatibility level 1.1 and above (use version=v3 or greater)";

function checkClusters(version: string, clusterBytes: number, hasSubclusters: boolean): void {
  if (hasSubclusters && version === "v2") {
    fail(`Extended L2 entries are only supported with ${MODERN}`);
  }
  const [least, most] = [2 ** abi.MIN_CLUSTER_BITS, 2 ** abi.MAX_CLUSTER_BITS];
  if (!isPowerOfTwo(clusterBytes) || clusterBytes < least || clusterBytes > most) {
    fail(`Cluster size must be a power of two between ${least} and ${most / 1024}k`);
  }
  const leastWithSubclusters = least * abi.QCOW_EXTL2_SUBCLUSTERS_PER_CLUSTER;
  if (hasSubclusters && clusterBytes < leastWithSubclusters) {
    const sizes = `cluster sizes of at least ${leastWithSubclusters} bytes`;
    fail(`Extended L2 entries are only supported with ${sizes}`);
  }
}

function checkBacking(options: Qcow2CreateOptions, hasSubclusters: boolean): void {
  const { "backing-file": name, "backing-fmt": format, preallocation = "off" } = options;
  if (name !== undefined && preallocation !== "off" && !hasSubclusters) {
    const when = "can only be used at the same time if extended_l2 is on";
    fail(`Backing file and preallocation ${when}`);
  }
  if (format !== undefined && name === undefined) {
    fail("Backing format cannot be used without backing file");
  }
}

function checkRefcounts(options: Qcow2CreateOptions, version: string, bits: number): void {
  if (options["lazy-refcounts"] === true && version === "v2") {
    fail(`Lazy refcounts only supported with ${MODERN}`);
  }
  if (!isPowerOfTwo(bits) || bits > 64) {
    fail("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (bits !== DEFAULT_REFCOUNT_BITS && version === "v2") {
    const needed = "compatibility level 1.1 or above (use version=v3 or greater)";
    fail(`Different refcount widths than 16 bits require ${needed}`);
  }
}

function checkDataFile(options: Qcow2CreateOptions, version: string, hasDataFile: boolean): void {
  const isRaw = options["data-file-raw"] ?? false;
  if (isRaw && !hasDataFile) fail("data-file-raw requires data-file");
  if (isRaw && options["backing-file"] !== undefined) {
    fail("Backing file and data-file-raw cannot be used at the same time");
  }
  if (hasDataFile && version === "v2") {
    fail(`External data files are only supported with ${MODERN}`);
  }
}

type Shape = Pick<
  NewImage,
  "bytes" | "clusterBytes" | "refcountBits" | "hasSubclusters" | "hasDataFile" | "encryptionBytes"
>;

function placesOf(options: Qcow2CreateOptions, shape: Shape) {
  const { bytes, clusterBytes, refcountBits, hasSubclusters, hasDataFile, encryptionBytes } = shape;
  const entryBytes = hasSubclusters ? abi.L2E_SIZE_EXTENDED : abi.L2E_SIZE_NORMAL;
  const guestClusters = Math.ceil(bytes / clusterBytes);
  const l1Entries = Math.ceil(guestClusters / (clusterBytes / entryBytes));
  const l1Bytes = l1Entries * abi.ENTRY_BYTES;
  if (l1Bytes > abi.QCOW_MAX_L1_SIZE) throw tooLarge("Failed to grow the L1 table");
  const isMapped = options["data-file-raw"] === true || (options.preallocation ?? "off") !== "off";
  const l2TableCount = isMapped ? l1Entries : 0;
  const dataClusters = isMapped && !hasDataFile ? guestClusters : 0;
  const headerClusters = Math.ceil(encryptionBytes / clusterBytes);
  const l1Clusters = Math.ceil(l1Bytes / clusterBytes);
  const others = 1 + l1Clusters + headerClusters + l2TableCount + dataClusters;
  const { tableClusters, blocks } = refcountClusters(others, clusterBytes, refcountBits);
  const refcountBlocksOffset = (1 + tableClusters) * clusterBytes;
  const l1TableOffset = refcountBlocksOffset + blocks * clusterBytes;
  const encryptionOffset = l1TableOffset + l1Clusters * clusterBytes;
  const l2TablesOffset = encryptionOffset + headerClusters * clusterBytes;
  const dataOffset = l2TablesOffset + l2TableCount * clusterBytes;
  const clusterCount = others + tableClusters + blocks;
  return {
    refcountTableClusters: tableClusters,
    refcountBlocksOffset,
    l1TableOffset,
    l1Entries,
    l2TablesOffset,
    l2TableCount,
    dataOffset,
    dataClusters,
    clusterCount,
    encryptionOffset,
    // The last table need not be whole.
    fileBytes:
      isMapped || encryptionBytes > 0 ? clusterCount * clusterBytes : l1TableOffset + l1Bytes,
  };
}

/** They count themselves, too. */
function refcountClusters(others: number, clusterBytes: number, bits: number) {
  const perBlock = (clusterBytes * 8) / bits;
  let tableClusters = 1;
  let blocks = 1;
  for (;;) {
    const neededBlocks = Math.ceil((others + tableClusters + blocks) / perBlock);
    const neededTable = Math.ceil((neededBlocks * abi.ENTRY_BYTES) / clusterBytes);
    if (neededBlocks <= blocks && neededTable <= tableClusters) break;
    blocks = Math.max(blocks, neededBlocks);
    tableClusters = Math.max(tableClusters, neededTable);
  }
  if (tableClusters * clusterBytes > abi.QCOW_MAX_REFTABLE_SIZE) {
    throw tooLarge("Failed to grow the refcount table");
  }
  return { tableClusters, blocks };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

function tooLarge(what: string): OutportError {
  return new OutportError("limit", `Could not resize image: ${what}: ${strerror(EFBIG)}`);
}

function fail(message: string): never {
  throw new OutportError("invalid", message);
}
