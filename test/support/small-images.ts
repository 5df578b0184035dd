/**
 * Small images of the formats that are only read, made by hand: what is where is in plain sight, so
 * that tests can damage it.
 */
import { deflateSync } from "node:zlib";
import { crc32c } from "../../src/util/crc32c.ts";
import { KiB, MiB, pattern } from "./images.ts";

export interface SmallImage {
  readonly name: string;
  readonly driver: "vdi" | "vpc" | "vhdx" | "vmdk";
  readonly file: Uint8Array;
  /** What the guest sees. */
  readonly disk: Uint8Array;
  /** Where the metadata lies in the file: [start, bytes]. */
  readonly metadata: readonly (readonly [number, number])[];
  /** Where one entry of a table lies that places the first cluster, of 4 or 8 bytes. */
  readonly entryOffset: number;
}

const SECTOR = 512;

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function putText(bytes: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
}

/** A disk with data in the clusters of the list, zeroes elsewhere. */
function diskOf(bytes: number, clusterBytes: number, clusters: readonly number[]): Uint8Array {
  const disk = new Uint8Array(bytes);
  for (const cluster of clusters) {
    const start = cluster * clusterBytes;
    disk.set(pattern(Math.min(clusterBytes, bytes - start), cluster + 1), start);
  }
  return disk;
}

/** The cluster of the disk, padded with zeroes. */
function clusterOf(disk: Uint8Array, clusterBytes: number, cluster: number): Uint8Array {
  const padded = new Uint8Array(clusterBytes);
  padded.set(disk.subarray(cluster * clusterBytes, (cluster + 1) * clusterBytes));
  return padded;
}

/** Three blocks and a bit; the second is absent, the third says that it is zero. */
export function vdiImage(): SmallImage {
  const block = MiB;
  const disk = diskOf(3 * block + 2048, block, [0, 3]);
  const file = new Uint8Array(1024 + 2 * block);
  const fields = view(file);
  for (const [at, value] of [
    [0x40, 0xbeda107f],
    [0x44, 0x10001],
    [0x48, 0x180],
    [0x4c, 1],
    [0x154, 512],
    [0x158, 1024],
    [0x168, SECTOR],
    [0x170, disk.length],
    [0x178, block],
    [0x180, 4],
    [0x184, 2],
    // The map: the last block lies first.
    [512, 1],
    [516, 0xffffffff],
    [520, 0xfffffffe],
    [524, 0],
  ] as const) {
    fields.setUint32(at, value, true);
  }
  file.set(clusterOf(disk, block, 3), 1024);
  file.set(clusterOf(disk, block, 0), 1024 + block);
  const metadata = [[0x40, 0x188] as const, [512, 16] as const];
  return { name: "vdi", driver: "vdi", file, disk, metadata, entryOffset: 512 };
}

function vpcFooter(type: number, bytes: number, creator = "win "): Uint8Array {
  const footer = new Uint8Array(512);
  const fields = view(footer);
  putText(footer, 0, "conectix");
  fields.setUint32(8, 2);
  fields.setUint32(12, 0x10000);
  fields.setBigUint64(16, type === 3 ? 512n : 2n ** 64n - 1n);
  putText(footer, 28, creator);
  fields.setBigUint64(40, BigInt(bytes));
  fields.setBigUint64(48, BigInt(bytes));
  // A geometry that has nothing to do with it.
  fields.setUint16(56, 3);
  footer[58] = 4;
  footer[59] = 17;
  fields.setUint32(60, type);
  sealVpc(footer);
  return footer;
}

/** The checksum of a footer at the start of `bytes`. */
export function sealVpc(bytes: Uint8Array): void {
  const fields = view(bytes);
  fields.setUint32(64, 0);
  const sum = bytes.subarray(0, 512).reduce((total, byte) => total + byte, 0);
  fields.setUint32(64, ~sum >>> 0);
}

/** Blocks of 64 KiB: data, nothing, data, half a block of data. */
export function vpcImage(creator?: string): SmallImage {
  const block = 64 * KiB;
  const disk = diskOf(3 * block + 4096, block, [0, 2, 3]);
  const footer = vpcFooter(3, disk.length, creator);
  const start = 2048;
  const file = new Uint8Array(start + 3 * (SECTOR + block) + SECTOR);
  const fields = view(file);
  file.set(footer, 0);
  file.set(footer, file.length - SECTOR);
  putText(file, 512, "cxsparse");
  fields.setBigUint64(512 + 16, 1536n);
  fields.setUint32(512 + 24, 0x10000);
  fields.setUint32(512 + 28, 4);
  fields.setUint32(512 + 32, block);
  file.fill(0xff, 1536, 2048);
  for (const [place, cluster] of [3, 0, 2].entries()) {
    const at = start + place * (SECTOR + block);
    fields.setUint32(1536 + cluster * 4, at / SECTOR);
    file.set(clusterOf(disk, block, cluster), at + SECTOR);
  }
  const metadata = [[0, 68] as const, [512, 40] as const, [1536, 16] as const];
  return { name: "vpc", driver: "vpc", file, disk, metadata, entryOffset: 1536 };
}

export function vpcFixedImage(): SmallImage {
  const disk = diskOf(128 * KiB, 64 * KiB, [1]);
  const file = new Uint8Array(disk.length + SECTOR);
  file.set(disk);
  file.set(vpcFooter(2, disk.length), disk.length);
  const metadata = [[disk.length, 68] as const];
  return { name: "fixed vpc", driver: "vpc", file, disk, metadata, entryOffset: 0 };
}

const VHDX_GUIDS = {
  bat: "6677c22d23f600429d64115e9bfd4a08",
  metadata: "06a27c8b90479a4bb8fe575f050f886e",
  fileParameters: "3767a1ca36fa434db3b633f0aa44e76b",
  virtualDiskSize: "2442a52f1bcd7648b2115dbed83bf4b8",
  page83: "ab12cabee6b2234593efc309e000c746",
  logicalSectorSize: "1dbf41816fa90947ba47f233a8faab5f",
  physicalSectorSize: "c748a3cd5d4471449cc9e9885251c556",
};

const VHDX_METADATA = 3 * MiB;
const VHDX_BAT = 2 * MiB;

/** Blocks of 1 MiB: data, absent, zero, unmapped, data. */
export function vhdxImage(): SmallImage {
  const disk = diskOf(4 * MiB + 8192, MiB, [0, 4]);
  const file = new Uint8Array(6 * MiB);
  const fields = view(file);
  const putGuid = (at: number, guid: string): void => file.set(Buffer.from(guid, "hex"), at);
  putText(file, 0, "vhdxfile");
  for (const [at, sequence] of [
    [64 * KiB, 7],
    [128 * KiB, 8],
  ] as const) {
    putText(file, at, "head");
    fields.setUint32(at + 8, sequence, true);
    fields.setUint16(at + 66, 1, true);
    fields.setUint32(at + 68, MiB, true);
    fields.setUint32(at + 72, MiB, true);
  }
  putText(file, 192 * KiB, "regi");
  fields.setUint32(192 * KiB + 8, 2, true);
  for (const [i, [guid, start]] of [
    [VHDX_GUIDS.bat, VHDX_BAT] as const,
    [VHDX_GUIDS.metadata, VHDX_METADATA] as const,
  ].entries()) {
    const at = 192 * KiB + 16 + 32 * i;
    putGuid(at, guid);
    fields.setUint32(at + 16, start, true);
    fields.setUint32(at + 24, MiB, true);
    fields.setUint32(at + 28, 1, true);
  }
  sealVhdx(file);
  putText(file, VHDX_METADATA, "metadata");
  fields.setUint16(VHDX_METADATA + 10, 5, true);
  for (const [i, [guid, bytes, value]] of [
    [VHDX_GUIDS.fileParameters, 8, MiB] as const,
    [VHDX_GUIDS.virtualDiskSize, 8, disk.length] as const,
    [VHDX_GUIDS.page83, 16, 0] as const,
    [VHDX_GUIDS.logicalSectorSize, 4, 512] as const,
    [VHDX_GUIDS.physicalSectorSize, 4, 4096] as const,
  ].entries()) {
    const at = VHDX_METADATA + 32 * (i + 1);
    const place = 64 * KiB + 16 * i;
    putGuid(at, guid);
    fields.setUint32(at + 16, place, true);
    fields.setUint32(at + 20, bytes, true);
    fields.setUint32(at + 24, 4, true);
    fields.setUint32(VHDX_METADATA + place, value, true);
  }
  const states = [5 * MiB + 6, 0, 2, 3, 4 * MiB + 6];
  for (const [i, state] of states.entries()) fields.setUint32(VHDX_BAT + 8 * i, state, true);
  file.set(clusterOf(disk, MiB, 4), 4 * MiB);
  file.set(clusterOf(disk, MiB, 0), 5 * MiB);
  const metadata = [
    [64 * KiB, 80],
    [128 * KiB, 80],
    [192 * KiB, 80],
    [VHDX_METADATA, 192],
    [VHDX_METADATA + 64 * KiB, 80],
    [VHDX_BAT, 40],
  ] as const;
  return { name: "vhdx", driver: "vhdx", file, disk, metadata, entryOffset: VHDX_BAT };
}

/** The checksums of both headers and of the region table. */
export function sealVhdx(file: Uint8Array): void {
  const parts = [
    [64 * KiB, 4 * KiB],
    [128 * KiB, 4 * KiB],
    [192 * KiB, 64 * KiB],
  ] as const;
  for (const [start, bytes] of parts) {
    if (start + bytes > file.length) return;
    const part = file.subarray(start, start + bytes);
    part.fill(0, 4, 8);
    view(part).setUint32(4, crc32c(part), true);
  }
}

export interface VmdkOptions {
  readonly packed?: boolean;
  /** What is read of a header is at the end. */
  readonly footer?: boolean;
  readonly parentCid?: string;
}

const GRAIN = 4 * KiB;
const GTES = 4;
const DIRECTORY = 21 * SECTOR;

/** Tables of four grains of 4 KiB; the second table is absent, and one grain says it is zero. */
export function vmdkImage({ packed, footer, parentCid }: VmdkOptions = {}): SmallImage {
  const disk = diskOf(11 * GRAIN + 1024, GRAIN, [0, 1, 3, 8, 11]);
  const file = new Uint8Array(64 * KiB);
  const fields = view(file);
  const ids = `CID=1234abcd\nparentCID=${parentCid ?? "ffffffff"}\n`;
  putText(file, SECTOR, `# Disk DescriptorFile\nversion=1\n${ids}createType="monolithicSparse"\n`);
  fields.setUint32(DIRECTORY, 22, true);
  fields.setUint32(DIRECTORY + 8, 23, true);
  let sector = 24;
  for (const grain of [3, 0, 1, 8, 11]) {
    const table = grain < GTES ? 22 : 23;
    fields.setUint32(table * SECTOR + (grain % GTES) * 4, sector, true);
    const data = clusterOf(disk, GRAIN, grain);
    const stored = packed === true ? packedGrain(data, (grain * GRAIN) / SECTOR) : data;
    file.set(stored, sector * SECTOR);
    sector += Math.ceil(stored.length / SECTOR);
  }
  fields.setUint32(22 * SECTOR + 2 * 4, 1, true);
  putVmdkHeader(file, 0, disk.length / SECTOR, packed === true);
  let end = sector * SECTOR;
  if (footer === true) {
    fields.setUint32(end + 12, 3, true);
    file.copyWithin(end + SECTOR, 0, SECTOR);
    fields.setBigUint64(56, 2n ** 64n - 1n, true);
    end += 3 * SECTOR;
  }
  const metadata = [
    [0, 79],
    [SECTOR, 96],
    [DIRECTORY, 12],
    [22 * SECTOR, 16],
  ] as const;
  const name = `${packed === true ? "packed " : ""}vmdk${footer === true ? " with a footer" : ""}`;
  const whole = { file: file.slice(0, end), disk, metadata, entryOffset: 22 * SECTOR };
  return { name, driver: "vmdk", ...whole };
}

function putVmdkHeader(file: Uint8Array, at: number, sectors: number, packed: boolean): void {
  const fields = view(file);
  putText(file, at, "KDMV");
  fields.setUint32(at + 4, packed ? 3 : 1, true);
  // Zeroed grains; compressed ones, with markers.
  fields.setUint32(at + 8, packed ? 0x30005 : 5, true);
  fields.setUint32(at + 12, sectors, true);
  fields.setUint32(at + 20, GRAIN / SECTOR, true);
  fields.setUint32(at + 28, 1, true);
  fields.setUint32(at + 36, 20, true);
  fields.setUint32(at + 44, GTES, true);
  fields.setUint32(at + 56, DIRECTORY / SECTOR, true);
  fields.setUint32(at + 64, 24, true);
  fields.setUint16(at + 77, packed ? 1 : 0, true);
}

function packedGrain(data: Uint8Array, sector: number): Uint8Array {
  const packed = deflateSync(data);
  const stored = new Uint8Array(12 + packed.length);
  view(stored).setUint32(0, sector, true);
  view(stored).setUint32(8, packed.length, true);
  stored.set(packed, 12);
  return stored;
}

export const smallImages: readonly (() => SmallImage)[] = [
  vdiImage,
  vpcImage,
  vpcFixedImage,
  vhdxImage,
  vmdkImage,
  () => vmdkImage({ packed: true }),
  () => vmdkImage({ packed: true, footer: true }),
];
