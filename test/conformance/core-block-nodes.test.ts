/** Looking at nodes, resizing them, watching where writes go: beside what clients do. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { stat } from "node:fs/promises";
import {
  assertFileIs,
  assertSameBytes,
  KiB,
  MiB,
  pattern,
  patternImage,
  readAt,
} from "../support/images.ts";
import { NbdError } from "../support/nbd-client.ts";
import { sleep } from "../support/process.ts";
import type { Qmp } from "../support/qmp.ts";
import { type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

interface NodeStats {
  readonly "node-name": string;
  readonly stats: Record<string, number>;
  readonly "driver-specific"?: Record<string, unknown>;
  readonly parent?: NodeStats;
}

async function statsOf(qmp: Qmp, nodeName: string): Promise<NodeStats> {
  const all = await qmp.execute<NodeStats[]>("query-blockstats", { "query-nodes": true });
  return all.find((one) => one["node-name"] === nodeName)!;
}

async function nodeOf(qmp: Qmp, nodeName: string) {
  const all = await qmp.execute<Record<string, unknown>[]>("query-named-block-nodes");
  return all.find((one) => one["node-name"] === nodeName)! as {
    readonly write_threshold: number;
    readonly image: { readonly "virtual-size": number };
  };
}

const resize = (qmp: Qmp, nodeName: string, size: number) =>
  qmp.execute("block_resize", { "node-name": nodeName, size });
const watch = (qmp: Qmp, nodeName: string, offset: number) =>
  qmp.execute("block-set-write-threshold", {
    "node-name": nodeName,
    "write-threshold": offset,
  });

describe("query-blockstats", () => {
  test("counts what clients ask for, and keeps it when they and the export are gone", async () => {
    await using disk = await serve({ file: "discard=unmap", raw: "discard=unmap" });
    const before = await statsOf(disk.qmp, "disk");
    expect(before.stats.idle_time_ns).toBeUndefined();
    const client = await disk.open();
    for (let i = 0; i < 3; i++) await client.read(i * 4096, 4096);
    await client.write(64 * KiB, pattern(8192));
    await client.writeZeroes(MiB, 4096);
    await client.trim(2 * MiB, 64 * KiB);
    await client.flush();
    await client.read(disk.bytes, 512).catch((error) => expect(error).toBeInstanceOf(NbdError));
    await client.disconnect();
    await disk.qmp.execute("block-export-del", { id: "e0", mode: "hard" });
    await disk.qmp.event("BLOCK_EXPORT_DELETED");
    const { stats, parent } = await statsOf(disk.qmp, "disk");
    expect(stats).toMatchObject({
      rd_operations: 3,
      rd_bytes: 12_288,
      wr_operations: 2,
      wr_bytes: 12_288,
      unmap_operations: 1,
      unmap_bytes: 65_536,
      wr_highest_offset: MiB + 4096,
      failed_rd_operations: 0,
      invalid_rd_operations: 0,
    });
    expect(stats.flush_operations).toBeGreaterThanOrEqual(1);
    for (const kind of ["rd", "wr", "flush", "unmap"]) {
      expect(stats[`${kind}_total_time_ns`]).toBeGreaterThan(0);
      expect(stats[`${kind}_total_time_ns`]).toBeLessThan(60e9);
    }
    expect(stats.idle_time_ns).toBeGreaterThan(0);
    // Nobody but the raw node used the file.
    expect(parent?.stats).toMatchObject({ rd_operations: 0, wr_highest_offset: MiB + 4096 });
    expect(parent?.["driver-specific"]).toEqual({
      driver: "file",
      "discard-nb-ok": 1,
      "discard-nb-failed": 0,
      "discard-bytes-ok": 65_536,
    });
  });

  test("goes along to another iothread with the threshold; resizing works there", async () => {
    const before = ["--object", "iothread,id=io0"];
    await using disk = await serve({ before });
    const write = async (offset: number) => {
      const client = await disk.open();
      await client.write(offset, pattern(4096));
      await client.disconnect();
    };
    await write(0);
    await disk.qmp.execute("block-export-del", { id: "e0", mode: "hard" });
    await disk.qmp.event("BLOCK_EXPORT_DELETED");
    await watch(disk.qmp, "disk-file", MiB);
    await disk.qmp.execute("block-export-add", {
      ...{ type: "nbd", id: "e1", "node-name": "disk", name: "disk" },
      ...{ writable: true, iothread: "io0", "fixed-iothread": true },
    });
    await write(MiB);
    expect((await disk.qmp.event("BLOCK_WRITE_THRESHOLD")).data).toEqual({
      "node-name": "disk-file",
      "amount-exceeded": 4096,
      "write-threshold": MiB,
    });
    expect((await statsOf(disk.qmp, "disk")).stats.wr_operations).toBe(2);
    await disk.qmp.execute("block-export-del", { id: "e1", mode: "hard" });
    await disk.qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === "e1");
    await resize(disk.qmp, "disk", 2 * MiB);
    expect((await stat(disk.image)).size).toBe(2 * MiB);
  });
});

describe("block-set-write-threshold", () => {
  test("tells once, at the node named, on the exported node and below", async () => {
    await using disk = await serve({ raw: `offset=${64 * KiB}` });
    const client = await disk.open();
    await watch(disk.qmp, "disk", MiB);
    await watch(disk.qmp, "disk-file", MiB);
    expect((await nodeOf(disk.qmp, "disk-file")).write_threshold).toBe(MiB);
    await client.write(MiB - 4096, pattern(4096));
    expect((await disk.qmp.event("BLOCK_WRITE_THRESHOLD")).data).toEqual({
      "node-name": "disk-file",
      "amount-exceeded": 64 * KiB,
      "write-threshold": MiB,
    });
    await client.write(MiB, pattern(4096));
    expect((await disk.qmp.event("BLOCK_WRITE_THRESHOLD")).data).toEqual({
      "node-name": "disk",
      "amount-exceeded": 4096,
      "write-threshold": MiB,
    });
    for (const name of ["disk", "disk-file"]) {
      expect((await nodeOf(disk.qmp, name)).write_threshold).toBe(0);
    }
    await client.write(2 * MiB, pattern(4096));
    await watch(disk.qmp, "disk", 3 * MiB);
    await client.write(3 * MiB, pattern(512));
    const next = await disk.qmp.event("BLOCK_WRITE_THRESHOLD");
    expect(next.data?.["write-threshold"]).toBe(3 * MiB);
    await client.disconnect();
    const wanted = pattern(4096);
    assertSameBytes(await readAt(disk.image, 64 * KiB + 2 * MiB, 4096), wanted);
  });

  test("sees zeroes and discards; 0 ends it", async () => {
    await using disk = await serve({ file: "discard=unmap", raw: "discard=unmap" });
    const client = await disk.open();
    await watch(disk.qmp, "disk-file", MiB);
    await client.writeZeroes(MiB, 4096);
    const zeroes = await disk.qmp.event("BLOCK_WRITE_THRESHOLD");
    expect(zeroes.data?.["amount-exceeded"]).toBe(4096);
    await watch(disk.qmp, "disk", MiB);
    await client.trim(2 * MiB, 4096);
    const trim = await disk.qmp.event("BLOCK_WRITE_THRESHOLD");
    expect(trim.data?.["amount-exceeded"]).toBe(MiB + 4096);
    await watch(disk.qmp, "disk", MiB);
    await watch(disk.qmp, "disk", 0);
    await client.write(3 * MiB, pattern(4096));
    await watch(disk.qmp, "disk", 4096);
    await client.write(3 * MiB, pattern(4096));
    const next = await disk.qmp.event("BLOCK_WRITE_THRESHOLD");
    expect(next.data?.["write-threshold"]).toBe(4096);
    await client.disconnect();
  });
});

/** Writes to the start of the disk again and again until told to stop; what is there then. */
function load(disk: Scene, bytes: number) {
  const content = Buffer.from(disk.content.subarray(0, bytes));
  let stopping = false;
  let rounds = 0;
  const run = async (): Promise<Buffer> => {
    const client = await disk.open();
    for (; !stopping; rounds++) {
      const offset = ((rounds * 7) % (bytes / 4096)) * 4096;
      const data = pattern(4096, rounds + 1);
      data.copy(content, offset);
      await client.write(offset, data);
    }
    await client.disconnect();
    return content;
  };
  const done = run();
  return {
    async stop(): Promise<Buffer> {
      // It has gone on after whatever happened.
      const before = rounds;
      while (rounds < before + 10) await sleep(1);
      stopping = true;
      return done;
    },
  };
}

describe("block_resize", () => {
  test("refuses while a client relies on the length, and nothing changes", async () => {
    await using disk = await serve();
    const under = load(disk, 256 * KiB);
    const user = (node: string) => `an unnamed block device (uses node '${node}' as 'root' child)`;
    await expect(resize(disk.qmp, "disk", 4096)).rejects.toThrow(
      "Permission conflict on node 'disk': permissions 'resize' are both required by " +
        `${user("disk")} and unshared by ${user("disk")}.`,
    );
    await expect(resize(disk.qmp, "disk-file", 4096)).rejects.toThrow(
      "Permission conflict on node 'disk-file': permissions 'resize' are both required by " +
        `${user("disk-file")} and unshared by node 'disk' (uses node 'disk-file' as 'file' child).`,
    );
    const content = await under.stop();
    expect((await stat(disk.image)).size).toBe(disk.bytes);
    assertSameBytes(await readAt(disk.image, 0, content.length), content);
  });

  test("grows and shrinks a free node beside one under load", async () => {
    await using disk = await serve();
    const other = `${disk.directory}/other.raw`;
    await patternImage(other, MiB);
    await disk.qmp.execute("blockdev-add", {
      ...{ driver: "raw", "node-name": "over" },
      file: { driver: "file", "node-name": "below", filename: other },
    });
    const under = load(disk, 256 * KiB);
    for (const size of [2 * MiB, 1000, 0, 512 * KiB + 1, MiB]) {
      await resize(disk.qmp, "over", size);
      expect((await stat(other)).size).toBe(size);
      const sectors = Math.ceil(size / 512) * 512;
      for (const name of ["over", "below"]) {
        expect((await nodeOf(disk.qmp, name)).image["virtual-size"]).toBe(sectors);
      }
    }
    await resize(disk.qmp, "below", 768 * KiB);
    expect((await nodeOf(disk.qmp, "over")).image["virtual-size"]).toBe(768 * KiB);
    const content = await under.stop();
    assertSameBytes(await readAt(disk.image, 0, content.length), content);
    // What was cut off came back as zeroes.
    await assertFileIs(other, Buffer.alloc(768 * KiB));
    await disk.qmp.execute("block-export-add", {
      ...{ type: "nbd", id: "e1", "node-name": "over", name: "over", writable: true },
    });
    const client = await disk.open("over");
    expect(client.facts.bytes).toBe(768 * KiB);
    await client.write(768 * KiB - 512, pattern(512));
    await expect(client.write(768 * KiB, pattern(512))).rejects.toThrow();
    await client.disconnect();
    expect((await stat(other)).size).toBe(768 * KiB);
  });

  test("says why it can't", async () => {
    await using disk = await serve({
      after: [
        ...["--blockdev", "null-co,node-name=nothing"],
        ...["--blockdev", "raw,node-name=window,size=512,file.driver=null-co"],
        ...["--blockdev", "null-co,node-name=constant,read-only=on"],
      ],
    });
    for (const [node, size, message] of [
      ["nothing", 1024, "Image format driver does not support resize"],
      ["window", 1024, "Cannot resize fixed-size raw disks"],
      ["constant", 1024, "Image is read-only"],
      ["nothing", -1, "Parameter 'size' expects a >0 size"],
      ["none", 1, "Cannot find device='' nor node-name='none'"],
    ] as const) {
      await expect(resize(disk.qmp, node, size)).rejects.toThrow(message);
    }
    await expect(disk.qmp.execute("block_resize", { device: "x", size: 1 })).rejects.toThrow(
      "Cannot find device='x' nor node-name=''",
    );
  });
});

describe("x-debug-query-block-graph", () => {
  test("shows exports, nodes and what each may do", async () => {
    await using disk = await serve();
    const all = ["write-unchanged", "write", "consistent-read"];
    const uses = ["write", "consistent-read"];
    expect(await disk.qmp.execute("x-debug-query-block-graph")).toEqual({
      nodes: [
        { id: 2, type: "block-driver", name: "disk" },
        { id: 3, type: "block-driver", name: "disk-file" },
        { id: 1, type: "block-backend", name: "" },
      ],
      edges: [
        { parent: 2, child: 3, name: "file", perm: uses, "shared-perm": all },
        { parent: 1, child: 2, name: "root", perm: uses, "shared-perm": all },
      ],
    });
    expect(await disk.qmp.execute("query-block")).toEqual([]);
    expect(await disk.qmp.execute("query-blockstats")).toEqual([]);
  });
});
