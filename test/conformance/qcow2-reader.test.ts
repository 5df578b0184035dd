/** The independent reader of qcow2 images, which other tests believe, against qemu-img. */
import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { attempt, run } from "../support/clients.ts";
import { assertSameBytes, KiB, MiB, pattern, temporaryDirectory } from "../support/images.ts";
import {
  checkImage,
  describeCorruptions,
  memorySource,
  openImage,
  Qcow2Image,
} from "../support/qcow2-reader.ts";
import { Random, randomSeed } from "../support/random.ts";

const BYTES = 8 * MiB + 3 * 512;

interface Variant {
  readonly name: string;
  readonly options: string;
  readonly compressed?: boolean;
  readonly backing?: "raw" | "qcow2";
  readonly snapshots?: false;
}

const VARIANTS: readonly Variant[] = [
  { name: "version 2", options: "compat=0.10" },
  { name: "version 3", options: "compat=1.1" },
  { name: "512-byte clusters", options: "cluster_size=512" },
  { name: "4 KiB clusters", options: "cluster_size=4k" },
  { name: "2 MiB clusters", options: "cluster_size=2M" },
  { name: "refcounts of 1 bit", options: "refcount_bits=1,cluster_size=4k", snapshots: false },
  { name: "refcounts of 2 bits", options: "refcount_bits=2,cluster_size=4k" },
  { name: "refcounts of 8 bits", options: "refcount_bits=8" },
  { name: "refcounts of 64 bits", options: "refcount_bits=64,cluster_size=1k" },
  { name: "lazy refcounts", options: "lazy_refcounts=on" },
  { name: "extended L2 entries", options: "extended_l2=on,cluster_size=64k" },
  { name: "extended L2 entries, 16 KiB", options: "extended_l2=on,cluster_size=16k" },
  { name: "metadata preallocated", options: "preallocation=metadata" },
  { name: "fully preallocated", options: "preallocation=falloc,cluster_size=1k" },
  { name: "zlib", options: "compression_type=zlib", compressed: true },
  { name: "zlib, 4 KiB", options: "compression_type=zlib,cluster_size=4k", compressed: true },
  { name: "zstd", options: "compression_type=zstd", compressed: true },
  { name: "zstd, 2 MiB", options: "compression_type=zstd,cluster_size=2M", compressed: true },
  { name: "on raw", options: "cluster_size=4k", backing: "raw" },
  { name: "on qcow2", options: "cluster_size=64k", backing: "qcow2" },
  {
    name: "extended L2 entries on qcow2",
    options: "extended_l2=on,cluster_size=32k",
    backing: "qcow2",
  },
  { name: "data file", options: "data_file=data.raw,cluster_size=4k", snapshots: false },
  { name: "raw data file", options: "data_file=data.raw,data_file_raw=on", snapshots: false },
];

const seed = randomSeed();

/** Random writes, zeroes and discards by qemu-io. */
function commands(random: Random): string[] {
  return Array.from({ length: 60 }, () => {
    const offset = random.below(BYTES / 512 - 1) * 512;
    const bytes = Math.min(BYTES - offset, (1 + random.below(256)) * 512);
    const what = random.below(4);
    if (what === 0) return `write -z ${offset} ${bytes}`;
    if (what === 1) return `write -z -u ${offset} ${bytes}`;
    if (what === 2) return `discard ${offset} ${bytes}`;
    return `write -P ${1 + random.below(255)} ${offset} ${bytes}`;
  });
}

async function create(directory: string, path: string, variant: Variant): Promise<void> {
  const args = ["create", "-q", "-f", "qcow2", "-o"];
  const options = variant.options.replace("data_file=", `data_file=${directory}/`);
  if (variant.backing === undefined) {
    await run("qemu-img", [...args, options, path, String(BYTES)]);
    return;
  }
  const [raw, backing] = [`${directory}/raw`, `${directory}/backing`];
  writeFileSync(raw, pattern(5 * MiB, 7));
  await run("qemu-img", ["convert", "-f", "raw", "-O", variant.backing, raw, backing]);
  const on = ["-b", backing, "-F", variant.backing];
  await run("qemu-img", [...args, options, ...on, path, String(BYTES)]);
}

describe("openImage() reads and checkImage() checks as qemu-img does", () => {
  for (const variant of VARIANTS) {
    test(variant.name, async () => {
      await using directory = await temporaryDirectory();
      const path = directory.file("image.qcow2");
      const random = new Random(seed);
      await create(directory.path, path, variant);
      if (variant.compressed === true) {
        const clusters = [0, 2, 6].map((at) => ["-c", `write -c -P ${at + 1} ${at}M 2M`]);
        await run("qemu-io", ["-f", "qcow2", ...clusters.flat(), path]);
        expect([...openImage(path).extents()].map(({ kind }) => kind)).toContain("compressed");
      }
      for (let round = 0; round < 2; round++) {
        const args = commands(random).flatMap((text) => ["-c", text]);
        await run("qemu-io", ["-f", "qcow2", "-d", "unmap", ...args, path]);
        if (round === 0 && variant.snapshots !== false) {
          await run("qemu-img", ["snapshot", "-c", "one", path]);
        }
        const raw = directory.file("whole.raw");
        await run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", path, raw]);
        const image = openImage(path);
        expect(image.bytes).toBe(BYTES);
        assertSameBytes(image.read(0, BYTES), readFileSync(raw), variant.name);
        const result = checkImage(image);
        expect(describeCorruptions(result)).toBe("");
        const said = JSON.parse(
          (await attempt("qemu-img", ["check", "--output=json", path])).stdout,
        );
        expect(said.corruptions ?? 0).toBe(0);
        expect(result.leaks.length).toBe(said.leaks ?? 0);
      }
    });
  }
});

describe("snapshots and bitmaps", () => {
  test("readSnapshot() shows what the guest saw then", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("image.qcow2");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", path, "1M"]);
    await run("qemu-io", ["-f", "qcow2", "-c", "write -P 1 0 1M", path]);
    await run("qemu-img", ["snapshot", "-c", "before", path]);
    await run("qemu-io", ["-f", "qcow2", "-c", "write -P 2 64k 128k", path]);
    const image = openImage(path);
    const [snapshot] = image.snapshots;
    expect(snapshot!.name).toBe("before");
    expect(image.readSnapshot(snapshot!, 64 * KiB, 1)).toEqual(new Uint8Array([1]));
    expect(image.read(64 * KiB, 1)).toEqual(new Uint8Array([2]));
    expect(describeCorruptions(checkImage(image))).toBe("");
  });

  test("bitmapBits() are those that qemu-img keeps", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("image.qcow2");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", path, "4M"]);
    await run("qemu-img", ["bitmap", "--add", "-g", "64k", path, "b0"]);
    await run("qemu-io", ["-f", "qcow2", "-c", "write 128k 1", "-c", "write 1M 100k", path]);
    const image = openImage(path);
    const [entry] = image.bitmaps;
    expect(entry).toMatchObject({ name: "b0", inUse: false, auto: true });
    expect(entry!.granularityBytes).toBe(64 * KiB);
    expect([...image.bitmapBits(entry!)]).toEqual([4, 0, 3, 0, 0, 0, 0, 0]);
    expect(describeCorruptions(checkImage(image))).toBe("");
  });
});

describe("checkImage() finds what is wrong where qemu-img does", () => {
  test("in images with random damage to their metadata", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("image.qcow2");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "1M"]);
    await run("qemu-io", ["-f", "qcow2", "-c", "write -P 3 12k 400k", path]);
    const whole = readFileSync(path);
    const random = new Random(seed);
    let corruptCount = 0;
    for (let round = 0; round < 60; round++) {
      const damaged = Uint8Array.from(whole);
      // The refcount block, the L1 table and the first L2 table.
      const cluster = random.pick([2, 3, 5]);
      const at = cluster * 4096 + random.below(cluster === 3 ? 8 : 120);
      damaged[at]! ^= 1 << random.below(8);
      writeFileSync(path, damaged);
      const ours = checkImage(new Qcow2Image({ source: memorySource(damaged) }));
      const theirs = JSON.parse(
        (await attempt("qemu-img", ["check", "--output=json", path])).stdout || "{}",
      );
      const theyFound = (theirs.corruptions ?? 0) > 0 || (theirs["check-errors"] ?? 0) > 0;
      const weFound = describeCorruptions(ours) !== "";
      // Ours is the stricter one: reserved bits count, too.
      if (theyFound) expect(`${round} at ${at}: ${weFound}`).toBe(`${round} at ${at}: true`);
      if (!weFound) expect(ours.leaks.length).toBe(theirs.leaks ?? 0);
      if (theyFound) corruptCount++;
    }
    expect(corruptCount).toBeGreaterThan(10);
  });
});
