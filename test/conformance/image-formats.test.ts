/**
 * Images of the formats that are only read, as qemu-img makes them: served over NBD, compared with
 * what they were made of, extent by extent where the format tells.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { run } from "../support/clients.ts";
import {
  assertSameBytes,
  KiB,
  MiB,
  pattern,
  sparseImage,
  type TemporaryDirectory,
  temporaryDirectory,
  writeAt,
} from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type RunningDaemon, startDaemon } from "../support/process.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

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
let daemon: RunningDaemon;
let disk: string;
let count = 0;

beforeAll(async () => {
  directory = await temporaryDirectory();
  disk = directory.file("disk.raw");
  await sparseImage(disk, DISK_BYTES);
  await writeAt(disk, 0, pattern(64 * KiB, 1));
  await writeAt(disk, 5 * MiB - 512, pattern(MiB, 2));
  await writeAt(disk, 17 * MiB + 1536, pattern(300 * KiB, 3));
  await writeAt(disk, DISK_BYTES - 512, pattern(512, 4));
  const server = ["--nbd-server", `addr.type=unix,addr.path=${directory.file("nbd.sock")}`];
  daemon = await startDaemon(directory.path, server);
});

afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  await directory[Symbol.asyncDispose]();
});

async function imageOf({ driver, options }: Variant): Promise<string> {
  const path = directory.file(`image-${count++}.${driver}`);
  const more = options === undefined ? [] : ["-o", options];
  await run("qemu-img", ["convert", "-f", "raw", "-O", driver, ...more, disk, path]);
  return path;
}

/** Returns the name of the export. */
async function serveImage(path: string, driver: string, direct: boolean): Promise<string> {
  const name = `disk${count++}`;
  const cache = { direct };
  const file = { driver: "file", filename: path, "read-only": true, cache };
  const { qmp } = daemon;
  await qmp.execute("blockdev-add", { driver, "node-name": name, "read-only": true, file });
  await qmp.execute("block-export-add", { type: "nbd", id: name, "node-name": name });
  return name;
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
      const served = await serveImage(path, driver, false);
      const opts = `driver=${driver},file.filename=${path}`;
      const socket = directory.file("nbd.sock");
      const [ours, theirs] = await Promise.all([
        mapOf(["-f", "raw", unixUri(socket, served)]),
        mapOf(["--image-opts", opts]),
        run("qemu-img", [
          ...["compare", "--image-opts", opts],
          `driver=nbd,path=${socket},export=${served}`,
        ]),
      ]);
      const bytes = ours.reduce((sum, { length }) => sum + length, 0);
      expect([bytes >= DISK_BYTES, bytes === DISK_BYTES]).toEqual([true, !isLonger]);
      if (dataExtents === undefined) expect(ours).toEqual(theirs);
      else expect(ours.filter(({ data }) => data).length).toBe(dataExtents);
      const direct = await serveImage(path, driver, true);
      const client = await NbdClient.open({ path: socket }, { exportName: direct });
      await readInPieces(client);
      client.close();
    });
  }
});

/** All of the disk's borders of data and holes, past the page cache. */
async function readInPieces(client: NbdClient): Promise<void> {
  const content = Buffer.alloc(client.facts.bytes);
  (await readFile(disk)).copy(content);
  const starts = [0, 512, 65_024, 5 * MiB, 5 * MiB - 1024, 17 * MiB, content.length - 4096];
  for (const start of starts) {
    for (const most of [512, 4 * KiB, 5 * KiB, MiB, 3 * MiB]) {
      const length = Math.min(most, content.length - start);
      const data = await client.read(start, length);
      assertSameBytes(data, content.subarray(start, start + length), `${length} at ${start}`);
    }
  }
}
