/**
 * vhdx: the disk image format of Hyper-V, fixed and dynamic, for reading. Schema on main, nodes on
 * an iothread.
 * Spec: Microsoft "VHDX Format Specification" v1.00; QEMU block/vhdx.c
 */
import { EINVAL, ENOTSUP } from "../../runtime/errno.ts";
import { crc32c } from "../../util/crc32c.ts";
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

const KiB = 1024;
const MiB = 1024 * KiB;

const FILE_SIGNATURE = "vhdxfile";
const HEADER_OFFSETS = [64 * KiB, 128 * KiB];
const HEADER_BYTES = 4 * KiB;
/** Of it, what means something. */
const HEADER_USED_BYTES = 80;
const CHECKSUM = 4;
const HEADER_SEQUENCE_NUMBER = 8;
const HEADER_LOG_GUID = 48;
const HEADER_LOG_VERSION = 64;
const HEADER_VERSION = 66;
const HEADER_LOG_LENGTH = 68;
const HEADER_LOG_OFFSET = 72;

const LOG_SECTOR_BYTES = 4 * KiB;
const LOG_ENTRY_GUID = 32;
/** A log that is longer is not looked through: it counts as one that has something in it. */
const LOG_BYTES_MAX = 16 * MiB;

const REGION_TABLE_OFFSET = 192 * KiB;
const REGION_TABLE_BYTES = 64 * KiB;
const REGION_ENTRIES_MAX = 2047;
const REGION_ENTRY_BYTES = 32;
const TABLE_HEADER_BYTES = 16;
const VHDX_REGION_ENTRY_REQUIRED = 1;
const BAT_GUID = "2dc27766-f623-4200-9d64-115e9bfd4a08";
const METADATA_GUID = "8b7ca206-4790-4b9a-b8fe-575f050f886e";

const METADATA_TABLE_BYTES = 64 * KiB;
const METADATA_ENTRIES_MAX = 2047;
const METADATA_ENTRY_BYTES = 32;
const VHDX_META_FLAGS_IS_REQUIRED = 4;
const FILE_PARAMETERS_GUID = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
const VIRTUAL_DISK_SIZE_GUID = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
const PAGE_83_GUID = "beca12ab-b2e6-4523-93ef-c309e000c746";
const LOGICAL_SECTOR_SIZE_GUID = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
const PHYSICAL_SECTOR_SIZE_GUID = "cda348c7-445d-4471-9cc9-e9885251c556";
const PARENT_LOCATOR_GUID = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";
const NEEDED_GUIDS = [
  FILE_PARAMETERS_GUID,
  VIRTUAL_DISK_SIZE_GUID,
  PAGE_83_GUID,
  LOGICAL_SECTOR_SIZE_GUID,
  PHYSICAL_SECTOR_SIZE_GUID,
];
const VHDX_PARAMS_HAS_PARENT = 2;

const BLOCK_BYTES_MIN = MiB;
const BLOCK_BYTES_MAX = 256 * MiB;
const DISK_BYTES_MAX = 64 * 1024 * 1024 * MiB;
const VHDX_MAX_SECTORS_PER_BLOCK = 2 ** 23;

const BAT_ENTRY_BYTES = 8;
const BAT_STATE_MASK = 7;
const BAT_OFFSET_MASK_LO = 0xfff0_0000;
/** More is no exact number, and longer than any file. */
const BAT_OFFSET_HI_MAX = 0x1f_ffff;
const PAYLOAD_BLOCK_UNMAPPED = 3;
const PAYLOAD_BLOCK_UNMAPPED_V095 = 5;
const PAYLOAD_BLOCK_FULLY_PRESENT = 6;

interface Bat {
  readonly offset: number;
  readonly blockBytes: number;
  /** After so many entries of blocks comes one of a bitmap. */
  readonly chunkRatio: number;
}

class VhdxNode extends ReadOnlyImage {
  #bat: Bat;

  constructor(facts: ImageFacts, bat: Bat) {
    super(facts);
    this.#bat = bat;
  }

  protected locate(offset: number, bytes: number, out: Place): PlaceKind {
    const { offset: batOffset, blockBytes, chunkRatio } = this.#bat;
    const inBlock = offset % blockBytes;
    out.bytes = Math.min(bytes, blockBytes - inBlock);
    const block = (offset - inBlock) / blockBytes;
    const at = batOffset + (block + Math.floor(block / chunkRatio)) * BAT_ENTRY_BYTES;
    const found = this.tables.seek(at, BAT_ENTRY_BYTES);
    if (found !== PAGE_FOUND) return found === PAGE_MISSING ? UNLOADED : DAMAGED;
    const lo = this.tables.u32(at, true);
    const hi = this.tables.u32(at + 4, true);
    const state = lo & BAT_STATE_MASK;
    // QSD differs: its block status calls all of a disk data.
    if (state <= PAYLOAD_BLOCK_UNMAPPED || state === PAYLOAD_BLOCK_UNMAPPED_V095) return ZEROES;
    if (state !== PAYLOAD_BLOCK_FULLY_PRESENT || hi > BAT_OFFSET_HI_MAX) return DAMAGED;
    out.offset = hi * 2 ** 32 + ((lo & BAT_OFFSET_MASK_LO) >>> 0) + inBlock;
    return PLACED;
  }
}

export const vhdx: BlockDriver = {
  name: "vhdx",
  members: {},
  children: [{ role: "file", optional: false }],
  reopenable: [],
  childPermissions: readOnlyPermissions,
  onlyReads: true,
  probe: (start) => startsWith(start, FILE_SIGNATURE),
  async open(context: OpenContext) {
    const image = new Opening(context, openReadOnly(context));
    await image.readHeaders();
    await image.readRegions();
    const { facts, bat } = await image.readMetadata();
    await image.checkBat(bat, facts.bytes);
    return new VhdxNode(facts, bat);
  },
};

interface Region {
  readonly start: number;
  readonly end: number;
}

/** An image while it is opened. Its methods throw OutportError, and are called in their order. */
class Opening {
  #context: OpenContext;
  #tables: ImageTables;
  /** What is no guest's data; the log first of all, at the end. */
  #regions: Region[] = [];
  #used: readonly Region[] = [];
  #bat: Region = { start: 0, end: 0 };
  #metadata: Region = { start: 0, end: 0 };

  constructor(context: OpenContext, tables: ImageTables) {
    this.#context = context;
    this.#tables = tables;
  }

  async readHeaders(): Promise<void> {
    const identifier = await this.#read(0, 8);
    if (textAt(identifier, 0, 8) !== FILE_SIGNATURE) throw this.#failed(EINVAL);
    const headers: (DataView | null)[] = [];
    for (const offset of HEADER_OFFSETS) {
      const header = await this.#read(offset, HEADER_BYTES);
      const isValid =
        textAt(header, 0, 4) === "head" &&
        hasChecksum(header) &&
        header.getUint16(HEADER_VERSION, true) === 1;
      headers.push(isValid ? header : null);
    }
    const header = newest(headers[0]!, headers[1]!);
    if (header === null) throw new OutportError("invalid", "No valid VHDX header found");
    const logStart = Number(header.getBigUint64(HEADER_LOG_OFFSET, true));
    const logBytes = header.getUint32(HEADER_LOG_LENGTH, true);
    this.#addRegion(logStart, logBytes);
    await this.#checkLog(header, logStart, logBytes);
  }

  async #checkLog(header: DataView, start: number, bytes: number): Promise<void> {
    if (start < MiB || start % MiB !== 0) throw this.#failed(EINVAL);
    if (header.getUint16(HEADER_LOG_VERSION, true) !== 0) throw this.#failed(EINVAL);
    const guid = guidAt(header, HEADER_LOG_GUID);
    if (/^[-0]*$/.test(guid) || bytes === 0) return;
    if (bytes % MiB !== 0) throw this.#failed(EINVAL);
    let isNeeded = bytes > LOG_BYTES_MAX;
    // QSD differs: it also looks whether all of an entry is there.
    await this.#tables.scan(start, isNeeded ? 0 : bytes, "Could not read VHDX log", (part) => {
      for (let at = 0; at < part.byteLength; at += LOG_SECTOR_BYTES) {
        if (textAt(part, at, 4) !== "loge") continue;
        if (guidAt(part, at + LOG_ENTRY_GUID) === guid) isNeeded = true;
      }
    });
    if (!isNeeded) return;
    const filename = this.#context.children.file!.describe().exactFilename ?? "";
    const why = "opened read-only, but contains a log that needs to be replayed";
    throw new OutportError("invalid", `VHDX image file '${filename}' ${why}`);
  }

  async readRegions(): Promise<void> {
    const table = await this.#read(REGION_TABLE_OFFSET, REGION_TABLE_BYTES);
    if (!hasChecksum(table) || textAt(table, 0, 4) !== "regi") throw this.#failed(EINVAL);
    const count = table.getUint32(8, true);
    if (count > REGION_ENTRIES_MAX) throw this.#failed(EINVAL);
    const known = new Map<string, Region>();
    for (let i = 0; i < count; i++) {
      const at = TABLE_HEADER_BYTES + i * REGION_ENTRY_BYTES;
      const guid = guidAt(table, at);
      const start = Number(table.getBigUint64(at + 16, true));
      const region = this.#addRegion(start, table.getUint32(at + 24, true));
      if (guid === BAT_GUID || guid === METADATA_GUID) {
        if (known.has(guid)) throw this.#failed(EINVAL);
        known.set(guid, region);
      } else if ((table.getUint32(at + 28, true) & VHDX_REGION_ENTRY_REQUIRED) !== 0) {
        throw this.#failed(ENOTSUP);
      }
    }
    const bat = known.get(BAT_GUID);
    const metadata = known.get(METADATA_GUID);
    if (bat === undefined || metadata === undefined) throw this.#failed(EINVAL);
    // QSD differs: it takes a table behind the end of the file for one of zeroes.
    if (!(Math.max(bat.end, metadata.end) <= this.#tables.fileBytes)) throw this.#failed(EINVAL);
    this.#bat = bat;
    this.#metadata = metadata;
    // Of those that nobody knows there may be thousands, and a million blocks.
    const log = this.#regions.at(-1)!;
    this.#used = this.#regions.filter((one) => one === bat || one === metadata || one === log);
  }

  async readMetadata(): Promise<{ facts: ImageFacts; bat: Bat }> {
    const items = this.#parseItems(await this.#read(this.#metadata.start, METADATA_TABLE_BYTES));
    const item = (guid: string, bytes: number) =>
      this.#read(this.#metadata.start + items.get(guid)!, bytes);
    const parameters = await item(FILE_PARAMETERS_GUID, 8);
    const blockBytes = parameters.getUint32(0, true);
    if ((parameters.getUint32(4, true) & VHDX_PARAMS_HAS_PARENT) !== 0) throw this.#failed(EINVAL);
    const size = (await item(VIRTUAL_DISK_SIZE_GUID, 8)).getBigUint64(0, true);
    const sectorBytes = (await item(LOGICAL_SECTOR_SIZE_GUID, 4)).getUint32(0, true);
    if (blockBytes < BLOCK_BYTES_MIN || blockBytes > BLOCK_BYTES_MAX) throw this.#failed(EINVAL);
    if (sectorBytes !== SECTOR_BYTES) throw this.#failed(ENOTSUP);
    if ((blockBytes & (blockBytes - 1)) !== 0) throw this.#failed(EINVAL);
    if (size === 0n || size > DISK_BYTES_MAX) throw this.#failed(EINVAL);
    const bytes = Number(size) - (Number(size) % SECTOR_BYTES);
    const chunkRatio = (VHDX_MAX_SECTORS_PER_BLOCK * SECTOR_BYTES) / blockBytes;
    const bat = { offset: this.#bat.start, blockBytes, chunkRatio };
    const batBytes = batEntryCount(bat, Number(size)) * BAT_ENTRY_BYTES;
    if (batBytes > this.#bat.end - this.#bat.start) throw this.#failed(EINVAL);
    const common = { context: this.#context, tables: this.#tables, driver: "vhdx", bytes };
    const facts = { ...common, clusterBytes: blockBytes, requestAlignment: SECTOR_BYTES };
    return { facts, bat };
  }

  /** By GUID, where each item lies in its region. */
  #parseItems(table: DataView): Map<string, number> {
    const count = table.getUint16(10, true);
    if (textAt(table, 0, 8) !== "metadata") throw this.#failed(EINVAL);
    if (count > METADATA_ENTRIES_MAX) throw this.#failed(EINVAL);
    const items = new Map<string, number>();
    for (let i = 0; i < count; i++) {
      const at = METADATA_ENTRY_BYTES * (i + 1);
      const guid = guidAt(table, at);
      if (NEEDED_GUIDS.includes(guid) || guid === PARENT_LOCATOR_GUID) {
        if (items.has(guid)) throw this.#failed(EINVAL);
        items.set(guid, table.getUint32(at + 16, true));
      } else if ((table.getUint32(at + 24, true) & VHDX_META_FLAGS_IS_REQUIRED) !== 0) {
        throw this.#failed(ENOTSUP);
      }
    }
    // Differencing disks have a parent locator, too.
    if (items.has(PARENT_LOCATOR_GUID) || items.size < NEEDED_GUIDS.length) {
      throw this.#failed(ENOTSUP);
    }
    return items;
  }

  /** What the table places overlaps nothing, and is in the file. */
  async checkBat(bat: Bat, bytes: number): Promise<void> {
    const tableBytes = batEntryCount(bat, bytes) * BAT_ENTRY_BYTES;
    const what = "Could not read VHDX block allocation table";
    await this.#tables.scan(bat.offset, tableBytes, what, (part, start) => {
      for (let at = 0; at < part.byteLength; at += BAT_ENTRY_BYTES) {
        const index = (start + at) / BAT_ENTRY_BYTES;
        const isBitmap = index % (bat.chunkRatio + 1) === bat.chunkRatio;
        const state = part.getUint32(at, true) & BAT_STATE_MASK;
        if (!isBitmap && state === PAYLOAD_BLOCK_FULLY_PRESENT) {
          this.#checkBlock(index, part.getBigUint64(at, true) & ~0xf_ffffn, bat.blockBytes);
        }
      }
    });
  }

  #checkBlock(index: number, offset: bigint, blockBytes: number): void {
    const { fileBytes } = this.#tables;
    const say = (text: string) => {
      this.#context.log(`VHDX BAT entry ${index} ${text}`);
      return this.#failed(EINVAL);
    };
    if (offset + BigInt(blockBytes) >= 2n ** 63n) throw say("offset overflow.");
    const start = Number(offset);
    this.#checkOverlap({ start, end: start + blockBytes }, this.#used);
    const truncated = `points after end of file (${fileBytes}). Image has probably been truncated.`;
    if (start >= fileBytes) throw say(`start offset ${start} ${truncated}`);
    const last = start + blockBytes - 1;
    if (last >= fileBytes) throw say(`end offset ${last} ${truncated}`);
  }

  #addRegion(start: number, bytes: number): Region {
    const region = { start, end: start + bytes };
    this.#checkOverlap(region, this.#regions);
    this.#regions.unshift(region);
    return region;
  }

  #checkOverlap({ start, end }: Region, others: readonly Region[]): void {
    for (const other of others) {
      if (start >= other.end || end <= other.start) continue;
      const what = `overlaps with region ${other.start}-${other.end}`;
      this.#context.log(`VHDX region ${start}-${end} ${what}`);
      throw this.#failed(EINVAL);
    }
  }

  #read(offset: number, bytes: number): Promise<DataView> {
    return this.#tables.header(offset, bytes, "Could not read VHDX header");
  }

  #failed(errno: number): OutportError {
    return couldNotOpen(this.#context, errno);
  }
}

/** Of two headers, the one that counts; null: none does. */
function newest(first: DataView | null, second: DataView | null): DataView | null {
  if (first === null || second === null) return first ?? second;
  const [one, other] = [first, second].map((header) =>
    header.getBigUint64(HEADER_SEQUENCE_NUMBER, true),
  );
  if (one !== other) return one! > other! ? first : second;
  // Disk2vhd writes the same header twice.
  const isSame = textAt(first, 0, HEADER_USED_BYTES) === textAt(second, 0, HEADER_USED_BYTES);
  return isSame ? first : null;
}

/** Checksums count themselves as zeroes. */
function hasChecksum(view: DataView): boolean {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();
  bytes.fill(0, CHECKSUM, CHECKSUM + 4);
  return crc32c(bytes) === view.getUint32(CHECKSUM, true);
}

function batEntryCount({ blockBytes, chunkRatio }: Bat, bytes: number): number {
  const blocks = Math.ceil(bytes / blockBytes);
  return blocks + Math.floor((blocks - 1) / chunkRatio);
}

/** As the specification writes it: the first three parts are numbers, little-endian. */
function guidAt(view: DataView, at: number): string {
  const hex = (value: number, digits: number) => value.toString(16).padStart(digits, "0");
  const last = Array.from({ length: 8 }, (_, i) => hex(view.getUint8(at + 8 + i), 2));
  return [
    hex(view.getUint32(at, true), 8),
    hex(view.getUint16(at + 4, true), 4),
    hex(view.getUint16(at + 6, true), 4),
    last.slice(0, 2).join(""),
    last.slice(2).join(""),
  ].join("-");
}

function textAt(view: DataView, at: number, bytes: number): string {
  return String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at, bytes));
}
