/**
 * vpc: the VHD format of Virtual PC and Hyper-V, fixed and dynamic, for reading. Schema on main,
 * nodes on an iothread.
 * Spec: Microsoft "Virtual Hard Disk Image Format Specification"; QEMU block/vpc.c
 */
import { EFBIG } from "../../runtime/errno.ts";
import { OutportError } from "../../util/error.ts";
import { SECTOR_BYTES } from "../description.ts";
import type { BlockDriver, OpenContext } from "../driver.ts";
import { type ImageTables, PAGE_FOUND, PAGE_MISSING } from "../image-tables.ts";
import { startsWith } from "../probe.ts";
import {
  couldNotOpen,
  DAMAGED,
  type ImageFacts,
  openReadOnly,
  PLACED,
  type Place,
  type PlaceKind,
  ReadOnlyImage,
  readOnlyPermissions,
  UNLOADED,
  ZEROES,
} from "../read-only-image.ts";

const VHD_FIXED = 2;
const VHD_DYNAMIC = 3;
const VHD_DIFFERENCING = 4;
const VHD_MAX_SECTORS = 0xff00_0000;
const VHD_CHS_MAX_SECTORS = 65535 * 16 * 255;
const UNALLOCATED = 0xffff_ffff;
const BAT_ENTRY_BYTES = 4;
/** Programs that mean the geometry that they write, whatever the size says. */
const GEOMETRY_WRITERS = ["vpc ", "qemu"];

const FOOTER_BYTES = 512;
const FOOTER_DATA_OFFSET = 16;
const FOOTER_CREATOR_APP = 28;
const FOOTER_CURRENT_SIZE = 48;
const FOOTER_CYLS = 56;
const FOOTER_HEADS = 58;
const FOOTER_SECS_PER_CYL = 59;
const FOOTER_TYPE = 60;
const FOOTER_CHECKSUM = 64;

const DYNAMIC_HEADER_BYTES = 1024;
const DYNAMIC_TABLE_OFFSET = 16;
const DYNAMIC_MAX_TABLE_ENTRIES = 28;
const DYNAMIC_BLOCK_SIZE = 32;

class FixedNode extends ReadOnlyImage {
  protected locate(offset: number, bytes: number, out: Place): PlaceKind {
    out.offset = offset;
    out.bytes = bytes;
    return PLACED;
  }
}

interface Table {
  readonly offset: number;
  readonly entryCount: number;
  readonly blockBytes: number;
  /** Before each block: which of its sectors are used. All are, to whoever only reads. */
  readonly bitmapBytes: number;
}

class DynamicNode extends ReadOnlyImage {
  #table: Table;

  constructor(facts: ImageFacts, table: Table) {
    super(facts);
    this.#table = table;
  }

  protected locate(offset: number, bytes: number, out: Place): PlaceKind {
    const { offset: tableOffset, blockBytes, bitmapBytes } = this.#table;
    const inBlock = offset % blockBytes;
    out.bytes = Math.min(bytes, blockBytes - inBlock);
    const at = tableOffset + ((offset - inBlock) / blockBytes) * BAT_ENTRY_BYTES;
    const found = this.tables.seek(at, BAT_ENTRY_BYTES);
    if (found !== PAGE_FOUND) return found === PAGE_MISSING ? UNLOADED : DAMAGED;
    const sector = this.tables.u32(at, false);
    if (sector === UNALLOCATED) return ZEROES;
    out.offset = sector * SECTOR_BYTES + bitmapBytes + inBlock;
    return PLACED;
  }
}

export const vpc: BlockDriver = {
  name: "vpc",
  members: {},
  children: [{ role: "file", optional: false }],
  reopenable: [],
  childPermissions: readOnlyPermissions,
  onlyReads: true,
  // A fixed disk begins with the guest's data.
  probe: (start) => startsWith(start, "conectix"),
  async open(context: OpenContext) {
    const tables = openReadOnly(context);
    const footer = await readFooter(tables);
    const sectors = sectorsOf(footer);
    if (sectors > VHD_MAX_SECTORS) throw couldNotOpen(context, EFBIG);
    const bytes = sectors * SECTOR_BYTES;
    const facts = { context, tables, driver: "vpc", bytes };
    const type = footer.getUint32(FOOTER_TYPE);
    if (type === VHD_FIXED) return new FixedNode({ ...facts, isPreallocated: true });
    checkType(type);
    const table = await readTable(tables, footer, bytes);
    return new DynamicNode({ ...facts, clusterBytes: table.blockBytes }, table);
  },
};

/** Throws OutportError. */
async function readFooter(tables: ImageTables): Promise<DataView> {
  const what = "Unable to read VHD header";
  let footer = await tables.header(0, FOOTER_BYTES, what);
  if (textAt(footer, 0, 8) !== "conectix") {
    // A fixed disk has it at the end only.
    const at = Math.max(0, tables.fileBytes - FOOTER_BYTES);
    footer = await tables.header(at, FOOTER_BYTES, what);
    const isFixed = footer.getUint32(FOOTER_TYPE) === VHD_FIXED;
    if (textAt(footer, 0, 8) !== "conectix" || !isFixed) throw invalid("invalid VPC image");
  }
  const checksum = footer.getUint32(FOOTER_CHECKSUM);
  footer.setUint32(FOOTER_CHECKSUM, 0);
  let sum = 0;
  for (let i = 0; i < FOOTER_BYTES; i++) sum += footer.getUint8(i);
  if (~sum >>> 0 !== checksum) throw invalid("Incorrect header checksum");
  return footer;
}

/** The size counts, unless its writer means the geometry, and that can tell. */
function sectorsOf(footer: DataView): number {
  const heads = footer.getUint8(FOOTER_HEADS) * footer.getUint8(FOOTER_SECS_PER_CYL);
  const sectors = footer.getUint16(FOOTER_CYLS) * heads;
  const isGeometryMeant = GEOMETRY_WRITERS.includes(textAt(footer, FOOTER_CREATOR_APP, 4));
  if (isGeometryMeant && sectors !== VHD_CHS_MAX_SECTORS) return sectors;
  return Math.floor(Number(footer.getBigUint64(FOOTER_CURRENT_SIZE)) / SECTOR_BYTES);
}

/** Throws OutportError. */
function checkType(type: number): void {
  if (type === VHD_DYNAMIC) return;
  // QSD differs: it shows zeroes for what is in the parent, and takes unknown types for dynamic.
  const what = type === VHD_DIFFERENCING ? "differencing disk" : `disk type ${type}`;
  throw new OutportError("unsupported", `unsupported VPC image (${what})`);
}

/** Throws OutportError. */
async function readTable(tables: ImageTables, footer: DataView, bytes: number): Promise<Table> {
  const headerOffset = offsetAt(footer, FOOTER_DATA_OFFSET);
  if (headerOffset === null) throw invalid("Error reading dynamic VHD header");
  const what = "Error reading dynamic VHD header";
  const header = await tables.header(headerOffset, DYNAMIC_HEADER_BYTES, what);
  if (textAt(header, 0, 8) !== "cxsparse") throw invalid("Invalid header magic");
  const blockBytes = header.getUint32(DYNAMIC_BLOCK_SIZE);
  if (blockBytes < SECTOR_BYTES || (blockBytes & (blockBytes - 1)) !== 0) {
    throw invalid(`Invalid block size ${blockBytes}`);
  }
  const entryCount = header.getUint32(DYNAMIC_MAX_TABLE_ENTRIES);
  if (entryCount > (VHD_MAX_SECTORS * SECTOR_BYTES) / blockBytes) {
    throw invalid(`Max Table Entries too large (${entryCount | 0})`);
  }
  if (entryCount * blockBytes < bytes) throw invalid("Page table too small");
  const offset = offsetAt(header, DYNAMIC_TABLE_OFFSET);
  if (offset === null) throw invalid("Error reading pagetable");
  const bitmapBytes = roundToSector(blockBytes / (8 * SECTOR_BYTES));
  const table = { offset, entryCount, blockBytes, bitmapBytes };
  const end = await endOfData(tables, table);
  if (end > tables.fileBytes) {
    throw invalid(
      "block-vpc: free_data_block_offset points after the end of file. " +
        "The image has been truncated.",
    );
  }
  return table;
}

/** Where the last block ends, or the table if that is later. */
async function endOfData(tables: ImageTables, table: Table): Promise<number> {
  const { offset, entryCount, blockBytes, bitmapBytes } = table;
  let end = roundToSector(offset + entryCount * BAT_ENTRY_BYTES);
  if (end > tables.fileBytes) return end;
  const bytes = entryCount * BAT_ENTRY_BYTES;
  await tables.scan(offset, bytes, "Error reading pagetable", (part) => {
    for (let at = 0; at < part.byteLength; at += BAT_ENTRY_BYTES) {
      const sector = part.getUint32(at);
      if (sector === UNALLOCATED) continue;
      end = Math.max(end, sector * SECTOR_BYTES + bitmapBytes + blockBytes);
    }
  });
  return end;
}

function roundToSector(bytes: number): number {
  return Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;
}

/** Null: no file is so long. */
function offsetAt(view: DataView, at: number): number | null {
  const offset = Number(view.getBigUint64(at));
  return Number.isSafeInteger(offset) ? offset : null;
}

function textAt(view: DataView, at: number, bytes: number): string {
  return String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at, bytes));
}

function invalid(message: string): OutportError {
  return new OutportError("invalid", message);
}
