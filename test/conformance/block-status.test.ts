/** Block status and structured reads, as libnbd sees them. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { nbdsh } from "../support/clients.ts";
import { MiB, pattern, writeAt } from "../support/images.ts";
import { type Scene, type ServeOptions, serve } from "./scene.ts";

setDefaultTimeout(180_000);

/** 8 MiB with data in [1 MiB, 2 MiB) and [4 MiB, 4 MiB + 64 KiB). */
async function serveHoles(options: ServeOptions = {}): Promise<Scene> {
  const disk = await serve({ bytes: 8 * MiB, sparse: true, ...options });
  await writeAt(disk.image, MiB, pattern(MiB));
  await writeAt(disk.image, 4 * MiB, pattern(65_536));
  return disk;
}

const COLLECT = `
chunks = []
def on_chunk(buffer, offset, status, error):
    chunks.append([offset, len(buffer), status == nbd.READ_HOLE])
extents = {}
def on_extents(context, offset, entries, error):
    extents.setdefault(context, []).extend(entries)
`;

describe("block status", () => {
  test("of base:allocation shows holes and data in one reply", async () => {
    await using disk = await serveHoles();
    const entries = await nbdsh(`${COLLECT}
h.add_meta_context("base:allocation")
h.connect_uri("${disk.uri}")
h.block_status(8 << 20, 0, on_extents)
show(extents)`);
    expect(entries).toEqual({
      "base:allocation": [
        ...[MiB, 3],
        ...[MiB, 0],
        ...[2 * MiB, 3],
        ...[65_536, 0],
        ...[4 * MiB - 65_536, 3],
      ],
    });
  });

  test("with REQ_ONE shows one extent, cut to the request", async () => {
    await using disk = await serveHoles();
    const entries = await nbdsh(`${COLLECT}
h.add_meta_context("base:allocation")
h.connect_uri("${disk.uri}")
h.block_status(3 << 20, 1536 << 10, on_extents, nbd.CMD_FLAG_REQ_ONE)
h.block_status(64 << 10, 0, on_extents, nbd.CMD_FLAG_REQ_ONE)
show(extents)`);
    expect(entries).toEqual({ "base:allocation": [MiB / 2, 0, 65_536, 3] });
  });

  test("of two contexts comes as one chunk for each", async () => {
    await using disk = await serveHoles({ export: "writable=on,allocation-depth=on" });
    const entries = await nbdsh(`${COLLECT}
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:allocation-depth")
h.connect_uri("${disk.uri}")
h.block_status(64 << 10, 1 << 20, on_extents)
show(extents)`);
    expect(entries).toEqual({
      "base:allocation": [65_536, 0],
      "qemu:allocation-depth": [65_536, 1],
    });
  });

  test("changes with what is written and trimmed", async () => {
    await using disk = await serveHoles({ file: "discard=unmap", raw: "discard=unmap" });
    const entries = await nbdsh(`${COLLECT}
h.add_meta_context("base:allocation")
h.connect_uri("${disk.uri}")
h.trim(1 << 20, 1 << 20)
h.pwrite(b"x" * 65536, 6 << 20)
h.flush()
h.block_status(8 << 20, 0, on_extents)
show(extents)`);
    expect(entries).toEqual({
      "base:allocation": [
        ...[4 * MiB, 3],
        ...[65_536, 0],
        ...[2 * MiB - 65_536, 3],
        ...[65_536, 0],
        ...[2 * MiB - 65_536, 3],
      ],
    });
  });

  test("is refused when no context was chosen", async () => {
    await using disk = await serveHoles();
    const said = await nbdsh(`${COLLECT}
h.set_strict_mode(0)
h.connect_uri("${disk.uri}")
first = outcome(h.block_status, 65536, 0, on_extents)
show([first, h.pread(1, 0).hex()])`);
    expect(said).toEqual(["EINVAL", "00"]);
  });

  test("of length 0 is refused", async () => {
    await using disk = await serveHoles();
    const said = await nbdsh(`${COLLECT}
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri("${disk.uri}")
show([outcome(h.block_status, 0, 0, on_extents), h.pread(1, 0).hex()])`);
    expect(said).toEqual(["EINVAL", "00"]);
  });
});

describe("meta contexts", () => {
  test("are listed, and chosen by exact name only", async () => {
    await using disk = await serve({ export: "writable=on,allocation-depth=on" });
    const shown = await nbdsh(`
names = []
h.set_opt_mode(True)
h.set_export_name("disk")
h.connect_unix("${disk.socket}")
h.opt_list_meta_context(names.append)
h.add_meta_context("base:")
h.add_meta_context("nosuch:thing")
h.add_meta_context("base:allocation")
h.opt_go()
can = [h.can_meta_context(each) for each in ("base:allocation", "base:", "nosuch:thing")]
show([names, can])`);
    expect(shown).toEqual([
      ["base:allocation", "qemu:allocation-depth"],
      [true, false, false],
    ]);
  });
});

describe("structured read", () => {
  test("sends holes as holes", async () => {
    await using disk = await serveHoles();
    const shown = await nbdsh(`${COLLECT}
h.connect_uri("${disk.uri}")
data = h.pread_structured(4 << 20, 0, on_chunk)
image = open("${disk.image}", "rb").read(4 << 20)
total = sum(length for _, length, hole in chunks if not hole)
show([h.get_structured_replies_negotiated(), data == image, total])`);
    expect(shown).toEqual([true, true, MiB]);
  });

  test("with DF comes as one chunk of data", async () => {
    await using disk = await serveHoles();
    const shown = await nbdsh(`${COLLECT}
h.connect_uri("${disk.uri}")
data = h.pread_structured(3 << 20, 512 << 10, on_chunk, nbd.CMD_FLAG_DF)
image = open("${disk.image}", "rb").read()[512 << 10:3584 << 10]
show([data == image, chunks])`);
    expect(shown).toEqual([true, [[MiB / 2, 3 * MiB, false]]]);
  });

  test("without structured replies gives the same bytes", async () => {
    await using disk = await serveHoles();
    const shown = await nbdsh(`
h.set_request_structured_replies(False)
h.connect_uri("${disk.uri}")
image = open("${disk.image}", "rb").read()
show([h.get_structured_replies_negotiated(), h.pread(8 << 20, 0) == image])`);
    expect(shown).toEqual([false, true]);
  });

  test("across every border of data and hole gives the image's bytes", async () => {
    await using disk = await serveHoles();
    const same = await nbdsh(`
h.connect_uri("${disk.uri}")
image = open("${disk.image}", "rb").read()
edges = [0, 1 << 20, 2 << 20, 4 << 20, (4 << 20) + 65536, 8 << 20]
good = True
for edge in edges:
    for before in (0, 1, 511, 4096, 70000):
        start = max(0, edge - before)
        for length in (1, 512, 4097, 140000, 2000000):
            length = min(length, len(image) - start)
            good = good and (length == 0 or h.pread(length, start) == image[start:start + length])
show(good)`);
    expect(same).toBe(true);
  });
});
