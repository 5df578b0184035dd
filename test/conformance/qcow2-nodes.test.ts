/** qcow2 nodes as a user has them: chains that images name, reopening, moving, damage. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { run } from "../support/clients.ts";
import { readAt, temporaryDirectory, writeAt } from "../support/images.ts";
import { startDaemon } from "../support/process.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

const CLUSTER = 65536;

async function qemuIo(target: string, ...commands: string[]): Promise<string> {
  const format = target.startsWith("nbd") ? "raw" : "qcow2";
  const each = commands.flatMap((command) => ["-c", command]);
  return await run("qemu-io", ["-f", format, ...each, target]);
}

/** Of an image that somebody else has open. */
async function readBack(path: string, ...commands: string[]): Promise<void> {
  const each = commands.flatMap((command) => ["-c", command]);
  await run("qemu-io", ["-r", "-f", "qcow2", ...each, path]);
}

async function create(path: string, ...options: string[]): Promise<void> {
  await run("qemu-img", ["create", "-q", "-f", "qcow2", ...options, path, "64M"]);
}

async function scene() {
  const folder = await temporaryDirectory();
  const socket = folder.file("nbd.sock");
  const server = ["--nbd-server", `addr.type=unix,addr.path=${socket}`];
  const running = await startDaemon(folder.path, server);
  return {
    ...running,
    folder,
    uri: unixUri(socket, "q"),
    open: (filename: string, more: object = {}) =>
      running.qmp.execute("blockdev-add", {
        driver: "qcow2",
        "node-name": "q",
        file: { driver: "file", filename },
        ...more,
      }),
    share: () =>
      running.qmp.execute("block-export-add", {
        type: "nbd",
        id: "e",
        "node-name": "q",
        writable: true,
      }),
    [Symbol.asyncDispose]: async () => {
      await running[Symbol.asyncDispose]();
      await folder[Symbol.asyncDispose]();
    },
  };
}

describe("a chain that images name", () => {
  test("opens with all of its images, and shows them", async () => {
    await using daemon = await scene();
    const { folder } = daemon;
    await run("qemu-img", ["create", "-q", "-f", "raw", folder.file("base.raw"), "32M"]);
    await create(folder.file("middle.qcow2"), "-b", "base.raw", "-F", "raw");
    await create(folder.file("top.qcow2"), "-b", "middle.qcow2", "-F", "qcow2");
    await daemon.open(folder.file("top.qcow2"));
    const query = "query-named-block-nodes";
    const nodes = await daemon.qmp.execute<Record<string, unknown>[]>(query);
    expect(nodes.map(({ drv, ro }) => [drv, ro])).toEqual([
      ["raw", true],
      ["file", true],
      ["qcow2", true],
      ["file", true],
      ["qcow2", false],
      ["file", false],
    ]);
    expect(nodes[4]).toMatchObject({
      "node-name": "q",
      backing_file: folder.file("middle.qcow2"),
      backing_file_depth: 2,
      image: {
        "backing-filename": "middle.qcow2",
        "full-backing-filename": folder.file("middle.qcow2"),
        "backing-filename-format": "qcow2",
        "cluster-size": CLUSTER,
      },
    });
  });

  test("is refused when one is missing, and leaves nothing open", async () => {
    await using daemon = await scene();
    const { folder } = daemon;
    const missing = folder.file("missing.raw");
    await create(folder.file("top.qcow2"), "-u", "-b", missing, "-F", "raw");
    await expect(daemon.open(folder.file("top.qcow2"))).rejects.toThrow(
      `Could not open backing file: Could not open '${missing}': No such file or directory`,
    );
    expect(await daemon.qmp.execute("query-named-block-nodes")).toEqual([]);
    await daemon.open(folder.file("top.qcow2"), { backing: null });
  });

  test("is refused when it is a circle", async () => {
    await using daemon = await scene();
    const { folder } = daemon;
    const [one, two] = [folder.file("one.qcow2"), folder.file("two.qcow2")];
    await create(one, "-u", "-b", two, "-F", "qcow2");
    await create(two, "-u", "-b", one, "-F", "qcow2");
    await expect(daemon.open(one, { "read-only": true })).rejects.toThrow(
      `Backing file '${one}' creates an infinite loop.`,
    );
    expect(await daemon.qmp.execute("query-named-block-nodes")).toEqual([]);
  });

  test("must be named again, or given up, when the image is reopened", async () => {
    await using daemon = await scene();
    const { folder, qmp } = daemon;
    await run("qemu-img", ["create", "-q", "-f", "raw", folder.file("base.raw"), "32M"]);
    await create(folder.file("top.qcow2"), "-b", "base.raw", "-F", "raw");
    const file = { driver: "file", filename: folder.file("top.qcow2"), "node-name": "f" };
    await qmp.execute("blockdev-add", { driver: "qcow2", "node-name": "q", file });
    const reopen = (more: object) =>
      qmp.execute("blockdev-reopen", {
        options: [{ driver: "qcow2", "node-name": "q", file: "f", ...more }],
      });
    await expect(reopen({})).rejects.toThrow("backing is missing for 'q'");
    await reopen({ backing: null });
    expect(await qmp.execute("query-named-block-nodes")).toHaveLength(2);
  });
});

describe("a node in use", () => {
  test("keeps all data on its way between iothreads, and when it becomes read-only", async () => {
    await using daemon = await scene();
    const { folder, qmp } = daemon;
    const path = folder.file("image.qcow2");
    await create(path, "-o", "lazy_refcounts=on");
    await daemon.open(path, { file: { driver: "file", filename: path, "node-name": "f" } });
    await daemon.share();
    await qmp.execute("object-add", { "qom-type": "iothread", id: "io0" });
    for (const [i, iothread] of ["io0", null, "io0"].entries()) {
      await qemuIo(daemon.uri, `write -P ${i + 1} ${i}M 1M`, `discard ${i}M 128k`);
      const move = { "node-name": "q", iothread, force: true };
      await qmp.execute("x-blockdev-set-iothread", move);
    }
    await qmp.execute("block-export-del", { id: "e", mode: "hard" });
    const node = { driver: "qcow2", "node-name": "q", file: "f", "read-only": true };
    await qmp.execute("blockdev-reopen", { options: [node] });
    // Nobody holds it for writing any more: qemu-img may look at it.
    await run("qemu-img", ["check", "-q", path]);
    await readBack(path, "read -P 1 256k 768k", "read -P 2 1280k 768k", "read -P 3 2304k 768k");
  });

  test("tells of damage, marks it and is of no use any more", async () => {
    await using daemon = await scene();
    const { folder, qmp } = daemon;
    const path = folder.file("image.qcow2");
    await create(path);
    await qemuIo(path, "write -P 1 0 64k");
    const l1 = Number((await readAt(path, 40, 8)).readBigUInt64BE());
    const entry = Buffer.from("8000000000050200", "hex");
    const l2 = Number((await readAt(path, l1, 8)).readBigUInt64BE() & 0xff_ffff_ffff_fe00n);
    await writeAt(path, l2, entry);
    await daemon.open(path);
    await daemon.share();
    await expect(qemuIo(daemon.uri, "read 0 4k")).rejects.toThrow("Input/output error");
    const place = `(L2 offset: 0x${l2.toString(16)}, L2 index: 0)`;
    const event = await qmp.event("BLOCK_IMAGE_CORRUPTED");
    expect(event.data).toEqual({
      device: "",
      "node-name": "q",
      msg: `Cluster allocation offset 0x50200 unaligned ${place}`,
      fatal: true,
    });
    await expect(qemuIo(daemon.uri, "write 1M 4k")).rejects.toThrow();
    await qmp.execute("block-export-del", { id: "e", mode: "hard" });
    await qmp.execute("blockdev-del", { "node-name": "q" });
    await expect(daemon.open(path)).rejects.toThrow(
      "qcow2: Image is corrupt; cannot be opened read/write",
    );
    await daemon.open(path, { "read-only": true });
  });
});
