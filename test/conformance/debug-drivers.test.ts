/** blkdebug, blkverify and blklogwrites below an NBD export, with a real client. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { nbdsh } from "../support/clients.ts";
import { MiB, patternImage, sparseImage, temporaryDirectory } from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

/** Exports the node "top" of `nodes`, in a directory of its own with two images and a log. */
async function exportTop(...nodes: object[]) {
  await using made = new AsyncDisposableStack();
  const directory = made.use(await temporaryDirectory());
  const content = await patternImage(directory.file("disk.raw"), MiB);
  await patternImage(directory.file("copy.raw"), MiB);
  await sparseImage(directory.file("log.raw"), 0);
  const socket = directory.file("nbd.sock");
  const file = (name: string, image: string) => ({
    driver: "file",
    "node-name": name,
    filename: directory.file(image),
  });
  const all = [file("disk", "disk.raw"), file("copy", "copy.raw"), file("log", "log.raw")];
  const running = made.use(
    await startDaemon(directory.path, [
      ...[...all, ...nodes].flatMap((node) => ["--blockdev", JSON.stringify(node)]),
      "--nbd-server",
      `addr.type=unix,addr.path=${socket}`,
      "--export",
      "nbd,id=e,node-name=top,writable=on",
    ]),
  );
  const stack = made.move();
  return {
    ...running,
    content,
    file: directory.file,
    uri: unixUri(socket, "top"),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

describe("blkdebug", () => {
  test("under raw fails the second read once, then writes to a sector", async () => {
    await using disk = await exportTop(
      {
        driver: "blkdebug",
        "node-name": "debug",
        image: "disk",
        "inject-error": [
          { event: "read_aio", state: 2, errno: 28, once: true, iotype: "read" },
          { event: "write_aio", sector: 8, iotype: "write" },
        ],
        "set-state": [{ event: "read_aio", state: 1, new_state: 2 }],
      },
      { driver: "raw", "node-name": "top", file: "debug" },
    );
    const said = await nbdsh(`
h.connect_uri("${disk.uri}")
show([
  outcome(h.pread, 512, 0),
  outcome(h.pread, 512, 0),
  outcome(h.pread, 512, 0),
  outcome(h.pwrite, b"x" * 512, 0),
  outcome(h.pwrite, b"x" * 512, 4096),
  outcome(h.flush),
])`);
    expect(said).toEqual(["ok", "ENOSPC", "ok", "ok", "EIO", "ok"]);
    const after = await readFile(disk.file("disk.raw"));
    expect(after.compare(disk.content, 4096, 4608, 4096, 4608)).toBe(0);
  });

  test("as the exported node shows its alignment to clients", async () => {
    await using disk = await exportTop({
      driver: "blkdebug",
      "node-name": "top",
      image: "disk",
      align: 4096,
    });
    const said = await nbdsh(`
h.connect_uri("${disk.uri}")
show([h.get_block_size(nbd.SIZE_MINIMUM), outcome(h.pwrite, b"y" * 4096, 8192)])`);
    expect(said).toEqual([4096, "ok"]);
  });
});

describe("blkverify", () => {
  test("serves what is equal, and fails and reports what is not", async () => {
    await using disk = await exportTop({
      driver: "blkverify",
      "node-name": "top",
      test: "disk",
      raw: "copy",
    });
    const said = await nbdsh(`
h.connect_uri("${disk.uri}")
said = [outcome(h.pwrite, b"z" * 4096, 4096), outcome(h.pread, 65536, 0)]
with open("${disk.file("copy.raw")}", "r+b") as copy:
  copy.seek(70000)
  copy.write(b"???")
said += [outcome(h.pread, 4096, 65536), outcome(h.pread, 4096, 69632), outcome(h.flush)]
show(said)`);
    expect(said).toEqual(["ok", "ok", "ok", "EIO", "ok"]);
    await disk.daemon.said(/contents mismatch at 70000/);
    const [one, other] = await Promise.all(
      ["disk.raw", "copy.raw"].map((name) => readFile(disk.file(name))),
    );
    expect(other?.compare(one as Buffer, 0, 65_536, 0, 65_536)).toBe(0);
  });
});

describe("blklogwrites", () => {
  test("keeps a log from which the disk can be made again, on whatever iothread", async () => {
    await using disk = await exportTop({
      driver: "blklogwrites",
      "node-name": "top",
      file: "disk",
      log: { driver: "raw", file: "log" },
    });
    const work = nbdsh(`
import random, time
h.connect_uri("${disk.uri}")
rng = random.Random(1)
for i in range(200):
  at = rng.randrange(2000) * 512
  time.sleep(0.002)
  if i % 7 == 0: h.zero(4096, at)
  elif i % 11 == 0: h.flush()
  else: h.pwrite(rng.randbytes(512 * (1 + i % 8)), at)
h.flush()
show([True])`);
    await disk.qmp.execute("object-add", { "qom-type": "iothread", id: "io" });
    let done = false;
    const end = () => {
      done = true;
    };
    work.then(end, end);
    for (let count = 0; !done; count++) {
      const iothread = count % 2 === 0 ? "io" : null;
      const move = { "node-name": "top", iothread, force: true };
      await disk.qmp.execute("x-blockdev-set-iothread", move);
    }
    expect(await work).toEqual([true]);
    expect(replay(disk.content, await readFile(disk.file("log.raw")))).toEqual(
      await readFile(disk.file("disk.raw")),
    );
  });
});

/** The disk after all entries of a log of 512-byte sectors. */
function replay(disk: Buffer, log: Buffer): Buffer {
  const after = Buffer.from(disk);
  const DISCARD = 4;
  let at = 512;
  for (let left = Number(log.readBigUInt64LE(16)); left > 0; left--) {
    const [sector, count, flags] = [0, 8, 16].map((field) =>
      Number(log.readBigUInt64LE(at + field)),
    ) as [number, number, number];
    at += 512;
    if ((flags & DISCARD) !== 0) continue;
    log.copy(after, sector * 512, at, at + count * 512);
    at += count * 512;
  }
  return after;
}
