/**
 * vdi: VirtualBox's disk image format, for reading. Schema on main, nodes on an iothread.
 * Spec: QEMU block/vdi.c
 */
import { OutportError } from "../../util/error.ts";
import { SECTOR_BYTES } from "../description.ts";
import type { BlockDriver, OpenContext } from "../driver.ts";
import { PAGE_FOUND, PAGE_MISSING } from "../image-tables.ts";
import {
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

const VDI_SIGNATURE = 0xbeda107f;
const VDI_VERSION_1_1 = 0x0001_0001;
const VDI_TYPE_STATIC = 2;
const BLOCK_BYTES = 1024 * 1024;
const VDI_BLOCKS_IN_IMAGE_MAX = 0x1fff_ff80;
const VDI_DISK_SIZE_MAX = VDI_BLOCKS_IN_IMAGE_MAX * BLOCK_BYTES;
/** Such entries and larger ones have no block: VDI_DISCARDED, VDI_UNALLOCATED. */
const VDI_DISCARDED = 0xffff_fffe;
const MAP_ENTRY_BYTES = 4;

const HEADER_BYTES = 512;
const SIGNATURE = 0x40;
const VERSION = 0x44;
const IMAGE_TYPE = 0x4c;
const OFFSET_BMAP = 0x154;
const OFFSET_DATA = 0x158;
const SECTOR_SIZE = 0x168;
const DISK_SIZE = 0x170;
const BLOCK_SIZE = 0x178;
const BLOCKS_IN_IMAGE = 0x180;
const UUID_LINK = 0x1a8;
const UUID_PARENT = 0x1b8;
const UUID_BYTES = 16;

interface VdiHeader {
  readonly bytes: number;
  readonly mapOffset: number;
  readonly dataOffset: number;
  readonly isStatic: boolean;
}

class VdiNode extends ReadOnlyImage {
  #header: VdiHeader;

  constructor(facts: ImageFacts, header: VdiHeader) {
    super(facts);
    this.#header = header;
  }

  protected locate(offset: number, bytes: number, out: Place): PlaceKind {
    const inBlock = offset % BLOCK_BYTES;
    out.bytes = Math.min(bytes, BLOCK_BYTES - inBlock);
    const { mapOffset, dataOffset } = this.#header;
    const at = mapOffset + ((offset - inBlock) / BLOCK_BYTES) * MAP_ENTRY_BYTES;
    const found = this.tables.seek(at, MAP_ENTRY_BYTES);
    if (found !== PAGE_FOUND) return found === PAGE_MISSING ? UNLOADED : DAMAGED;
    const block = this.tables.u32(at, true);
    if (block >= VDI_DISCARDED) return ZEROES;
    out.offset = dataOffset + block * BLOCK_BYTES + inBlock;
    return PLACED;
  }
}

export const vdi: BlockDriver = {
  name: "vdi",
  members: {},
  children: [{ role: "file", optional: false }],
  reopenable: [],
  childPermissions: readOnlyPermissions,
  onlyReads: true,
  probe(start) {
    if (start.length < SIGNATURE + 4) return false;
    const view = new DataView(start.buffer, start.byteOffset, start.length);
    return view.getUint32(SIGNATURE, true) === VDI_SIGNATURE;
  },
  async open(context: OpenContext) {
    const tables = openReadOnly(context);
    const header = parseHeader(await tables.header(0, HEADER_BYTES, "Could not read VDI header"));
    const { bytes, isStatic } = header;
    const facts = { context, tables, driver: "vdi", bytes, clusterBytes: BLOCK_BYTES };
    return new VdiNode({ ...facts, isPreallocated: isStatic }, header);
  },
};

/** Throws OutportError, in QSD's order. */
function parseHeader(view: DataView): VdiHeader {
  const u32 = (at: number): number => view.getUint32(at, true);
  const diskSize = view.getBigUint64(DISK_SIZE, true);
  if (diskSize > VDI_DISK_SIZE_MAX) {
    const [size, max] = [diskSize.toString(16), VDI_DISK_SIZE_MAX.toString(16)];
    throw refused(`Unsupported VDI image size (size is 0x${size}, max supported is 0x${max})`);
  }
  const bytes = Math.ceil(Number(diskSize) / SECTOR_BYTES) * SECTOR_BYTES;
  const signature = u32(SIGNATURE);
  if (signature !== VDI_SIGNATURE) {
    const text = signature.toString(16).padStart(8, "0");
    throw new OutportError("invalid", `Image not in VDI format (bad signature ${text})`);
  }
  const version = u32(VERSION);
  if (version !== VDI_VERSION_1_1) throw unsupported(`version ${dotted(version)}`);
  const mapOffset = u32(OFFSET_BMAP);
  if (mapOffset % SECTOR_BYTES !== 0) {
    throw unsupported(`unaligned block map offset 0x${mapOffset.toString(16)}`);
  }
  const dataOffset = u32(OFFSET_DATA);
  if (dataOffset % SECTOR_BYTES !== 0) {
    throw unsupported(`unaligned data offset 0x${dataOffset.toString(16)}`);
  }
  const sectorSize = u32(SECTOR_SIZE);
  if (sectorSize !== SECTOR_BYTES) {
    throw unsupported(`sector size ${sectorSize} is not ${SECTOR_BYTES}`);
  }
  const blockSize = u32(BLOCK_SIZE);
  if (blockSize !== BLOCK_BYTES) {
    throw unsupported(`block size ${blockSize} is not ${BLOCK_BYTES}`);
  }
  checkBlocks(bytes, u32(BLOCKS_IN_IMAGE), view);
  return { bytes, mapOffset, dataOffset, isStatic: u32(IMAGE_TYPE) === VDI_TYPE_STATIC };
}

function checkBlocks(bytes: number, blocks: number, view: DataView): void {
  const room = blocks * BLOCK_BYTES;
  if (bytes > room) throw unsupported(`disk size ${bytes}, image bitmap has room for ${room}`);
  if (!isNullUuid(view, UUID_LINK)) throw unsupported("non-NULL link UUID");
  if (!isNullUuid(view, UUID_PARENT)) throw unsupported("non-NULL parent UUID");
  if (blocks > VDI_BLOCKS_IN_IMAGE_MAX) {
    throw unsupported(`too many blocks ${blocks}, max is ${VDI_BLOCKS_IN_IMAGE_MAX}`);
  }
}

function dotted(version: number): string {
  return `${version >>> 16}.${version & 0xffff}`;
}

function isNullUuid(view: DataView, at: number): boolean {
  for (let i = 0; i < UUID_BYTES; i += 4) if (view.getUint32(at + i) !== 0) return false;
  return true;
}

function unsupported(what: string): OutportError {
  return refused(`unsupported VDI image (${what})`);
}

function refused(message: string): OutportError {
  return new OutportError("unsupported", message);
}
