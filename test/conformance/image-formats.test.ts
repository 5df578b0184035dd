/**
 * Images of the formats that are only read, as qemu-img makes them: served over NBD, compared with
 * what they were made of, extent by extent where the format tells.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { nbdsh, run } from "../support/clients.ts";
import {
  KiB,
  MiB,
  pattern,
  sparseImage,
  type TemporaryDirectory,
  temporaryDirectory,
  writeAt,
} from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(60_000);

const DISK_BYTES = 37 * MiB + 66 * 512;

interface Variant {
  readonly name: string;
  readonly driver: string;
  /** Of qemu-img convert. */
  readonly options?: string;
  /** The image has room for more than the disk. */
  readonly isLonger?: boolean;
  /** Extents of data, where QEMU's own driver calls everything data. */
  readonly dataExtents?: number;
}

const variants: readonly Variant[] = [
  { name: "vdi", driver: "vdi" },
  { name: "static vdi", driver: "vdi", options: "static=on" },
  { name: "dynamic vpc", driver: "vpc", options: "force_size=on" },
  { name: "vpc by geometry", driver: "vpc", isLonger: true },
  { name: "fixed vpc", driver: "vpc", options: "subformat=fixed", isLonger: true },
  { name: "vhdx", driver: "vhdx", options: "block_size=8M", dataExtents: 3 },
  { name: "vhdx of small blocks", driver: "vhdx", options: "block_size=1M", dataExtents: 4 },
  { name: "fixed vhdx", driver: "vhdx", options: "subformat=fixed", dataExtents: 3 },
  { name: "sparse vmdk", driver: "vmdk", options: "subformat=monolithicSparse" },
  { name: "vmdk with zeroed grains", driver: "vmdk", options: "zeroed_grain=on" },
  { name: "compressed vmdk", driver: "vmdk", options: "subformat=streamOptimized" },
];

let directory: TemporaryDirectory;
let disk: string;

beforeAll(async () => {
  directory = await temporaryDirectory();
  disk = directory.file("disk.raw");
  await sparseImage(disk, DISK_BYTES);
  await writeAt(disk, 0, pattern(64 * KiB, 1));
  await writeAt(disk, 5 * MiB - 512, pattern(MiB, 2));
  await writeAt(disk, 17 * MiB + 1536, pattern(300 * KiB, 3));
  await writeAt(disk, DISK_BYTES - 512, pattern(512, 4));
});

afterAll(async () => {
  await directory[Symbol.asyncDispose]();
});

async function imageOf({ driver, options }: Variant): Promise<string> {
  const path = directory.file(`image-${Math.random().toString(36).slice(2)}.${driver}`);
  const more = options === undefined ? [] : ["-o", options];
  await run("qemu-img", ["convert", "-f", "raw", "-O", driver, ...more, disk, path]);
  return path;
}

async function serveImage(path: string, driver: string, ofFile: string) {
  const socket = directory.file(`${path.split("/").at(-1)}.sock`);
  const running = await startDaemon(directory.path, [
    "--blockdev",
    `driver=file,node-name=disk-file,filename=${path},read-only=on${ofFile}`,
    "--blockdev",
    `driver=${driver},node-name=disk,file=disk-file,read-only=on`,
    "--nbd-server",
    `addr.type=unix,addr.path=${socket}`,
    "--export",
    "type=nbd,id=e0,node-name=disk,name=disk",
  ]);
  return { running, socket, uri: unixUri(socket, "disk") };
}

interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly zero: boolean;
  readonly data: boolean;
}

/** Extents in their order, neighbours of one kind as one. */
function merged(map: readonly MapEntry[]): MapEntry[] {
  const result: MapEntry[] = [];
  for (const { start, length, zero, data } of map) {
    const last = result.at(-1);
    if (last !== undefined && last.zero === zero && last.data === data) {
      result[result.length - 1] = { ...last, length: last.length + length };
    } else {
      result.push({ start, length, zero, data });
    }
  }
  return result;
}

async function mapOf(args: readonly string[]): Promise<MapEntry[]> {
  return merged(JSON.parse(await run("qemu-img", ["map", "--output=json", ...args])));
}

describe("an image made by qemu-img", () => {
  for (const variant of variants) {
    const { name, driver, isLonger = false, dataExtents } = variant;

    test(`as ${name} is served as it is`, async () => {
      const path = await imageOf(variant);
      const served = await serveImage(path, driver, "");
      await using _ = served.running;
      const opts = `driver=${driver},file.filename=${path}`;
      await run("qemu-img", [
        "compare",
        "--image-opts",
        opts,
        `driver=nbd,path=${served.socket},export=disk`,
      ]);
      const [ours, theirs] = await Promise.all([
        mapOf(["-f", "raw", served.uri]),
        mapOf(["--image-opts", opts]),
      ]);
      const bytes = ours.reduce((sum, { length }) => sum + length, 0);
      expect([bytes >= DISK_BYTES, bytes === DISK_BYTES]).toEqual([true, !isLonger]);
      if (dataExtents === undefined) expect(ours).toEqual(theirs);
      else expect(ours.filter(({ data }) => data).length).toBe(dataExtents);
    });

    test(`as ${name} is served with direct I/O, and read in any pieces`, async () => {
      const path = await imageOf(variant);
      const served = await serveImage(path, driver, ",cache.direct=on");
      await using _ = served.running;
      const same = await nbdsh(`
h.connect_uri("${served.uri}")
disk = open("${disk}", "rb").read()
disk += bytes(h.get_size() - len(disk))
good = True
for start in (0, 512, 65024, 5 << 20, (5 << 20) - 1024, 17 << 20, len(disk) - 4096):
    for length in (512, 4096, 5120, 1 << 20, 3 << 20):
        length = min(length, len(disk) - start)
        good = good and h.pread(length, start) == disk[start:start + length]
show(good)`);
      expect(same).toBe(true);
    });
  }
});
