/** qcow2 images of every kind, for tests: made by qemu-img, and looked at by it. */

import { writeFile } from "node:fs/promises";
import { run } from "../support/clients.ts";
import { KiB, MiB, pattern } from "../support/images.ts";
import type { NbdClient } from "../support/nbd-client.ts";
import type { Random } from "../support/random.ts";

/** What lies behind an image: its format and, of raw and qcow2, how it is made. */
export interface Backing {
  readonly format: "raw" | "qcow2" | "vdi" | "vpc" | "vhdx" | "vmdk";
  /** Of qemu-img convert. */
  readonly options?: string;
  readonly isCompressed?: boolean;
  /** Ends before the image does. */
  readonly isShort?: boolean;
  /** The image names it as json: instead of by its path. */
  readonly isJson?: boolean;
}

export interface Variant {
  readonly name: string;
  /** Of qemu-img create; DATA is the path of a data file. */
  readonly create: string;
  readonly bytes: number;
  readonly backing?: Backing;
  /** What the image is full of, compressed or not, before the test. */
  readonly content?: "plain" | "compressed";
  readonly hasSnapshot?: boolean;
  /** Of blockdev-add. */
  readonly options?: Readonly<Record<string, unknown>>;
}

const TINY_CACHE = { "l2-cache-size": 2048, "l2-cache-entry-size": 512 };
const RAW = { format: "raw" } as const;
const QCOW2 = { format: "qcow2" } as const;

const clusterSizes: readonly Variant[] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
  .concat([128 * KiB, 256 * KiB, 512 * KiB, MiB, 2 * MiB])
  .map((bytes) => ({
    name: `clusters of ${bytes} bytes`,
    create: `cluster_size=${bytes}`,
    bytes: Math.min(Math.max(2 * MiB, 4 * bytes), 5 * MiB),
    ...(bytes === 512 ? { options: TINY_CACHE } : {}),
  }));

const refcountWidths: readonly Variant[] = [1, 2, 4, 8, 16, 32, 64].map((bits) => ({
  name: `refcounts of ${bits} bits`,
  create: `cluster_size=512,refcount_bits=${bits}`,
  bytes: MiB,
  options: { "pass-discard-other": true, "refcount-cache-size": 2048 },
}));

const preallocations: readonly Variant[] = ["metadata", "falloc", "full"].flatMap((mode) => [
  { name: `preallocated (${mode})`, create: `preallocation=${mode}`, bytes: 2 * MiB },
  {
    name: `subclusters, preallocated (${mode})`,
    create: `extended_l2=on,preallocation=${mode}`,
    bytes: 2 * MiB,
  },
]);

const backings: readonly Variant[] = [
  { name: "a raw backing file", backing: RAW },
  { name: "a qcow2 backing file", backing: QCOW2 },
  { name: "a backing file that is named as json:", backing: { ...RAW, isJson: true } },
  { name: "a compressed backing file", backing: { ...QCOW2, isCompressed: true } },
  { name: "a vdi backing file", backing: { format: "vdi" } as const },
  { name: "a vpc backing file", backing: { format: "vpc", options: "force_size=on" } as const },
  { name: "a vhdx backing file", backing: { format: "vhdx" } as const },
  { name: "a vmdk backing file", backing: { format: "vmdk" } as const },
].map((one) => ({ create: "cluster_size=16384", bytes: 2 * MiB, ...one }));

const versions: readonly Variant[] = [
  { name: "version 2", create: "compat=0.10,cluster_size=4096", bytes: 2 * MiB },
  {
    name: "version 2 over a backing file",
    create: "compat=0.10,cluster_size=4096",
    bytes: 2 * MiB,
    backing: RAW,
  },
  {
    name: "version 2 with a snapshot",
    create: "compat=0.10",
    bytes: 2 * MiB,
    content: "compressed",
    hasSnapshot: true,
  },
  { name: "an odd length", create: "cluster_size=65536", bytes: 2 * MiB + 1536 },
  { name: "lazy refcounts", create: "cluster_size=4096,lazy_refcounts=on", bytes: 2 * MiB },
  {
    name: "a refcount table that grows",
    create: "cluster_size=512,refcount_bits=64",
    bytes: 12 * MiB,
  },
];

const subclusters: readonly Variant[] = [
  { name: "subclusters", create: "extended_l2=on,cluster_size=131072", bytes: 2 * MiB },
  {
    name: "subclusters of 512 bytes over a short backing file",
    create: "extended_l2=on,cluster_size=16384",
    bytes: 2 * MiB + 512,
    backing: { ...QCOW2, isShort: true },
  },
  {
    name: "subclusters of 64 KiB over a backing file",
    create: "extended_l2=on,cluster_size=2M",
    bytes: 5 * MiB,
    backing: QCOW2,
  },
  {
    name: "subclusters with a snapshot",
    create: "extended_l2=on,cluster_size=16384",
    bytes: 2 * MiB,
    content: "compressed",
    hasSnapshot: true,
  },
];

const contents: readonly Variant[] = [
  { name: "compressed clusters", create: "cluster_size=65536", content: "compressed" as const },
  { name: "small compressed clusters", create: "cluster_size=512", content: "compressed" as const },
  {
    name: "zstd",
    create: "cluster_size=65536,compression_type=zstd",
    content: "compressed" as const,
  },
  {
    name: "large clusters of zstd",
    create: "cluster_size=2M,compression_type=zstd",
    content: "compressed" as const,
  },
  {
    name: "an internal snapshot",
    create: "cluster_size=4096",
    content: "plain" as const,
    hasSnapshot: true,
    options: TINY_CACHE,
  },
].map((one) => ({ bytes: 2 * MiB, ...one }));

const dataFiles: readonly Variant[] = [
  { name: "a data file", create: "data_file=DATA" },
  { name: "a raw data file", create: "data_file=DATA,data_file_raw=on" },
  { name: "a data file and subclusters", create: "data_file=DATA,extended_l2=on" },
  { name: "a data file over a backing file", create: "data_file=DATA", backing: QCOW2 },
].map((one) => ({ bytes: 2 * MiB, ...one }));

export const variants: readonly Variant[] = [
  ...clusterSizes,
  ...refcountWidths,
  ...preallocations,
  ...versions,
  ...subclusters,
  ...backings,
  {
    name: "a short backing file, discards that keep their clusters",
    create: "cluster_size=65536",
    bytes: 2 * MiB,
    backing: { ...RAW, isShort: true },
    options: { "discard-no-unref": true },
  },
  ...contents,
  ...dataFiles,
];

/** Data with holes in it. */
export function content(random: Random, bytes: number): Buffer {
  const result = Buffer.alloc(bytes);
  for (let i = 0; i < 12; i++) {
    const at = random.below(bytes / 512) * 512;
    const part = Math.min(bytes - at, (1 + random.below(400)) * 512);
    result.set(pattern(part, random.u32() || 1), at);
  }
  return result;
}

export interface MadeImage {
  readonly path: string;
  /** What it holds. */
  readonly content: Buffer;
}

/** Makes the image and what it names, all in files whose names begin with `prefix`. */
export async function makeImage(
  random: Random,
  variant: Variant,
  prefix: string,
): Promise<MadeImage> {
  const { bytes } = variant;
  const path = `${prefix}.qcow2`;
  const options = variant.create.replace("DATA", `${prefix}.data`);
  const raw = `${prefix}.content`;
  let disk: Buffer = Buffer.alloc(bytes);
  if (variant.content === undefined) {
    const behind: string[] = [];
    if (variant.backing !== undefined) {
      behind.push(...(await makeBacking(random, variant.backing, disk, prefix)));
    }
    await run("qemu-img", ["create", "-qf", "qcow2", "-o", options, ...behind, path, `${bytes}`]);
  } else {
    disk = content(random, bytes);
    await writeFile(raw, disk);
    const compress = variant.content === "compressed" ? ["-c"] : [];
    const how = ["-f", "raw", "-O", "qcow2", "-o", options, ...compress];
    await run("qemu-img", ["convert", ...how, raw, path]);
  }
  if (variant.hasSnapshot === true) await run("qemu-img", ["snapshot", "-c", "before", path]);
  return { path, content: disk };
}

/** Returns what qemu-img create wants of it; `disk` is what shows through then. */
async function makeBacking(
  random: Random,
  { format, options, isCompressed, isShort, isJson }: Backing,
  disk: Buffer,
  prefix: string,
): Promise<string[]> {
  const bytes = isShort === true ? Math.floor(disk.length / 3 / 512) * 512 : disk.length;
  const data = content(random, bytes);
  disk.set(data);
  const raw = `${prefix}-base.raw`;
  await writeFile(raw, data);
  const path = format === "raw" ? raw : `${prefix}-base.${format}`;
  const how = [...(options === undefined ? [] : ["-o", options]), ...(isCompressed ? ["-c"] : [])];
  if (format !== "raw")
    await run("qemu-img", ["convert", "-f", "raw", "-O", format, ...how, raw, path]);
  const json = { driver: format, file: { driver: "file", filename: path } };
  return ["-b", isJson === true ? `json:${JSON.stringify(json)}` : path, "-F", format];
}

/** An extent: "data", "zero", or "zero above" a layer further down. */
export interface Extent {
  readonly start: number;
  readonly bytes: number;
  readonly kind: string;
}

function add(extents: Extent[], bytes: number, kind: string): void {
  const last = extents.at(-1);
  if (last !== undefined && last.kind === kind) {
    extents[extents.length - 1] = { ...last, bytes: last.bytes + bytes };
  } else {
    extents.push({ start: last === undefined ? 0 : last.start + last.bytes, bytes, kind });
  }
}

const NBD_STATE_HOLE = 1;

/**
 * What an export tells of itself: for each context its extents. Whether data reads as zeroes, as
 * the host's file system may know, is left out.
 */
export async function extentsOf(client: NbdClient): Promise<{ base: Extent[]; depth: Extent[] }> {
  const base: Extent[] = [];
  const depth: Extent[] = [];
  const { bytes } = client.facts;
  for (const [name, extents] of [
    ["base:allocation", base],
    ["qemu:allocation-depth", depth],
  ] as const) {
    for (let at = 0; at < bytes; ) {
      const found = (await client.blockStatus(at, bytes - at)).get(name) ?? [];
      if (found.length === 0) throw new Error(`no extents of ${name} at ${at}`);
      for (const { length, flags } of found) {
        const isData = name === "base:allocation" && (flags & NBD_STATE_HOLE) === 0;
        add(extents, length, isData ? "data" : `${flags}`);
        at += length;
      }
    }
  }
  return { base, depth };
}

/** The same of an image file, from outside. */
export async function mapOf(path: string): Promise<Extent[]> {
  const map = JSON.parse(await run("qemu-img", ["map", "-f", "qcow2", "--output=json", path]));
  const extents: Extent[] = [];
  for (const { length, zero, data } of map) {
    add(extents, length, data ? "data" : `${NBD_STATE_HOLE | (zero ? 2 : 0)}`);
  }
  return extents;
}
