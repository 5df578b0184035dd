/**
 * vmdk: VMware's disk image format, sparse or compressed in one file, for reading. Schema on main,
 * nodes on an iothread.
 * Spec: VMware "Virtual Disk Format 5.0"; QEMU block/vmdk.c
 */
import { inflateSync } from "node:zlib";
import { EINVAL, EIO, strerror } from "../../runtime/errno.ts";
import { assert, OutportError } from "../../util/error.ts";
import { LENGTH_MAX, SECTOR_BYTES } from "../description.ts";
import type { BlockDriver, OpenContext } from "../driver.ts";
import { type ImageTables, PAGE_FOUND, PAGE_MISSING } from "../image-tables.ts";
import { startsWith } from "../probe.ts";
import {
  couldNotOpen,
  DAMAGED,
  HOLE,
  type ImageFacts,
  openReadOnly,
  PACKED,
  PLACED,
  type Place,
  type PlaceKind,
  ReadOnlyImage,
  readOnlyPermissions,
  UNLOADED,
  ZEROES,
} from "../read-only-image.ts";

const VMDK3_MAGIC = "COWD";
const VMDK4_MAGIC = "KDMV";
const DESCRIPTOR_START = "# Disk DescriptorFile";
const VMDK4_GD_AT_END = 2n ** 64n - 1n;
const VMDK4_COMPRESSION_DEFLATE = 1;
const VMDK4_FLAG_ZERO_GRAIN = 1 << 2;
const VMDK4_FLAG_MARKER = 1 << 17;
const VMDK_GTE_ZEROED = 1;
const VERSION_MAX = 3;

/** Offsets in the file: the magic comes first. */
const HEADER_VERSION = 4;
const HEADER_FLAGS = 8;
const HEADER_CAPACITY = 12;
const HEADER_GRANULARITY = 20;
const HEADER_DESC_OFFSET = 28;
const HEADER_NUM_GTES_PER_GT = 44;
const HEADER_GD_OFFSET = 56;
const HEADER_GRAIN_OFFSET = 64;
const HEADER_COMPRESS_ALGORITHM = 77;

/** At the end of a stream: a marker, the header once more, another marker. */
const FOOTER_BYTES = 3 * SECTOR_BYTES;
const MARKER_VALUE = 0;
const MARKER_SIZE = 8;
const MARKER_TYPE = 12;
const MARKER_END_OF_STREAM = 0;
const MARKER_FOOTER = 3;
const GRAIN_MARKER_BYTES = 12;

const DESCRIPTOR_OFFSET = SECTOR_BYTES;
const DESCRIPTOR_BYTES = 20 * SECTOR_BYTES;
const DESCRIPTOR_FILE_BYTES_MAX = 1024 * 1024;
const NO_PARENT = 0xffff_ffff;

const ENTRY_BYTES = 4;
const GTES_PER_GT_MAX = 512;
const DIRECTORY_ENTRIES_MAX = 32 * 1024 * 1024;
const GRAIN_SECTORS_MAX = 0x20_0000;
/** Whole grains are inflated in memory. */
const PACKED_GRAIN_SECTORS_MAX = 4096;
/** Requests that are smaller than a grain come in numbers. */
const INFLATED_GRAINS_MAX = 4;

interface VmdkHeader {
  readonly bytes: number;
  readonly grainBytes: number;
  readonly entriesPerTable: number;
  readonly directoryOffset: number;
  readonly hasZeroGrains: boolean;
  readonly isCompressed: boolean;
  readonly hasMarkers: boolean;
}

class VmdkNode extends ReadOnlyImage {
  #header: VmdkHeader;
  /** By where they lie; the newest last. */
  #inflated = new Map<number, Promise<Uint8Array | number>>();

  constructor(facts: ImageFacts, header: VmdkHeader) {
    super(facts);
    this.#header = header;
  }

  protected locate(offset: number, bytes: number, out: Place): PlaceKind {
    const { grainBytes, entriesPerTable, directoryOffset, hasZeroGrains } = this.#header;
    const inGrain = offset % grainBytes;
    const grain = (offset - inGrain) / grainBytes;
    const inTable = grain % entriesPerTable;
    const directoryAt = directoryOffset + ((grain - inTable) / entriesPerTable) * ENTRY_BYTES;
    out.bytes = Math.min(bytes, grainBytes - inGrain);
    let found = this.tables.seek(directoryAt, ENTRY_BYTES);
    if (found !== PAGE_FOUND) return found === PAGE_MISSING ? UNLOADED : DAMAGED;
    const table = this.tables.u32(directoryAt, true);
    if (table === 0) {
      out.bytes = Math.min(bytes, (entriesPerTable - inTable) * grainBytes - inGrain);
      return HOLE;
    }
    const at = table * SECTOR_BYTES + inTable * ENTRY_BYTES;
    found = this.tables.seek(at, ENTRY_BYTES);
    if (found !== PAGE_FOUND) return found === PAGE_MISSING ? UNLOADED : DAMAGED;
    const sector = this.tables.u32(at, true);
    if (sector === 0) return HOLE;
    if (sector === VMDK_GTE_ZEROED && hasZeroGrains) return ZEROES;
    if (this.#header.isCompressed) {
      out.offset = sector * SECTOR_BYTES;
      return PACKED;
    }
    out.offset = sector * SECTOR_BYTES + inGrain;
    return PLACED;
  }

  protected override async readPacked(
    place: number,
    offset: number,
    bytes: number,
    address: number,
  ): Promise<number> {
    const grain = await this.#grain(place);
    if (typeof grain === "number") return grain;
    const from = offset % this.#header.grainBytes;
    if (from + bytes > grain.length) return -EIO;
    this.tables.copyOut(grain.subarray(from, from + bytes), address);
    return 0;
  }

  #grain(place: number): Promise<Uint8Array | number> {
    const known = this.#inflated.get(place);
    if (known !== undefined) return known;
    if (this.#inflated.size >= INFLATED_GRAINS_MAX) {
      this.#inflated.delete(this.#inflated.keys().next().value!);
    }
    const grain = this.#inflate(place);
    this.#inflated.set(place, grain);
    grain.then((result) => {
      // What failed may be there the next time.
      const isFailure = typeof result === "number";
      if (isFailure && this.#inflated.get(place) === grain) this.#inflated.delete(place);
    });
    return grain;
  }

  async #inflate(place: number): Promise<Uint8Array | number> {
    const { grainBytes, hasMarkers } = this.#header;
    let at = place;
    let packedBytes = grainBytes;
    if (hasMarkers) {
      const marker = await this.tables.readBytes(at, GRAIN_MARKER_BYTES);
      if (typeof marker === "number") return marker;
      packedBytes = new DataView(marker.buffer).getUint32(MARKER_SIZE, true);
      at += GRAIN_MARKER_BYTES;
    }
    const isInside = at + packedBytes <= this.tables.fileBytes || !hasMarkers;
    if (packedBytes === 0 || packedBytes > 2 * grainBytes || !isInside) return -EIO;
    const packed = await this.tables.readBytes(at, packedBytes);
    if (typeof packed === "number") return packed;
    try {
      return new Uint8Array(inflateSync(packed, { maxOutputLength: grainBytes }));
    } catch {
      return -EIO;
    }
  }
}

export const vmdk: BlockDriver = {
  name: "vmdk",
  members: {},
  children: [
    { role: "file", optional: false },
    { role: "backing", optional: true, nullable: true, after: "file" },
  ],
  reopenable: [],
  childPermissions: readOnlyPermissions,
  onlyReads: true,
  probe: (start) =>
    [VMDK4_MAGIC, VMDK3_MAGIC, DESCRIPTOR_START].some((text) => startsWith(start, text)),
  async open(context: OpenContext) {
    const tables = openReadOnly(context);
    const header = parseHeader(context, tables, await readHeader(tables));
    const ids = await readContentIds(context, tables);
    // QSD differs: it reads what is missing from the parent.
    if (ids.parentCid !== NO_PARENT || context.children.backing !== undefined) {
      throw new OutportError("unsupported", "VMDK images with a parent are not supported");
    }
    const { bytes, grainBytes } = header;
    const facts = { context, tables, driver: "vmdk", bytes, clusterBytes: grainBytes };
    const image = { "format-specific": { type: "vmdk", data: specifics(context, header, ids) } };
    const limits = { "write-zeroes-alignment": grainBytes };
    return new VmdkNode({ ...facts, image, limits }, header);
  },
};

/** That which counts: a stream has it at its end. Throws OutportError. */
async function readHeader(tables: ImageTables): Promise<DataView> {
  if (tables.fileBytes < 4) throw invalid("File is too small, not a valid image");
  const what = "Could not read from file";
  const header = await tables.header(0, SECTOR_BYTES, what);
  const magic = textAt(header, 0, 4);
  if (magic !== VMDK4_MAGIC) {
    if (magic === VMDK3_MAGIC) throw unsupportedType("vmfsSparse");
    throw unsupportedType(await createTypeAt(tables, 0));
  }
  if (header.getBigUint64(HEADER_CAPACITY, true) === 0n) {
    const sector = header.getBigUint64(HEADER_DESC_OFFSET, true);
    if (sector !== 0n) throw unsupportedType(await createTypeAt(tables, Number(sector) * 512));
  }
  if (header.getBigUint64(HEADER_GD_OFFSET, true) !== VMDK4_GD_AT_END) return header;
  const start = tables.fileBytes - FOOTER_BYTES;
  if (start < 0) throw invalid("Invalid footer");
  const footer = await tables.header(start, FOOTER_BYTES, "Failed to read footer");
  const end = 2 * SECTOR_BYTES;
  const isFooter =
    textAt(footer, SECTOR_BYTES, 4) === VMDK4_MAGIC &&
    footer.getUint32(MARKER_SIZE, true) === 0 &&
    footer.getUint32(MARKER_TYPE, true) === MARKER_FOOTER &&
    footer.getBigUint64(end + MARKER_VALUE, true) === 0n &&
    footer.getUint32(end + MARKER_SIZE, true) === 0 &&
    footer.getUint32(end + MARKER_TYPE, true) === MARKER_END_OF_STREAM;
  if (!isFooter) throw invalid("Invalid footer");
  return new DataView(footer.buffer, SECTOR_BYTES, SECTOR_BYTES);
}

/** Of a descriptor. Throws OutportError. */
async function createTypeAt(tables: ImageTables, offset: number): Promise<string> {
  const bytes = Math.min(tables.fileBytes, DESCRIPTOR_FILE_BYTES_MAX);
  const text = descriptorText(await tables.header(offset, bytes, "Could not read from file"));
  const type = /createType.{2}([^"]{0,127})"/s.exec(text)?.[1];
  if (type === undefined) throw invalid("invalid VMDK image descriptor");
  return type;
}

/** Throws OutportError, in QSD's order. */
function parseHeader(context: OpenContext, tables: ImageTables, view: DataView): VmdkHeader {
  const u64 = (at: number): bigint => view.getBigUint64(at, true);
  const isCompressed =
    view.getUint16(HEADER_COMPRESS_ALGORITHM, true) === VMDK4_COMPRESSION_DEFLATE;
  const version = view.getUint32(HEADER_VERSION, true);
  if (version > VERSION_MAX) {
    throw new OutportError("unsupported", `Unsupported VMDK version ${version}`);
  }
  const entriesPerTable = view.getUint32(HEADER_NUM_GTES_PER_GT, true);
  if (entriesPerTable > GTES_PER_GT_MAX) throw invalid("L2 table size too big");
  const granularity = u64(HEADER_GRANULARITY);
  const tableSectors = BigInt(entriesPerTable) * granularity;
  if (BigInt.asUintN(32, tableSectors) === 0n) throw invalid("L1 entry size is invalid");
  const grainSector = u64(HEADER_GRAIN_OFFSET);
  if (BigInt(tables.fileBytes / SECTOR_BYTES) < grainSector) {
    const bytes = BigInt.asIntN(64, grainSector * 512n);
    throw invalid(`File truncated, expecting at least ${bytes} bytes`);
  }
  // QSD differs: it inflates grains of any size.
  const grainSectorsMax = isCompressed ? PACKED_GRAIN_SECTORS_MAX : GRAIN_SECTORS_MAX;
  if (granularity > grainSectorsMax) throw invalid("Invalid granularity, image may be corrupt");
  const capacity = u64(HEADER_CAPACITY);
  const directoryEntries = (capacity + tableSectors - 1n) / tableSectors;
  if (directoryEntries > DIRECTORY_ENTRIES_MAX) throw invalid("L1 size too big");
  const bytes = Number(capacity) * SECTOR_BYTES;
  if (bytes > LENGTH_MAX) {
    throw new OutportError("limit", "Could not refresh total sector count: File too large");
  }
  const flags = view.getUint32(HEADER_FLAGS, true);
  return {
    bytes,
    grainBytes: Number(granularity) * SECTOR_BYTES,
    entriesPerTable,
    directoryOffset: directoryAt(context, tables, u64(HEADER_GD_OFFSET), directoryEntries),
    hasZeroGrains: (flags & VMDK4_FLAG_ZERO_GRAIN) !== 0,
    isCompressed,
    hasMarkers: (flags & VMDK4_FLAG_MARKER) !== 0,
  };
}

/** Throws OutportError. */
function directoryAt(
  context: OpenContext,
  tables: ImageTables,
  sector: bigint,
  entries: bigint,
): number {
  const offset = Number(sector) * SECTOR_BYTES;
  const isInside = offset + Number(entries) * ENTRY_BYTES <= tables.fileBytes;
  if (sector > 0n && isInside) return offset;
  // QSD differs: it takes what is behind the end of the file for zeroes.
  const { exactFilename = "" } = context.children.file!.describe();
  const what = `Could not read l1 table from extent '${exactFilename}'`;
  throw new OutportError("corrupt", `${what}: ${strerror(EINVAL)}`);
}

interface ContentIds {
  readonly cid: number;
  readonly parentCid: number;
}

/** Throws OutportError. */
async function readContentIds(context: OpenContext, tables: ImageTables): Promise<ContentIds> {
  const what = "Could not read from file";
  const text = descriptorText(await tables.header(DESCRIPTOR_OFFSET, DESCRIPTOR_BYTES, what));
  const [cid, parentCid] = ["CID", "parentCID"].map((name) => {
    // The first one there is, as QSD takes it, and whatever stands between.
    const at = text.indexOf(name);
    const digits = /^\s*(?:0x)?([0-9a-f]{1,8})/i.exec(text.slice(at + name.length + 1));
    if (at < 0 || digits === null) throw couldNotOpen(context, EINVAL);
    return Number.parseInt(digits[1]!, 16);
  });
  assert(cid !== undefined && parentCid !== undefined, "both were asked for");
  return { cid, parentCid };
}

/** ImageInfoSpecificVmdk */
function specifics(
  context: OpenContext,
  { bytes, grainBytes, isCompressed }: VmdkHeader,
  { cid, parentCid }: ContentIds,
): Record<string, unknown> {
  const filename = context.children.file!.describe().exactFilename ?? "";
  const extent = { format: "", filename, "cluster-size": grainBytes, "virtual-size": bytes };
  return {
    "create-type": isCompressed ? "streamOptimized" : "monolithicSparse",
    cid,
    "parent-cid": parentCid,
    extents: [isCompressed ? { ...extent, compressed: true } : extent],
  };
}

/** Up to the first NUL. */
function descriptorText(view: DataView): string {
  const text = new TextDecoder("latin1").decode(view);
  const end = text.indexOf("\0");
  return end < 0 ? text : text.slice(0, end);
}

function textAt(view: DataView, at: number, bytes: number): string {
  return String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at, bytes));
}

function invalid(message: string): OutportError {
  return new OutportError("invalid", message);
}

function unsupportedType(type: string): OutportError {
  return new OutportError("unsupported", `Unsupported image type '${type}'`);
}
