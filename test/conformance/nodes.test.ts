/** The block drivers and their options, seen through an export. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { appendFile } from "node:fs/promises";
import { nbdsh, run } from "../support/clients.ts";
import {
  allocatedBytes,
  assertFileIs,
  loopDevice,
  MiB,
  pattern,
  patternImage,
  readAt,
  smallFileSystem,
  sparseImage,
  temporaryDirectory,
} from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { serve, unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

async function qemuIo(uri: string, ...commands: string[]): Promise<string> {
  return await run("qemu-io", ["-f", "raw", ...commands.flatMap((each) => ["-c", each]), uri]);
}

/** Serves one node called "disk", given in the words of --blockdev. */
async function serveNode(directory: string, node: string, writable = true) {
  const socket = `${directory}/nbd.sock`;
  const running = await startDaemon(directory, [
    ...["--blockdev", `node-name=disk,${node}`],
    ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
    ...["--export", `type=nbd,id=e0,node-name=disk,writable=${writable ? "on" : "off"}`],
  ]);
  return { ...running, uri: unixUri(socket, "disk") };
}

describe("file", () => {
  for (const options of [
    "aio=threads",
    "aio=native,cache.direct=on",
    "aio=io_uring",
    "aio=io_uring,cache.direct=on",
    "cache.no-flush=on",
  ]) {
    test(`reads and writes with ${options}`, async () => {
      await using disk = await serve({ file: options });
      const commands = ["write -P 1 4k 64k", "write -z 1M 64k", "read -P 1 4k 64k", "flush"];
      await qemuIo(disk.uri, ...commands);
      const wanted = Buffer.from(disk.content);
      wanted.fill(1, 4096, 69_632);
      wanted.fill(0, MiB, MiB + 65_536);
      await assertFileIs(disk.image, wanted);
    });
  }

  test("aio=native without cache.direct is refused", async () => {
    await expect(serve({ file: "aio=native" })).rejects.toThrow(
      "aio=native was specified, but it requires cache.direct=on",
    );
  });

  test("read-only=on cannot be exported writable, and is not changed", async () => {
    await expect(serve({ file: "read-only=on", raw: "read-only=on" })).rejects.toThrow(
      "Cannot export read-only node as writable",
    );
  });

  test("auto-read-only=on opens what cannot be written, and writes what can", async () => {
    await using directory = await temporaryDirectory();
    await using _ = await smallFileSystem(directory.path, 2 * MiB);
    await patternImage(directory.file("disk.raw"), MiB);
    const words = `driver=file,filename=${directory.file("disk.raw")},auto-read-only=on`;
    {
      await using disk = await serveNode(directory.path, words);
      await qemuIo(disk.uri, "write -P 8 0 4k");
    }
    expect((await readAt(directory.file("disk.raw"), 0, 1))[0]).toBe(8);
    await using elsewhere = await temporaryDirectory();
    await run("mount", ["-o", "remount,ro", directory.path]);
    await using disk = await serveNode(elsewhere.path, words, false);
    await run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 8 0 4k", disk.uri]);
  });

  test("detect-zeroes=unmap frees what is overwritten with zeroes", async () => {
    const unmap = "discard=unmap,detect-zeroes=unmap";
    await using disk = await serve({ file: "discard=unmap", raw: unmap });
    await qemuIo(disk.uri, "write -P 0 1M 2M", "flush");
    const wanted = Buffer.from(disk.content);
    wanted.fill(0, MiB, 3 * MiB);
    await assertFileIs(disk.image, wanted);
    expect(await allocatedBytes(disk.image)).toBeLessThanOrEqual(2.1 * MiB);
  });

  test("a directory is refused", async () => {
    await using directory = await temporaryDirectory();
    await expect(
      startDaemon(directory.path, ["--blockdev", "driver=file,node-name=f,filename=/tmp"]),
    ).rejects.toThrow("/tmp");
  });
});

describe("host_device", () => {
  test("serves a block device", async () => {
    await using directory = await temporaryDirectory();
    const content = await patternImage(directory.file("disk.raw"), 2 * MiB);
    await using loop = await loopDevice(directory.file("disk.raw"));
    {
      const words = `driver=host_device,filename=${loop.device},cache.direct=on`;
      await using disk = await serveNode(directory.path, words);
      expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(2 * MiB);
      await qemuIo(
        disk.uri,
        "write -P 4 512 70000",
        "write -z 1M 64k",
        "discard 1536k 64k",
        "flush",
      );
    }
    content.fill(4, 512, 70_512);
    content.fill(0, MiB, MiB + 65_536);
    const stored = await readAt(directory.file("disk.raw"), 0, 1536 * 1024);
    expect(Buffer.compare(stored, content.subarray(0, 1536 * 1024))).toBe(0);
  });

  test("refuses a regular file", async () => {
    await using directory = await temporaryDirectory();
    await sparseImage(directory.file("disk.raw"), MiB);
    const words = `driver=host_device,filename=${directory.file("disk.raw")}`;
    await expect(serveNode(directory.path, words)).rejects.toThrow("host_device");
  });
});

describe("raw", () => {
  test("with offset and size shows a window, and writes only in it", async () => {
    await using disk = await serve({ raw: `offset=${MiB},size=${2 * MiB}` });
    expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(2 * MiB);
    await qemuIo(disk.uri, "write -P 6 0 512", "write -z 4k 4k", `write -P 7 ${2 * MiB - 512} 512`);
    const wanted = Buffer.from(disk.content);
    wanted.fill(6, MiB, MiB + 512);
    wanted.fill(0, MiB + 4096, MiB + 8192);
    wanted.fill(7, 3 * MiB - 512, 3 * MiB);
    await assertFileIs(disk.image, wanted);
  });

  test("refuses a window beyond the end of its file", async () => {
    await expect(serve({ raw: `offset=${MiB},size=${4 * MiB}` })).rejects.toThrow("--blockdev");
    await expect(serve({ raw: "offset=5M" })).rejects.toThrow("--blockdev");
  });

  test("does not grow with its file", async () => {
    await using disk = await serve();
    await appendFile(disk.image, pattern(MiB, 9));
    expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(disk.bytes);
    await qemuIo(disk.uri, `read ${disk.bytes - 4096} 4096`);
  });
});

describe("null", () => {
  for (const driver of ["null-co", "null-aio"]) {
    test(`${driver} takes everything and reads as zeroes`, async () => {
      await using directory = await temporaryDirectory();
      const words = `driver=${driver},size=8388608,read-zeroes=on`;
      await using disk = await serveNode(directory.path, words);
      await qemuIo(disk.uri, "write -P 1 0 8M", "read -P 0 0 8M", "write -z 0 4k", "flush");
      expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(8 * MiB);
    });
  }

  test("latency-ns makes a request last at least that long", async () => {
    await using directory = await temporaryDirectory();
    const words = "driver=null-co,size=1048576,read-zeroes=on,latency-ns=250000000";
    await using disk = await serveNode(directory.path, words);
    const seconds = await nbdsh<number>(`
import time
h.connect_uri("${disk.uri}")
start = time.monotonic()
buffers = [nbd.Buffer.from_bytearray(bytearray(512)) for _ in range(8)]
cookies = [h.aio_pwrite(buffer, 0) for buffer in buffers]
while h.aio_in_flight() > 0:
    h.poll(-1)
show(time.monotonic() - start)`);
    expect(seconds).toBeGreaterThanOrEqual(0.25);
    expect(seconds).toBeLessThan(1.9); // Eight at once, not one after the other.
  });
});
