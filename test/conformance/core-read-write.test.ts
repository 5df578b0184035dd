/** Every kind of request that changes a disk, from real clients; the image is checked outside. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { nbdsh, run } from "../support/clients.ts";
import { allocatedBytes, assertFileIs, MiB } from "../support/images.ts";
import { type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

async function qemuIo(disk: Scene, ...commands: string[]): Promise<string> {
  const args = ["-f", "raw", ...commands.flatMap((command) => ["-c", command]), disk.uri];
  return await run("qemu-io", args);
}

/** Fills part of the expected image. */
function fill(content: Buffer, offset: number, bytes: number, value: number): void {
  content.fill(value, offset, offset + bytes);
}

const UNMAP = { file: "discard=unmap", raw: "discard=unmap" };

describe("qemu-io", () => {
  test("writes patterns at any offset and length and reads them back", async () => {
    await using disk = await serve();
    const wanted = Buffer.from(disk.content);
    const writes = [
      [0, 512, 0x11],
      [513, 1, 0x22],
      [4095, 2, 0x33],
      [65_536, 131_072, 0x44],
      [1_000_001, 999_999, 0x55],
      [disk.bytes - 3, 3, 0x66],
    ] as const;
    const commands = writes.flatMap(([offset, bytes, value]) => [
      `write -P ${value} ${offset} ${bytes}`,
      `read -P ${value} ${offset} ${bytes}`,
    ]);
    const said = await qemuIo(disk, ...commands);
    expect(said).not.toContain("Pattern verification failed");
    for (const [offset, bytes, value] of writes) fill(wanted, offset, bytes, value);
    await assertFileIs(disk.image, wanted);
  });

  test("writes with FUA", async () => {
    await using disk = await serve();
    await qemuIo(disk, "write -f -P 0x77 8k 12k");
    const wanted = Buffer.from(disk.content);
    fill(wanted, 8192, 12_288, 0x77);
    await assertFileIs(disk.image, wanted);
  });

  test("writes zeroes that stay allocated", async () => {
    await using disk = await serve(UNMAP);
    await qemuIo(disk, "write -z 1M 2M");
    const wanted = Buffer.from(disk.content);
    fill(wanted, MiB, 2 * MiB, 0);
    await assertFileIs(disk.image, wanted);
    expect(await allocatedBytes(disk.image)).toBeGreaterThanOrEqual(4 * MiB);
  });

  test("writes zeroes that give space back", async () => {
    await using disk = await serve(UNMAP);
    await qemuIo(disk, "write -z -u 1M 2M");
    const wanted = Buffer.from(disk.content);
    fill(wanted, MiB, 2 * MiB, 0);
    await assertFileIs(disk.image, wanted);
    expect(await allocatedBytes(disk.image)).toBeLessThanOrEqual(2.1 * MiB);
  });

  test("writes zeroes at odd offsets without touching neighbours", async () => {
    await using disk = await serve(UNMAP);
    await qemuIo(disk, "write -z 1000001 70001", "write -z -u 2000003 123457");
    const wanted = Buffer.from(disk.content);
    fill(wanted, 1_000_001, 70_001, 0);
    fill(wanted, 2_000_003, 123_457, 0);
    await assertFileIs(disk.image, wanted);
  });

  test("discards: the space is free and reads as zeroes", async () => {
    await using disk = await serve(UNMAP);
    await qemuIo(disk, "discard 2M 1M", "read -P 0 2M 1M", "flush");
    const wanted = Buffer.from(disk.content);
    fill(wanted, 2 * MiB, MiB, 0);
    await assertFileIs(disk.image, wanted);
    expect(await allocatedBytes(disk.image)).toBeLessThanOrEqual(3.1 * MiB);
  });

  test("discard changes nothing when the node ignores it", async () => {
    await using disk = await serve();
    await qemuIo(disk, "discard 2M 1M", "flush");
    await assertFileIs(disk.image, disk.content);
  });

  test("many requests at once end with the data of each", async () => {
    await using disk = await serve();
    const wanted = Buffer.from(disk.content);
    const commands: string[] = [];
    for (let i = 0; i < 64; i++) {
      commands.push(`aio_write -P ${i + 1} ${i * 49_152} 49152`);
      fill(wanted, i * 49_152, 49_152, i + 1);
    }
    await qemuIo(disk, ...commands, "aio_flush", "flush");
    await assertFileIs(disk.image, wanted);
  });

  test("vectored writes land in order", async () => {
    await using disk = await serve();
    await qemuIo(disk, "writev -P 0x5a 512 1024 4096 65536", "readv -P 0x5a 512 70656");
    const wanted = Buffer.from(disk.content);
    fill(wanted, 512, 70_656, 0x5a);
    await assertFileIs(disk.image, wanted);
  });
});

describe("libnbd", () => {
  test("one request moves 32 MiB in each direction", async () => {
    await using disk = await serve({ bytes: 40 * MiB, sparse: true });
    const same = await nbdsh<boolean>(`
h.connect_uri("${disk.uri}")
data = os.urandom(32 * 1024 * 1024)
h.pwrite(data, 12345)
stored = open("${disk.image}", "rb").read()[12345:12345 + len(data)]
show(h.pread(len(data), 12345) == data and stored == data)`);
    expect(same).toBe(true);
  });

  test("FUA on write, zero and trim, NO_HOLE and FAST_ZERO on zero", async () => {
    await using disk = await serve(UNMAP);
    const wanted = Buffer.from(disk.content);
    const outcomes = await nbdsh<string[]>(`
h.connect_uri("${disk.uri}")
show([
  outcome(h.pwrite, b"x" * 4096, 4096, nbd.CMD_FLAG_FUA),
  outcome(h.zero, 8192, 65536, nbd.CMD_FLAG_FUA),
  outcome(h.zero, 8192, 131072, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE),
  outcome(h.trim, 65536, 1048576, nbd.CMD_FLAG_FUA),
  outcome(h.cache, 4096, 0),
  outcome(h.flush),
])`);
    expect(outcomes).toEqual(["ok", "ok", "ok", "ok", "ok", "ok"]);
    fill(wanted, 4096, 4096, 0x78);
    fill(wanted, 65_536, 8192, 0);
    fill(wanted, 131_072, 8192, 0);
    fill(wanted, MiB, 65_536, 0);
    await assertFileIs(disk.image, wanted);
  });

  test("FAST_ZERO either zeroes at once or says ENOTSUP and changes nothing", async () => {
    await using disk = await serve(UNMAP);
    const said = await nbdsh<string>(`
h.connect_uri("${disk.uri}")
show(outcome(h.zero, 65536, 65536, nbd.CMD_FLAG_FAST_ZERO))`);
    const wanted = Buffer.from(disk.content);
    if (said === "ok") fill(wanted, 65_536, 65_536, 0);
    else expect(["ENOTSUP", "EOPNOTSUPP"]).toContain(said);
    await assertFileIs(disk.image, wanted);
  });

  test("a write on one connection is seen on another after it completed", async () => {
    await using disk = await serve();
    const seen = await nbdsh<boolean>(`
a, b = h, nbd.NBD()
a.connect_uri("${disk.uri}")
b.connect_uri("${disk.uri}")
good = True
for i in range(500):
    data = os.urandom(1536)
    a.pwrite(data, i * 1000)
    good = good and b.pread(1536, i * 1000) == data
    a, b = b, a
show(good)`);
    expect(seen).toBe(true);
  });

  test("64 asynchronous requests complete in any order with their own data", async () => {
    await using disk = await serve();
    const good = await nbdsh<boolean>(`
h.connect_uri("${disk.uri}")
image = open("${disk.image}", "rb").read()
buffers = [(i * 4099 % 3000000, nbd.Buffer((i % 40 + 1) * 1000)) for i in range(640)]
cookies = []
for offset, buffer in buffers:
    cookies.append(h.aio_pread(buffer, offset))
    while h.aio_in_flight() >= 64:
        h.poll(-1)
while h.aio_in_flight() > 0:
    h.poll(-1)
for cookie in cookies:
    assert h.aio_command_completed(cookie)
show(all(bytes(b.to_bytearray()) == image[o:o + b.size()] for o, b in buffers))`);
    expect(good).toBe(true);
  });
});

describe("writethrough", () => {
  test("an export with writethrough=on stores every kind of write", async () => {
    await using disk = await serve({ ...UNMAP, export: "writable=on,writethrough=on" });
    await qemuIo(disk, "write -P 9 0 64k", "write -z 64k 64k", "discard 128k 64k");
    const wanted = Buffer.from(disk.content);
    fill(wanted, 0, 65_536, 9);
    fill(wanted, 65_536, 131_072, 0);
    await assertFileIs(disk.image, wanted);
  });
});

describe("two writable exports of one node", () => {
  test("see each other's writes", async () => {
    await using disk = await serve({
      after: ["--export", "type=nbd,id=e1,node-name=disk,name=twin,writable=on"],
    });
    await qemuIo(disk, "write -P 0x21 1M 64k");
    const twin = disk.uriOf("twin");
    await run("qemu-io", ["-f", "raw", "-c", "read -P 0x21 1M 64k", twin]);
    expect((await readFile(disk.image)).subarray(MiB, MiB + 4)).toEqual(Buffer.alloc(4, 0x21));
  });
});
