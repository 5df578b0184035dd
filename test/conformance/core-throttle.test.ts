/** Limits on what clients do, and the groups that hold them. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { assertSameBytes, MiB, patternImage } from "../support/images.ts";
import type { NbdClient } from "../support/nbd-client.ts";
import { sleep } from "../support/process.ts";
import { type Scene, type ServeOptions, serve } from "./scene.ts";

setDefaultTimeout(180_000);

const KiB = 1024;

/** Exports "slow" over a throttle node of the group "tg", beside the plain "disk". */
async function throttled(limits: string, options: ServeOptions = {}): Promise<Scene> {
  const before = options.before ?? [];
  const disk = await serve({
    ...options,
    before: [...before, "--object", `throttle-group,id=tg${limits === "" ? "" : `,${limits}`}`],
  });
  await exportSlow(disk, "slow");
  return disk;
}

async function exportSlow(disk: Scene, name: string, iothread?: string): Promise<void> {
  const { qmp } = disk;
  // One tree for each iothread.
  const file =
    iothread === undefined
      ? "disk"
      : { driver: "file", "node-name": `${name}-file`, filename: disk.image };
  await qmp.execute("blockdev-add", {
    driver: "throttle",
    "node-name": `${name}-node`,
    "throttle-group": "tg",
    file,
  });
  await qmp.execute("block-export-add", {
    type: "nbd",
    id: name,
    "node-name": `${name}-node`,
    name,
    writable: true,
    ...(iothread === undefined ? {} : { iothread, "fixed-iothread": true }),
  });
}

async function secondsOf(task: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await task();
  return (performance.now() - start) / 1000;
}

function reads(client: NbdClient, count: number, bytes: number): Promise<Uint8Array[]> {
  return Promise.all(Array.from({ length: count }, (_, i) => client.read(i * bytes, bytes)));
}

describe("throttle", () => {
  test("slows reads and writes down to the limit, and changes nothing in them", async () => {
    await using disk = await throttled("limits.bps-total=1048576");
    const client = await disk.open("slow");
    const seconds = await secondsOf(async () => {
      for (const [index, data] of (await reads(client, 8, 64 * KiB)).entries()) {
        const from = index * 64 * KiB;
        assertSameBytes(data, disk.content.subarray(from, from + 64 * KiB));
      }
    });
    // 512 KiB, of which a tenth of a second and the last request need not wait.
    expect(seconds).toBeGreaterThan(0.3);
    const payload = Buffer.alloc(64 * KiB, 7);
    const writing = await secondsOf(async () => {
      await Promise.all([0, 1, 2, 3].map((i) => client.write(i * 64 * KiB, payload)));
      await client.flush();
    });
    expect(writing).toBeGreaterThan(0.15);
    assertSameBytes(await client.read(192 * KiB, 64 * KiB), payload);
    client.close();
    const plain = await disk.open();
    // The limit would make it four seconds.
    expect(await secondsOf(() => reads(plain, 64, 64 * KiB))).toBeLessThan(3.5);
    plain.close();
  });

  test("does not slow down what has no limit", async () => {
    await using disk = await throttled("limits.bps-write=1");
    const client = await disk.open("slow");
    await reads(client, 8, 64 * KiB);
    client.close();
  });

  test("shares one group between exports, also of different threads", async () => {
    await using disk = await throttled("x-iops-read=40,x-iops-read-max=40", {
      before: ["--object", "iothread,id=io0"],
    });
    await exportSlow(disk, "other", "io0");
    const clients = await Promise.all(["slow", "other"].map((name) => disk.open(name)));
    const ended: number[] = [];
    const seconds = await secondsOf(async () => {
      // The first second's worth goes to whoever comes first.
      await reads(clients[0]!, 42, 512);
      const both = clients.map((client, index) =>
        Promise.all(
          Array.from({ length: 20 }, () => client.read(0, 512).then(() => ended.push(index))),
        ),
      );
      await Promise.all(both);
    });
    // 40 requests: a second. Alone, a client would be through before the other begins.
    expect(seconds).toBeGreaterThan(0.8);
    expect(new Set(ended.slice(0, 20)).size).toBe(2);
    for (const client of clients) client.close();
  });

  test("qom-set changes limits at once, for requests that wait, too", async () => {
    await using disk = await throttled("x-bps-total=1");
    const client = await disk.open("slow");
    await client.read(0, 64 * KiB);
    let done = false;
    const waiting = client.read(0, 64 * KiB).then(() => {
      done = true;
    });
    await sleep(150);
    expect(done).toBe(false);
    const set = (value: Record<string, number>) =>
      disk.qmp.execute("qom-set", { path: "/objects/tg", property: "limits", value });
    await expect(set({ "bps-read": 1 })).rejects.toThrow("cannot be used at the same time");
    await Promise.all([set({ "bps-total": 0 }), waiting]);
    await reads(client, 8, 64 * KiB);
    await set({ "iops-read": 10, "iops-read-max": 10 });
    expect(await secondsOf(() => reads(client, 15, 512))).toBeGreaterThan(0.3);
    client.close();
  });

  test("ends at once, though requests wait for hours", async () => {
    const disk = await throttled("x-bps-total=1");
    const client = await disk.open("slow");
    await client.read(0, 64 * KiB);
    const waiting = reads(client, 4, 64 * KiB).catch(() => {});
    await sleep(50);
    const { qmp, daemon } = disk;
    await qmp.execute("quit");
    expect(await daemon.exitSoon()).toBe(0);
    await waiting;
    await disk[Symbol.asyncDispose]();
  });

  test("an export goes away at once, and its node and group after it", async () => {
    await using disk = await throttled("x-bps-total=1");
    const { qmp } = disk;
    const client = await disk.open("slow");
    await client.read(0, 64 * KiB);
    const waiting = reads(client, 4, 64 * KiB).catch(() => {});
    await sleep(50);
    const text = "Cannot delete throttle group 'tg' with active references";
    await expect(qmp.execute("object-del", { id: "tg" })).rejects.toThrow(text);
    await qmp.execute("block-export-del", { id: "slow", mode: "hard" });
    await qmp.event("BLOCK_EXPORT_DELETED");
    await waiting;
    await expect(qmp.execute("object-del", { id: "tg" })).rejects.toThrow(text);
    await qmp.execute("blockdev-del", { "node-name": "slow-node" });
    await qmp.execute("object-del", { id: "tg" });
    const node = { driver: "throttle", "node-name": "n", "throttle-group": "tg", file: "disk" };
    await expect(qmp.execute("blockdev-add", node)).rejects.toThrow(
      "Throttle group 'tg' does not exist",
    );
    const plain = await disk.open();
    assertSameBytes(await plain.read(MiB, 512), disk.content.subarray(MiB, MiB + 512));
    plain.close();
  });

  test("keeps nobody waiting on another disk, though blocks are written in parts", async () => {
    await using disk = await throttled("x-bps-write=1", {
      file: "cache.direct=on",
      raw: "cache.direct=on",
    });
    const { qmp } = disk;
    const filename = `${disk.directory}/other.raw`;
    await patternImage(filename, MiB);
    await qmp.execute("blockdev-add", {
      driver: "file",
      "node-name": "other",
      filename,
      cache: { direct: true },
    });
    const other = { type: "nbd", id: "other", "node-name": "other", writable: true };
    await qmp.execute("block-export-add", other);
    const [slow, quick] = await Promise.all(["slow", "other"].map((name) => disk.open(name)));
    await slow!.write(0, Buffer.alloc(64 * KiB));
    const waiting = [slow!.write(0, Buffer.alloc(64 * KiB, 1)), slow!.write(1, Buffer.alloc(9))];
    await sleep(50);
    for (let i = 0; i < 8; i++) await quick!.write(i * 700, Buffer.alloc(700, i));
    const limits = { path: "/objects/tg", property: "limits", value: { "bps-write": 0 } };
    await qmp.execute("qom-set", limits);
    await Promise.all(waiting);
    slow!.close();
    quick!.close();
  });

  test("moves to another thread at once, and its group goes along", async () => {
    await using disk = await throttled("x-bps-total=1", {
      before: ["--object", "iothread,id=io0"],
    });
    const { qmp } = disk;
    const client = await disk.open("slow");
    await client.read(0, 64 * KiB);
    const waiting = reads(client, 2, 64 * KiB);
    await sleep(50);
    const move = { "node-name": "slow-node", iothread: "io0", force: true };
    await qmp.execute("x-blockdev-set-iothread", move);
    for (const [index, data] of (await waiting).entries()) {
      const from = index * 64 * KiB;
      assertSameBytes(data, disk.content.subarray(from, from + 64 * KiB));
    }
    let done = false;
    const again = client.read(0, 512).then(() => {
      done = true;
    });
    await sleep(150);
    expect(done).toBe(false);
    await expect(qmp.execute("object-del", { id: "tg" })).rejects.toThrow("active references");
    const limits = { path: "/objects/tg", property: "limits", value: { "bps-total": 0 } };
    await qmp.execute("qom-set", limits);
    await again;
    client.close();
  });

  test("blockdev-reopen to another group does not wait for requests that wait", async () => {
    await using disk = await throttled("x-bps-total=1", {
      before: ["--object", "throttle-group,id=other"],
    });
    const { qmp } = disk;
    const client = await disk.open("slow");
    await client.read(0, 64 * KiB);
    const waiting = reads(client, 2, 64 * KiB);
    await sleep(50);
    const reopen = (group: string) =>
      qmp.execute("blockdev-reopen", {
        options: [
          { driver: "throttle", "node-name": "slow-node", "throttle-group": group, file: "disk" },
        ],
      });
    await expect(reopen("nope")).rejects.toThrow("Throttle group 'nope' does not exist");
    await reopen("other");
    for (const [index, data] of (await waiting).entries()) {
      const from = index * 64 * KiB;
      assertSameBytes(data, disk.content.subarray(from, from + 64 * KiB));
    }
    await qmp.execute("object-del", { id: "tg" });
    await expect(qmp.execute("object-del", { id: "other" })).rejects.toThrow(
      "Cannot delete throttle group 'other' with active references",
    );
    await reads(client, 4, 64 * KiB);
    client.close();
  });
});

describe("copy-on-read", () => {
  test("reads and prefetches where there is nothing to copy", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const node = { driver: "copy-on-read", "node-name": "cor", file: "disk", bottom: "disk" };
    await qmp.execute("blockdev-add", node);
    const cor = { type: "nbd", id: "cor", "node-name": "cor", name: "cor", writable: true };
    await qmp.execute("block-export-add", cor);
    const client = await disk.open("cor");
    await client.cache(0, MiB);
    assertSameBytes(await client.read(0, 4 * MiB), disk.content);
    await client.write(512, Buffer.alloc(512, 3));
    assertSameBytes(await client.read(512, 512), Buffer.alloc(512, 3));
    client.close();
  });

  test("is refused in QSD's words", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const add = (options: Record<string, unknown>) =>
      qmp.execute("blockdev-add", { driver: "copy-on-read", "node-name": "cor", ...options });
    await expect(add({ file: "disk", bottom: "zz" })).rejects.toThrow("Bottom node 'zz' not found");
    await add({ file: "disk" });
    await expect(add({ file: "cor", "node-name": "cor2", bottom: "cor" })).rejects.toThrow(
      "Bottom node 'cor' is a filter",
    );
    const base = { driver: "raw", "read-only": true, file: "disk-file" };
    await expect(add({ file: base, "node-name": "cor3" })).rejects.toThrow(
      "Block node is read-only",
    );
  });

  test("keeps its chain down to bottom as it is, while it is open", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const group = { "qom-type": "throttle-group", id: "tg" };
    await qmp.execute("object-add", group);
    const throttle = { driver: "throttle", "node-name": "t", "throttle-group": "tg" };
    await qmp.execute("blockdev-add", { ...throttle, file: "disk" });
    const add = (name: string, file: string) =>
      qmp.execute("blockdev-add", {
        driver: "copy-on-read",
        "node-name": name,
        file,
        bottom: "disk",
      });
    const reopen = () =>
      qmp.execute("blockdev-reopen", { options: [{ ...throttle, file: "disk-file" }] });
    await add("cor", "t");
    await expect(add("cor2", "cor")).rejects.toThrow("Cannot change 'file' link from 'cor' to 't'");
    await expect(add("cor2", "disk-file")).rejects.toThrow("is not below 'cor2'");
    await expect(reopen()).rejects.toThrow("Cannot change frozen 'file' link from 't' to 'disk'");
    await qmp.execute("blockdev-del", { "node-name": "cor" });
    await add("cor", "t");
    await qmp.execute("blockdev-del", { "node-name": "cor" });
    await reopen();
  });
});
