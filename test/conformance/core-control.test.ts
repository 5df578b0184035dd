/** Nodes, servers and exports made and removed over QMP while clients are connected. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import { run } from "../support/clients.ts";
import {
  assertFileIs,
  assertSameBytes,
  MiB,
  patternImage,
  temporaryDirectory,
} from "../support/images.ts";
import { PATIENCE_MS, startDaemon } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";
import { ended, serve, unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

interface ExportInfo {
  readonly id: string;
  readonly type: string;
  readonly "node-name": string;
  readonly "shutting-down": boolean;
}

const exportIds = async (qmp: Qmp) =>
  (await qmp.execute<ExportInfo[]>("query-block-exports")).map((each) => each.id);

describe("a daemon without options", () => {
  test("is built up and taken down over QMP alone", async () => {
    await using directory = await temporaryDirectory();
    const content = await patternImage(directory.file("disk.raw"), 2 * MiB);
    const socket = directory.file("nbd.sock");
    await using running = await startDaemon(directory.path, []);
    const { qmp } = running;
    await qmp.execute("blockdev-add", {
      driver: "raw",
      "node-name": "disk",
      file: { driver: "file", filename: directory.file("disk.raw") },
    });
    const addr = { type: "unix", data: { path: socket } };
    await qmp.execute("nbd-server-start", { addr });
    const nbd = { type: "nbd", id: "e0", "node-name": "disk", name: "n", writable: true };
    await qmp.execute("block-export-add", nbd);
    expect(await qmp.execute("query-block-exports")).toEqual([
      { id: "e0", type: "nbd", "node-name": "disk", "shutting-down": false },
    ]);
    await run("qemu-io", ["-f", "raw", "-c", "write -P 3 0 64k", unixUri(socket, "n")]);
    await qmp.execute("block-export-del", { id: "e0" });
    await qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "e0");
    await qmp.execute("nbd-server-stop");
    expect(existsSync(socket)).toBe(false);
    await qmp.execute("blockdev-del", { "node-name": "disk" });
    expect(await qmp.execute("query-named-block-nodes")).toEqual([]);
    content.fill(3, 0, 65_536);
    await assertFileIs(directory.file("disk.raw"), content);
  });
});

describe("block-export-add", () => {
  test("checks in the documented order and leaves nothing behind", async () => {
    await using disk = await serve();
    const base = { type: "nbd", id: "e1", "node-name": "disk" };
    const failures = [
      [{ ...base, id: "1bad" }, "Invalid block export id"],
      [{ ...base, id: "e0", "node-name": "none" }, "Block export id 'e0' is already in use"],
      [{ ...base, "node-name": "none" }, "Cannot find device='' nor node-name='none'"],
      [{ ...base, name: "disk" }, "NBD server already has export named 'disk'"],
      [{ ...base, iothread: "none" }, 'iothread "none" not found'],
      [{ ...base, description: "d".repeat(4097) }, `description '${"d".repeat(4097)}' too long`],
      [{ ...base, nonsense: 1 }, "Parameter 'nonsense' is unexpected"],
      [{ type: "nbd", id: "e1" }, "Parameter 'node-name' is missing"],
      [{ ...base, writable: "on" }, "Invalid parameter type for 'writable', expected: boolean"],
      [{ ...base, type: "bogus" }, "Parameter 'type' does not accept value 'bogus'"],
    ] as const;
    for (const [args, message] of failures) {
      await expect(disk.qmp.execute("block-export-add", args)).rejects.toThrow(message);
    }
    expect(await exportIds(disk.qmp)).toEqual(["e0"]);
  });

  test("refuses a writable export of a read-only node", async () => {
    await using disk = await serve({ file: "read-only=on", raw: "read-only=on", export: "name=r" });
    const writable = { type: "nbd", id: "e1", "node-name": "disk", writable: true };
    await expect(disk.qmp.execute("block-export-add", writable)).rejects.toThrow(
      "Cannot export read-only node as writable",
    );
  });

  test("needs a running NBD server", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, [
      "--blockdev",
      "driver=null-co,node-name=n0,size=1048576",
    ]);
    await expect(
      running.qmp.execute("block-export-add", { type: "nbd", id: "e0", "node-name": "n0" }),
    ).rejects.toThrow("NBD server not running");
  });

  test("lists the newest export first", async () => {
    await using disk = await serve();
    for (const id of ["e1", "e2"]) {
      await disk.qmp.execute("block-export-add", {
        type: "nbd",
        id,
        "node-name": "disk",
        name: id,
      });
    }
    expect(await exportIds(disk.qmp)).toEqual(["e2", "e1", "e0"]);
  });
});

describe("block-export-del", () => {
  test("refuses in safe mode while a client is connected, works when it has left", async () => {
    await using disk = await serve();
    const client = await disk.open();
    await expect(disk.qmp.execute("block-export-del", { id: "e0" })).rejects.toThrow(
      "export 'e0' still in use",
    );
    assertSameBytes(await client.read(0, 512), disk.content.subarray(0, 512));
    client.close();
    await ended(client.stream);
    await expectEventually(() => disk.qmp.execute("block-export-del", { id: "e0" }));
    await disk.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "e0");
    expect(await exportIds(disk.qmp)).toEqual([]);
  });

  test("in hard mode disconnects the clients of that export only", async () => {
    await using disk = await serve({
      after: ["--export", "type=nbd,id=e1,node-name=disk,name=other"],
    });
    const client = await disk.open();
    const other = await disk.open("other");
    await disk.qmp.execute("block-export-del", { id: "e0", mode: "hard" });
    await disk.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "e0");
    await ended(client.stream);
    assertSameBytes(await other.read(512, 512), disk.content.subarray(512, 1024));
    expect(await exportIds(disk.qmp)).toEqual(["e1"]);
    other.close();
  });

  test("does not know an export that is not there, nor a mode", async () => {
    await using disk = await serve();
    await expect(disk.qmp.execute("block-export-del", { id: "x" })).rejects.toThrow(
      "Export 'x' is not found",
    );
    await expect(disk.qmp.execute("block-export-del", { id: "e0", mode: "foo" })).rejects.toThrow(
      "Parameter 'mode' does not accept value 'foo'",
    );
  });

  test("frees the id, the name and the node for the next one", async () => {
    await using disk = await serve();
    for (let round = 0; round < 20; round++) {
      await disk.qmp.execute("block-export-del", { id: "e0" });
      await disk.qmp.event("BLOCK_EXPORT_DELETED");
      await disk.qmp.execute("block-export-add", {
        type: "nbd",
        id: "e0",
        "node-name": "disk",
        name: "disk",
      });
    }
    const client = await disk.open();
    assertSameBytes(await client.read(0, 4096), disk.content.subarray(0, 4096));
    client.close();
  });
});

describe("nbd-server", () => {
  test("stop ends exports and clients and removes the socket, start serves again", async () => {
    await using disk = await serve();
    const client = await disk.open();
    await disk.qmp.execute("nbd-server-stop");
    await disk.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "e0");
    await ended(client.stream);
    expect(existsSync(disk.socket)).toBe(false);
    expect(await exportIds(disk.qmp)).toEqual([]);
    await expect(disk.qmp.execute("nbd-server-stop")).rejects.toThrow("NBD server not running");
    const addr = { type: "unix", data: { path: disk.socket } };
    await disk.qmp.execute("nbd-server-start", { addr });
    await expect(disk.qmp.execute("nbd-server-start", { addr })).rejects.toThrow(
      "NBD server already running",
    );
    await disk.qmp.execute("block-export-add", { type: "nbd", id: "e9", "node-name": "disk" });
    expect(Number(await run("nbdinfo", ["--size", disk.uri]))).toBe(disk.bytes);
  });

  test("start fails cleanly where it cannot listen", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const start = (path: string) =>
      running.qmp.execute("nbd-server-start", { addr: { type: "unix", data: { path } } });
    await expect(start("/nonexistent/nbd.sock")).rejects.toThrow(
      "Failed to bind socket to /nonexistent/nbd.sock: No such file or directory",
    );
    await start(directory.file("nbd.sock"));
  });
});

describe("blockdev", () => {
  test("add and del check names, files and users", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const file = { driver: "file", filename: disk.image };
    const failures = [
      [{ ...file, "node-name": "disk" }, "Duplicate nodes with node-name='disk'"],
      [{ ...file, "node-name": "bad name" }, "Invalid node-name: 'bad name'"],
      [{ ...file, "node-name": "x".repeat(32) }, "Node name too long"],
      [{ driver: "raw", "node-name": "r", file: "none" }, "node-name='none'"],
      [
        { driver: "file", "node-name": "f", filename: "/nonexistent" },
        "Could not open '/nonexistent': No such file or directory",
      ],
    ] as const;
    for (const [args, message] of failures) {
      await expect(qmp.execute("blockdev-add", args)).rejects.toThrow(message);
    }
    await expect(qmp.execute("blockdev-del", { "node-name": "disk" })).rejects.toThrow(
      "Node disk is in use",
    );
    await expect(qmp.execute("blockdev-del", { "node-name": "none" })).rejects.toThrow(
      "Failed to find node with node-name='none'",
    );
    const nodes = await qmp.execute<{ "node-name": string }[]>("query-named-block-nodes");
    expect(nodes.map((each) => each["node-name"]).sort()).toEqual(["disk", "disk-file"]);
  });
});

describe("two monitors", () => {
  test("both get every event", async () => {
    await using directory = await temporaryDirectory();
    const second = directory.file("second.sock");
    await using disk = await serve({
      after: [
        ...["--chardev", `socket,id=second,path=${second},server=on,wait=off`],
        ...["--monitor", "chardev=second"],
      ],
    });
    const qmp = await Qmp.connect(second);
    await disk.qmp.execute("block-export-del", { id: "e0" });
    const deleted = { id: "e0" };
    expect((await disk.qmp.event("BLOCK_EXPORT_DELETED")).data).toEqual(deleted);
    expect((await qmp.event("BLOCK_EXPORT_DELETED")).data).toEqual(deleted);
    qmp.close();
  });
});

/** Runs until it succeeds: a client's leaving reaches the daemon in its own time. */
async function expectEventually(action: () => Promise<unknown>): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    try {
      await action();
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
  }
}
