/** Disks that fail: the error reaches the client that asked, everything else goes on. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { rm, truncate } from "node:fs/promises";
import { NBD_EIO, NBD_ENOSPC } from "../../src/abi/nbd.ts";
import {
  assertSameBytes,
  loopDevice,
  MiB,
  pattern,
  patternImage,
  readAt,
  smallFileSystem,
  sparseImage,
  temporaryDirectory,
} from "../support/images.ts";
import { NbdClient, NbdError } from "../support/nbd-client.ts";
import { startDaemon } from "../support/process.ts";
import { serve } from "./scene.ts";

setDefaultTimeout(180_000);

/** The NBD error that the request fails with; 0 when it succeeds. */
async function errorOf(request: Promise<unknown>): Promise<number> {
  try {
    await request;
    return 0;
  } catch (error) {
    if (error instanceof NbdError) return error.value;
    throw error;
  }
}

describe("a full file system", () => {
  test("answers ENOSPC; what was written stays, and writes go on when there is room", async () => {
    await using directory = await temporaryDirectory();
    await using _ = await smallFileSystem(directory.path, 4 * MiB);
    const image = directory.file("disk.raw");
    await sparseImage(image, 8 * MiB);
    await patternImage(directory.file("ballast"), 2 * MiB);
    await using disk = await serve({ image });
    const client = await disk.open();
    const data = pattern(MiB);
    await client.write(0, data);
    const errors = [];
    for (let at = MiB; at < 8 * MiB; at += MiB) errors.push(await errorOf(client.write(at, data)));
    expect(errors).toContain(NBD_ENOSPC);
    expect(errors.filter((each) => each !== 0 && each !== NBD_ENOSPC)).toEqual([]);
    assertSameBytes(await client.read(0, MiB), data);
    expect(await errorOf(client.flush())).toBe(0);
    await rm(directory.file("ballast"));
    await client.write(5 * MiB, data);
    assertSameBytes(await client.read(5 * MiB, MiB), data);
    await client.disconnect();
    assertSameBytes(await readAt(image, 5 * MiB, MiB), data);
  });
});

describe("a device with unreadable parts", () => {
  test("answers EIO for them and data for the rest, in every kind of reply", async () => {
    await using directory = await temporaryDirectory();
    const backing = directory.file("backing.raw");
    const content = await patternImage(backing, 8 * MiB);
    await using loop = await loopDevice(backing);
    await truncate(backing, 4 * MiB); // Blocks of the device beyond this are gone.
    const socket = directory.file("nbd.sock");
    await using _ = await startDaemon(directory.path, [
      "--blockdev",
      `driver=host_device,node-name=disk,filename=${loop.device},cache.direct=on,read-only=on`,
      ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
      ...["--export", "type=nbd,id=e0,node-name=disk"],
    ]);
    for (const mode of ["simple", "structured", "extended"] as const) {
      const client = await NbdClient.open({ path: socket }, { exportName: "disk", mode });
      expect(await errorOf(client.read(6 * MiB, 4096))).toBe(NBD_EIO);
      expect(await errorOf(client.read(4 * MiB - 65_536, 131_072))).toBe(NBD_EIO);
      assertSameBytes(await client.read(MiB, 65_536), content.subarray(MiB, MiB + 65_536));
      client.close();
    }
  });
});

describe("an image that shrinks", () => {
  test("has zeroes or errors where its end was, and data before", async () => {
    await using disk = await serve();
    const client = await disk.open();
    await truncate(disk.image, MiB + 100);
    assertSameBytes(await client.read(0, MiB), disk.content.subarray(0, MiB));
    for (const [offset, bytes] of [
      [2 * MiB, 4096],
      [disk.bytes - 1, 1],
      [MiB + 200, 2 * MiB],
    ] as const) {
      const reply = await client.read(offset, bytes).catch((error: unknown) => error);
      if (reply instanceof Uint8Array) assertSameBytes(reply, Buffer.alloc(bytes));
      else expect((reply as NbdError).value).toBe(NBD_EIO);
    }
    client.close();
    const other = await disk.open();
    const data = pattern(4096, 5);
    await other.write(3 * MiB, data);
    await other.flush();
    assertSameBytes(await other.read(3 * MiB, 4096), data);
    other.close();
    assertSameBytes(await readAt(disk.image, 3 * MiB, 4096), data);
  });

  test("shows a short tail as its bytes and zeroes, with cache.direct=on, too", async () => {
    for (const file of ["cache.direct=off", "cache.direct=on"]) {
      await using disk = await serve({ file });
      const client = await disk.open();
      await truncate(disk.image, MiB + 100);
      const tail = await client.read(MiB, 1024);
      const wanted = Buffer.alloc(1024);
      disk.content.copy(wanted, 0, MiB, MiB + 100);
      assertSameBytes(tail, wanted, file);
      client.close();
    }
  });
});
