/** Copying whole disks in and out with the common tools; every byte is compared. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { run } from "../support/clients.ts";
import {
  allocatedBytes,
  assertFileIs,
  assertSameBytes,
  MiB,
  pattern,
  patternImage,
  sparseImage,
  writeAt,
} from "../support/images.ts";
import { serve } from "./scene.ts";

setDefaultTimeout(180_000);

describe("nbdcopy", () => {
  test("reads a whole disk", async () => {
    await using disk = await serve({ bytes: 16 * MiB });
    const copy = `${disk.directory}/copy.raw`;
    await run("nbdcopy", [disk.uri, copy]);
    await assertFileIs(copy, disk.content);
  });

  test("writes a whole disk over several connections", async () => {
    await using disk = await serve({ bytes: 16 * MiB, sparse: true });
    const source = `${disk.directory}/source.raw`;
    const content = await patternImage(source, disk.bytes, 7);
    await run("nbdcopy", ["--connections=4", "--requests=16", "--flush", source, disk.uri]);
    await assertFileIs(disk.image, content);
  });

  test("keeps holes in both directions", async () => {
    await using disk = await serve({
      bytes: 16 * MiB,
      sparse: true,
      file: "discard=unmap",
      raw: "discard=unmap",
    });
    const source = `${disk.directory}/source.raw`;
    const copy = `${disk.directory}/copy.raw`;
    await sparseImage(source, disk.bytes);
    await writeAt(source, 5 * MiB, pattern(MiB));
    await run("nbdcopy", [source, disk.uri]);
    await run("nbdcopy", [disk.uri, copy]);
    await assertFileIs(disk.image, await readFile(source));
    await assertFileIs(copy, await readFile(source));
    expect(await allocatedBytes(disk.image)).toBeLessThanOrEqual(2 * MiB);
    expect(await allocatedBytes(copy)).toBeLessThanOrEqual(2 * MiB);
  });

  test("copies from one export to another of the same daemon", async () => {
    await using disk = await serve({ bytes: 8 * MiB });
    const target = `${disk.directory}/target.raw`;
    await sparseImage(target, disk.bytes);
    await disk.qmp.execute("blockdev-add", {
      driver: "file",
      "node-name": "target",
      filename: target,
    });
    await disk.qmp.execute("block-export-add", {
      type: "nbd",
      id: "target",
      "node-name": "target",
      writable: true,
    });
    await run("nbdcopy", [disk.uri, disk.uriOf("target")]);
    await assertFileIs(target, disk.content);
  });
});

describe("qemu-img", () => {
  test("convert reads a disk, compare finds the copy identical", async () => {
    await using disk = await serve({ bytes: 16 * MiB });
    const copy = `${disk.directory}/copy.raw`;
    await run("qemu-img", ["convert", "-f", "raw", "-O", "raw", disk.uri, copy]);
    await assertFileIs(copy, disk.content);
    const said = await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", disk.uri, copy]);
    expect(said).toContain("Images are identical.");
  });

  test("convert -n writes a disk out of order", async () => {
    await using disk = await serve({ bytes: 16 * MiB, sparse: true });
    const source = `${disk.directory}/source.raw`;
    const content = await patternImage(source, disk.bytes, 3);
    const args = ["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", source, disk.uri];
    await run("qemu-img", args);
    await assertFileIs(disk.image, content);
  });

  test("convert goes through qcow2 and back", async () => {
    await using disk = await serve({ bytes: 8 * MiB });
    const qcow2 = `${disk.directory}/copy.qcow2`;
    await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", "-c", disk.uri, qcow2]);
    await writeAt(disk.image, MiB, Buffer.alloc(4 * MiB, 0xff));
    await run("qemu-img", ["convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, disk.uri]);
    assertSameBytes(await readFile(disk.image), disk.content);
  });

  test("info tells the size and the format", async () => {
    await using disk = await serve({ bytes: 3 * MiB });
    const info = JSON.parse(await run("qemu-img", ["info", "--output=json", disk.uri]));
    expect(info["virtual-size"]).toBe(3 * MiB);
    expect(info.format).toBe("raw");
  });

  test("map tells data from holes", async () => {
    await using disk = await serve({ bytes: 8 * MiB, sparse: true });
    await writeAt(disk.image, 2 * MiB, pattern(MiB));
    const map = JSON.parse(await run("qemu-img", ["map", "--output=json", "-f", "raw", disk.uri]));
    const extents = map.map((each: { start: number; length: number; data: boolean }) => [
      each.start,
      each.length,
      each.data,
    ]);
    expect(extents).toEqual([
      [0, 2 * MiB, false],
      [2 * MiB, MiB, true],
      [3 * MiB, 5 * MiB, false],
    ]);
  });

  test("bench completes reads and flushed writes at depth 64", async () => {
    await using disk = await serve({ bytes: 16 * MiB });
    const common = ["bench", "-f", "raw", "-c", "5000", "-d", "64", "-s", "4k"];
    expect(await run("qemu-img", [...common, disk.uri])).toContain("Run completed");
    const writes = [...common, "-w", "--pattern=165", "--flush-interval=500", disk.uri];
    expect(await run("qemu-img", writes)).toContain("Run completed");
    const written = (await readFile(disk.image)).subarray(0, disk.bytes);
    assertSameBytes(written, Buffer.alloc(disk.bytes, 165));
  });
});
