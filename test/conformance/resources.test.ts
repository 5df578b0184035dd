/** What the daemon holds: descriptors and memory are back where they were after any load. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { run } from "../support/clients.ts";
import { MiB } from "../support/images.ts";
import { sleep } from "../support/process.ts";
import { type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

async function waitForFds(disk: Scene, count: number): Promise<void> {
  for (let i = 0; i < 1000 && disk.daemon.fdCount() > count; i++) await sleep(20);
  expect(disk.daemon.fdCount()).toBeLessThanOrEqual(count);
}

describe("file descriptors", () => {
  test("of nodes, exports, servers and threads are given back", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const round = async (n: number) => {
      const id = `t${n}`;
      const path = `${disk.directory}/${id}.sock`;
      await qmp.execute("object-add", { "qom-type": "iothread", id });
      await qmp.execute("nbd-server-stop");
      await qmp.execute("nbd-server-start", { addr: { type: "unix", data: { path } } });
      const file = { driver: "file", "node-name": id, filename: disk.image };
      await qmp.execute("blockdev-add", file);
      const nbd = { type: "nbd", id, "node-name": id, iothread: id, writable: true };
      await qmp.execute("block-export-add", nbd);
      const uri = `nbd+unix:///${id}?socket=${path}`;
      await run("qemu-io", [
        "-f",
        "raw",
        "-c",
        "read 0 1M",
        "-c",
        "write 0 64k",
        "-c",
        "flush",
        uri,
      ]);
      await qmp.execute("block-export-del", { id, mode: "hard" });
      await qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === id);
      await qmp.execute("blockdev-del", { "node-name": id });
      await qmp.execute("object-del", { id });
    };
    // Helper threads start when they are first needed, and stay.
    for (let n = 0; n < 6; n++) await round(n);
    await sleep(100);
    const before = disk.daemon.fdCount();
    for (let n = 6; n < 26; n++) await round(n);
    await waitForFds(disk, before);
  });

  test("of failed requests for nodes, servers and exports are given back", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const fail = (command: string, args: Record<string, unknown>) =>
      expect(qmp.execute(command, args)).rejects.toThrow();
    const round = async () => {
      const file = { driver: "file", filename: disk.image };
      await fail("blockdev-add", { driver: "raw", "node-name": "x", size: 1, offset: 1e12, file });
      await fail("blockdev-add", { ...file, "node-name": "disk" });
      await fail("block-export-add", { type: "nbd", id: "x", "node-name": "disk", name: "disk" });
      const inet = { type: "inet", data: { host: "127.0.0.1", port: "x" } };
      await fail("nbd-server-start", { addr: inet });
    };
    await round();
    const before = disk.daemon.fdCount();
    for (let n = 0; n < 20; n++) await round();
    await waitForFds(disk, before);
  });
});

describe("memory", () => {
  const LOAD = ["bench", "-f", "raw", "-c", "1000", "-s", "1M", "-d", "32"];

  test("under large requests stays far below the data in flight that clients ask for", async () => {
    await using disk = await serve({ bytes: 64 * MiB, sparse: true });
    const loads = Array.from({ length: 4 }, () => run("qemu-img", [...LOAD, disk.uri]));
    let most = 0;
    let loaded = true;
    const watch = (async () => {
      while (loaded) {
        most = Math.max(most, disk.daemon.residentKiB());
        await sleep(20);
      }
    })();
    await Promise.all(loads);
    loaded = false;
    await watch;
    // Four clients with 32 MiB each; a buffer of 1 MiB per request would show.
    expect(most).toBeLessThan(160 * 1024);
  });

  test("does not grow from one client to the next", async () => {
    await using disk = await serve({ bytes: 64 * MiB });
    const load = () => run("qemu-img", [...LOAD, disk.uri]);
    await load();
    await load();
    const before = disk.daemon.residentKiB();
    for (let n = 0; n < 6; n++) await load();
    expect(disk.daemon.residentKiB() - before).toBeLessThan(24 * 1024);
  });
});
