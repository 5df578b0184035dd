/** What exports do beyond being there: legacy commands, inactive nodes, failures, races. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { nbdsh, run } from "../support/clients.ts";
import { temporaryDirectory } from "../support/images.ts";
import { Qmp } from "../support/qmp.ts";
import { type Scene, serve, unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

const TWO_THREADS = ["--object", "iothread,id=io0", "--object", "iothread,id=io1"];

describe("nbd-server-add", () => {
  test("exports a node under its own name, for reading when it must", async () => {
    await using disk = await serve({ export: "writable=on", raw: "read-only=off" });
    const { qmp } = disk;
    await qmp.execute("blockdev-add", {
      ...{ driver: "raw", "node-name": "ro", "read-only": true, file: "disk-file" },
    });
    await qmp.execute("nbd-server-add", { device: "ro", writable: true, description: "old" });
    await qmp.execute("nbd-server-add", { device: "disk", name: "rw", writable: true });
    const info = async (name: string) => {
      const all = await run("nbdinfo", ["--json", unixUri(disk.socket, name)]);
      const [one] = (JSON.parse(all) as { exports: Record<string, unknown>[] }).exports;
      return [one!.is_read_only, one!.description];
    };
    expect(await info("ro")).toEqual([true, "old"]);
    expect(await info("rw")).toEqual([false, undefined]);
    const client = await disk.open("rw");
    const remove = (mode?: string) =>
      qmp.execute("nbd-server-remove", { name: "rw", ...(mode === undefined ? {} : { mode }) });
    await expect(remove()).rejects.toThrow("export 'rw' still in use");
    await remove("hard");
    await qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === "rw");
    await expect(remove()).rejects.toThrow("Export 'rw' is not found");
    client.close();
  });
});

describe("an export of an inactive node", () => {
  // As qemu-storage-daemon 11.1.
  test("serves reads only, and follows blockdev-set-active", async () => {
    await using disk = await serve({ export: "writable=on,allow-inactive=on" });
    const script = `
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri("${disk.uri}")
def extent(*_): return 0
def all():
    return [
        outcome(h.pread, 512, 0), outcome(h.pwrite, b"x" * 512, 0), outcome(h.flush),
        outcome(h.trim, 512, 0), outcome(h.zero, 512, 0), outcome(h.cache, 512, 0),
        outcome(h.block_status, 512, 0, extent),
    ]
`;
    const states = async (): Promise<string[]> => nbdsh<string[]>(`${script}\nshow(all())`);
    const active = Array(7).fill("ok") as string[];
    const inactive = ["ok", ...(Array(6).fill("EPERM") as string[])];
    expect(await states()).toEqual(active);
    await disk.qmp.execute("blockdev-set-active", { "node-name": "disk", active: false });
    expect(await states()).toEqual(inactive);
    // For a client that stays connected, too.
    const client = await disk.open();
    await expect(client.write(0, Buffer.alloc(512))).rejects.toThrow();
    await disk.qmp.execute("blockdev-set-active", { "node-name": "disk", active: true });
    await client.write(0, Buffer.alloc(512));
    client.close();
    expect(await states()).toEqual(active);
  });
});

/** All that a failing command must leave alone. */
async function stateOf({ qmp, image }: Scene): Promise<unknown> {
  const { ino } = statSync(image);
  const locks = readFileSync("/proc/locks", "utf8")
    .split("\n")
    .filter((line) => line.includes(`:${ino} `))
    .map((line) => line.replace(/^\d+: /, ""))
    .sort();
  return {
    locks,
    nodes: await qmp.execute("query-named-block-nodes", { flat: true }),
    exports: await qmp.execute("query-block-exports"),
  };
}

describe("a block-export-add that fails", () => {
  const faults: [options: Record<string, unknown>, message: string][] = [
    [{ bitmaps: ["b"] }, "Bitmap 'b' is not found"],
    [{ name: "disk" }, "NBD server already has export named 'disk'"],
    [{ description: "d".repeat(4097) }, "too long"],
    [{ iothread: ["io0"] }, "NBD export does not support multi-threading"],
    [{ iothread: "io9" }, 'iothread "io9" not found'],
    [{ "node-name": "none" }, "Cannot find device='' nor node-name='none'"],
  ];
  test("leaves nodes, locks, activity and threads as they were", async () => {
    await using disk = await serve({ before: TWO_THREADS });
    const { qmp } = disk;
    await qmp.execute("blockdev-add", {
      ...{ driver: "raw", "node-name": "other" },
      file: { driver: "file", filename: disk.image, "node-name": "other-file" },
      active: false,
    });
    const before = await stateOf(disk);
    const base = { type: "nbd", id: "e1", "node-name": "other", writable: true };
    for (const iothread of ["io0", undefined]) {
      const placed = iothread === undefined ? base : { ...base, iothread };
      for (const [options, message] of faults) {
        const add = qmp.execute("block-export-add", { ...placed, ...options });
        await expect(add).rejects.toThrow(message);
        expect(await stateOf(disk)).toEqual(before);
      }
    }
    // Nothing stayed on a thread, and the id and the name are free.
    await qmp.execute("object-del", { id: "io0" });
    await qmp.execute("block-export-add", { ...base, name: "b" });
    await qmp.execute("block-export-del", { id: "e1" });
    const { data } = await qmp.event("BLOCK_EXPORT_DELETED");
    expect(data).toEqual({ id: "e1" });
  });
});

describe("commands that race", () => {
  test("from several monitors, with clients that come and go, leave nothing behind", async () => {
    await using directory = await temporaryDirectory();
    const paths = [0, 1, 2, 3].map((index) => directory.file(`monitor${index}`));
    const more = paths.flatMap((path, index) => [
      ...["--chardev", `socket,id=m${index},path=${path},server=on,wait=off`],
      ...["--monitor", `m${index}`],
    ]);
    await using disk = await serve({ before: [...TWO_THREADS, ...more] });
    const monitors = await Promise.all(paths.map((path) => Qmp.connect(path)));
    const known = new RegExp(
      "already (in use|running|shutting down|has export)|not found|not running|" +
        "still in use|in use, can not",
    );
    const attempt = async (qmp: Qmp, command: string, args: Record<string, unknown>) => {
      await qmp.execute(command, args).catch((error: Error) => {
        if (!known.test(error.message)) throw error;
      });
    };
    let working = true;
    const clients = [0, 1, 2].map(async () => {
      for (; working; ) {
        const client = await disk.open("racing").catch(() => undefined);
        await client?.read(0, 512).catch(() => {});
        client?.close();
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    });
    const addr = { type: "unix", data: { path: disk.socket } };
    const work = monitors.map(async (qmp, index) => {
      for (let round = 0; round < 15; round++) {
        const id = `e${(round + index) % 3}x`;
        const iothread = `io${round % 2}`;
        await attempt(qmp, "block-export-add", {
          ...{ type: "nbd", id, "node-name": "disk", name: "racing", iothread },
        });
        await attempt(qmp, "block-export-del", { id, mode: round % 3 === 0 ? "safe" : "hard" });
        if (index === 0 && round % 5 === 4) {
          await attempt(qmp, "nbd-server-stop", {});
          await attempt(qmp, "nbd-server-start", { addr });
        }
        await attempt(qmp, "object-del", { id: `io${(round + 1) % 2}` });
        await attempt(qmp, "object-add", { "qom-type": "iothread", id: "io0" }).catch(() => {});
        await attempt(qmp, "object-add", { "qom-type": "iothread", id: "io1" }).catch(() => {});
      }
    });
    await Promise.all(work);
    working = false;
    await Promise.all(clients);
    const left = await disk.qmp.execute<{ id: string }[]>("query-block-exports");
    for (const { id } of left) await attempt(disk.qmp, "block-export-del", { id, mode: "hard" });
    const remaining = async () => disk.qmp.execute<unknown[]>("query-block-exports");
    for (let i = 0; i < 3000 && (await remaining()).length > 0; i++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect(await remaining()).toEqual([]);
    await disk.qmp.execute("blockdev-del", { "node-name": "disk" });
    for (const qmp of monitors) qmp.close();
  });
});

describe("an address with port 0", () => {
  test("is told in the log", async () => {
    await using disk = await serve({ before: ["--log-level", "info"] });
    await disk.qmp.execute("nbd-server-stop");
    const data = { host: "127.0.0.1", port: "0", "keep-alive": true };
    await disk.qmp.execute("nbd-server-start", { addr: { type: "inet", data } });
    await disk.qmp.execute("block-export-add", { type: "nbd", id: "e", "node-name": "disk" });
    const [, port] = await disk.daemon.said(/listening on 127\.0\.0\.1:0.*port=(\d+)/);
    const size = await run("nbdinfo", ["--size", `nbd://127.0.0.1:${port}/disk`]);
    expect(Number(size)).toBe(disk.bytes);
  });
});
