/**
 * Requests that a server must refuse: the NBD specification's error for each, and the connection
 * goes on. outport follows the specification where qemu-storage-daemon says EINVAL for all.
 */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { nbdsh } from "../support/clients.ts";
import { assertFileIs, MiB } from "../support/images.ts";
import { serve } from "./scene.ts";

setDefaultTimeout(180_000);

describe("a read-only export", () => {
  test("answers EPERM to all that would change it, and goes on", async () => {
    await using disk = await serve({ export: "writable=off" });
    const said = await nbdsh(`
h.set_strict_mode(0)
h.connect_uri("${disk.uri}")
show([
  outcome(h.pwrite, b"x" * 512, 0),
  outcome(h.zero, 512, 0),
  outcome(h.trim, 512, 0),
  outcome(h.flush),
  h.pread(4096, 4096).hex() == "${disk.content.subarray(4096, 8192).toString("hex")}",
])`);
    expect(said).toEqual(["EPERM", "EPERM", "EPERM", "ok", true]);
    await assertFileIs(disk.image, disk.content);
  });
});

describe("a request past the end", () => {
  test("gets ENOSPC when it writes, EINVAL when it does not", async () => {
    await using disk = await serve();
    const end = disk.bytes;
    const said = await nbdsh(`
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri("${disk.uri}")
ignore = lambda *_: 0
show([
  outcome(h.pwrite, b"x" * 1024, ${end - 512}),
  outcome(h.pwrite, b"x", ${end}),
  outcome(h.zero, 1024, ${end - 512}),
  outcome(h.pread, 1024, ${end - 512}),
  outcome(h.pread, 1, ${end}),
  outcome(h.trim, 1024, ${end - 512}),
  outcome(h.cache, 1024, ${end - 512}),
  outcome(h.block_status, 1024, ${end - 512}, ignore),
  h.pread(512, ${end - 512}).hex() == "${disk.content.subarray(end - 512).toString("hex")}",
])`);
    const invalid = Array(5).fill("EINVAL");
    expect(said).toEqual(["ENOSPC", "ENOSPC", "ENOSPC", ...invalid, true]);
    await assertFileIs(disk.image, disk.content);
  });

  test("with an offset near 2^64 does not wrap around", async () => {
    await using disk = await serve();
    const said = await nbdsh(`
h.set_strict_mode(0)
h.connect_uri("${disk.uri}")
top = 2 ** 64 - 512
show([
  outcome(h.pread, 1024, top),
  outcome(h.pwrite, b"x" * 1024, top),
  outcome(h.pread, 512, 2 ** 63),
  outcome(h.zero, 2 ** 32 - 512, top),
  outcome(h.pread, 512, 2 ** 53),
  h.pread(1, 0).hex(),
])`);
    const first = disk.content.subarray(0, 1).toString("hex");
    expect(said).toEqual(["EINVAL", "ENOSPC", "EINVAL", "ENOSPC", "EINVAL", first]);
    await assertFileIs(disk.image, disk.content);
  });
});

describe("an oversized request", () => {
  test("to read more than 32 MiB gets EINVAL, and the connection goes on", async () => {
    await using disk = await serve({ bytes: 64 * MiB, sparse: true });
    const said = await nbdsh(`
h.set_strict_mode(0)
h.connect_uri("${disk.uri}")
show([outcome(h.pread, (32 << 20) + 1, 0), outcome(h.pread, 32 << 20, 0)])`);
    expect(said).toEqual(["EINVAL", "ok"]);
  });

  test("to zero or trim gigabytes is done", async () => {
    const gibibytes = 3 * 1024 * MiB;
    await using disk = await serve({ bytes: gibibytes, sparse: true });
    const said = await nbdsh(`
h.connect_uri("${disk.uri}")
h.pwrite(b"end!", ${gibibytes - 4})
show([outcome(h.zero, ${gibibytes}, 0), h.pread(4, ${gibibytes - 4}).hex()])`);
    expect(said).toEqual(["ok", "00000000"]);
  });
});

describe("malformed flags", () => {
  test("get EINVAL: a flag that its command does not have", async () => {
    await using disk = await serve();
    const said = await nbdsh(`
h.set_strict_mode(0)
h.connect_uri("${disk.uri}")
show([
  outcome(h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE),
  outcome(h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF),
  outcome(h.trim, 512, 0, nbd.CMD_FLAG_REQ_ONE),
  outcome(h.pwrite, b"x" * 512, 0, 1 << 15),
  outcome(h.pread, 512, 0),
])`);
    expect(said).toEqual(["EINVAL", "EINVAL", "EINVAL", "EINVAL", "ok"]);
    await assertFileIs(disk.image, disk.content);
  });
});

describe("requests that are not aligned", () => {
  test("work with cache.direct=on: neighbours of what is written stay", async () => {
    await using disk = await serve({ file: "cache.direct=on" });
    const wanted = Buffer.from(disk.content);
    const same = await nbdsh(`
h.set_strict_mode(0)
h.connect_uri("${disk.uri}")
h.pwrite(b"a" * 1, 1)
h.pwrite(b"b" * 700, 1000)
h.pwrite(b"c" * 8193, 8191)
h.pwrite(b"d" * 3, ${disk.bytes - 3})
h.zero(5000, 70001)
h.flush()
image = open("${disk.image}", "rb").read()
good = True
ranges = ((0, 1), (1, 511), (511, 2), (4095, 8194), (70000, 5002), (${disk.bytes - 1}, 1))
for offset, length in ranges:
    good = good and h.pread(length, offset) == image[offset:offset + length]
show(good)`);
    expect(same).toBe(true);
    wanted.fill("a", 1, 2);
    wanted.fill("b", 1000, 1700);
    wanted.fill("c", 8191, 16_384);
    wanted.fill("d", disk.bytes - 3, disk.bytes);
    wanted.fill(0, 70_001, 75_001);
    await assertFileIs(disk.image, wanted);
  });

  test("cache.direct=on says 512 as the smallest block to clients that ask", async () => {
    await using disk = await serve({
      file: "cache.direct=on",
      after: ["--export", "type=nbd,id=e1,node-name=disk-file,name=direct"],
    });
    const sizes = await nbdsh(`
h.connect_uri("${disk.uriOf("direct")}")
show([h.get_block_size(nbd.SIZE_MINIMUM), h.get_block_size(nbd.SIZE_PREFERRED)])`);
    expect(sizes).toEqual([512, 4096]);
  });
});
