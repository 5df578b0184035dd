/** Dirty bitmaps: what writes mark, what changes them, and how clients see them. */

import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { NBD_CMD_FLAG_REQ_ONE } from "../../src/abi/nbd.ts";
import { run } from "../support/clients.ts";
import { KiB, MiB, pattern } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import type { Extent } from "../support/nbd-reply.ts";
import { Random, randomSeed } from "../support/random.ts";
import { type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

const BYTES = 4 * MiB + 512;
const NAME = "b0";
let disk: Scene;

beforeEach(async () => {
  disk = await serve({
    bytes: BYTES,
    file: "discard=unmap",
    raw: "discard=unmap",
    before: ["--object", "iothread,id=io0"],
  });
});

afterEach(() => disk[Symbol.asyncDispose]());

interface DirtyInfo {
  readonly name: string;
  readonly count: number;
  readonly granularity: number;
  readonly recording: boolean;
  readonly busy: boolean;
}

async function infos(node = "disk"): Promise<DirtyInfo[]> {
  type NodeInfo = { "node-name": string; "dirty-bitmaps"?: DirtyInfo[] };
  const nodes = await disk.qmp.execute<NodeInfo[]>("query-named-block-nodes");
  return nodes.find((one) => one["node-name"] === node)!["dirty-bitmaps"] ?? [];
}

const execute = (command: string, more: object = {}) =>
  disk.qmp.execute(command, { node: "disk", name: NAME, ...more });
const add = (more: object = {}) => execute("block-dirty-bitmap-add", more);
const failure = (promise: Promise<unknown>) =>
  promise.then(
    () => "success",
    (error: Error) => error.message,
  );

async function sha256(more: object = {}): Promise<string> {
  const reply = await execute("x-debug-block-dirty-bitmap-sha256", more);
  return (reply as { sha256: string }).sha256;
}

/** What is expected of a bitmap, by a simple model of our own. */
class Model {
  readonly bits: boolean[];
  readonly #granularity: number;

  constructor(granularity: number, bytes = BYTES) {
    this.#granularity = granularity;
    this.bits = new Array(Math.ceil(bytes / granularity)).fill(false);
  }

  mark(offset: number, bytes: number): void {
    for (let at = offset; at < offset + bytes; at++) {
      this.bits[Math.floor(at / this.#granularity)] = true;
      at += this.#granularity - (at % this.#granularity) - 1;
    }
  }

  get sha256(): string {
    const bytes = new Uint8Array(Math.max(1, Math.ceil(this.bits.length / 64)) * 8);
    for (const [bit, dirty] of this.bits.entries()) if (dirty) bytes[bit >> 3]! |= 1 << (bit & 7);
    return createHash("sha256").update(bytes).digest("hex");
  }

  get extents(): { length: number; flags: number }[] {
    const list: { length: number; flags: number }[] = [];
    for (const [bit, dirty] of this.bits.entries()) {
      const start = bit * this.#granularity;
      const length = Math.min(this.#granularity, BYTES - start);
      const last = list.at(-1);
      if (last?.flags === Number(dirty)) last.length += length;
      else list.push({ length, flags: Number(dirty) });
    }
    return list;
  }
}

async function statusOf(name: string, mode: "structured" | "extended" = "structured") {
  const context = `qemu:dirty-bitmap:${name}`;
  const options = { exportName: "map", mode, contexts: [context] };
  const client = await NbdClient.open({ path: disk.socket }, options);
  const extents = (await client.blockStatus(0, BYTES)).get(context) ?? [];
  await client.disconnect();
  return extents.map(({ length, flags }: Extent) => ({ length, flags }));
}

const exportMap = (more: object = {}) =>
  disk.qmp.execute("block-export-add", {
    ...{ type: "nbd", id: "map", "node-name": "disk", name: "map" },
    ...more,
  });
/** A client that has left may still be known: hard. */
async function deleteExport(id: string): Promise<void> {
  const deleted = disk.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === id);
  await disk.qmp.execute("block-export-del", { id, mode: "hard" });
  await deleted;
}
const deleteMap = () => deleteExport("map");

describe("writes", () => {
  test("mark bitmaps of every node that they go through, and of no other", async () => {
    const random = new Random(randomSeed());
    const places = [
      { node: "disk", name: "fine", granularity: 512 },
      { node: "disk", name: "coarse", granularity: 64 * KiB },
      { node: "disk-file", name: "below", granularity: 4 * KiB },
    ];
    for (const place of places) await add(place);
    await add({ node: "disk", name: "off", disabled: true });
    const models = places.map(({ granularity }) => new Model(granularity));
    const client = await disk.open();
    for (let i = 0; i < 150; i++) {
      const offset = random.below(BYTES / 512) * 512;
      const room = (BYTES - offset) / 512;
      const bytes = 512 * (1 + random.below(Math.min(room, random.pick([1, 8, 600]))));
      const what = random.below(4);
      if (what === 0) await client.writeZeroes(offset, bytes);
      else if (what === 1) await client.read(offset, bytes);
      else await client.write(offset, pattern(bytes, i));
      if (what !== 1) for (const model of models) model.mark(offset, bytes);
      if (i % 50 === 0) await client.flush();
    }
    await client.disconnect();
    for (const [i, { node, name }] of places.entries()) {
      expect(await sha256({ node, name })).toBe(models[i]!.sha256);
    }
    expect(await infos()).toMatchObject([
      { name: "off", count: 0, recording: false },
      { name: "coarse", recording: true },
      { name: "fine", count: 512 * models[0]!.bits.filter((dirty) => dirty).length },
    ]);
  });

  test("of large commands, discards, and FUA are seen, too", async () => {
    await add({ granularity: 4096 });
    const model = new Model(4096);
    const client = await disk.open();
    await client.write(0, pattern(2 * MiB));
    await client.trim(3 * MiB, 64 * KiB);
    await client.writeFua(4 * MiB, pattern(512));
    model.mark(0, 2 * MiB);
    model.mark(3 * MiB, 64 * KiB);
    model.mark(4 * MiB, 512);
    await client.disconnect();
    expect(await sha256()).toBe(model.sha256);
  });

  test("under way are either before a clear or after it", async () => {
    const latencyMs = 300;
    const slow = { driver: "null-co", size: BYTES, "latency-ns": latencyMs * 1e6 };
    await disk.qmp.execute("blockdev-add", { ...slow, "node-name": "slow" });
    const exported = { type: "nbd", id: "slow", "node-name": "slow", writable: true };
    await disk.qmp.execute("block-export-add", exported);
    await add({ node: "slow", granularity: 512 });
    const client = await disk.open("slow");
    const begin = performance.now();
    const writing = client.write(0, pattern(512));
    const marked = async () => (await infos("slow"))[0]?.count;
    while ((await marked()) !== 512) await new Promise((resolve) => setTimeout(resolve, 5));
    await execute("block-dirty-bitmap-clear", { node: "slow" });
    expect(performance.now() - begin).toBeGreaterThanOrEqual(latencyMs);
    await writing;
    expect(await infos("slow")).toMatchObject([{ count: 0 }]);
    await client.disconnect();
  });
});

describe("clients", () => {
  test("see the dirty ranges of each bitmap, in either form of replies", async () => {
    await add({ granularity: 512 });
    await add({ name: "never", granularity: 64 * KiB, disabled: true });
    const model = new Model(512);
    const client = await disk.open();
    for (const [offset, bytes] of [
      [0, 512],
      [4 * KiB, 8 * KiB],
      [MiB, 100 * KiB],
      [4 * MiB, 512],
    ] as const) {
      await client.write(offset, pattern(bytes));
      model.mark(offset, bytes);
    }
    await client.disconnect();
    await exportMap({ bitmaps: [NAME, { node: "disk", name: "never" }], writable: true });
    expect(await statusOf(NAME)).toEqual(model.extents);
    expect(await statusOf(NAME, "extended")).toEqual(model.extents);
    expect(await statusOf("never")).toEqual([{ length: BYTES, flags: 0 }]);
    const uri = disk.uriOf("map");
    const map = JSON.parse(
      await run("nbdinfo", ["--json", `--map=qemu:dirty-bitmap:${NAME}`, uri]),
    );
    expect(map.map((one: { length: number }) => one.length)).toEqual(
      model.extents.map(({ length }) => length),
    );
  });

  test("see a range from anywhere, and one extent if they want one", async () => {
    await add({ granularity: 64 * KiB, node: "disk-file", name: "f" });
    const client = await disk.open();
    await client.write(128 * KiB, pattern(1024));
    await client.disconnect();
    await exportMap({ bitmaps: [{ node: "disk-file", name: "f" }] });
    const contexts = ["qemu:dirty-bitmap:f", "base:allocation"];
    const options = { exportName: "map", contexts };
    const reader = await NbdClient.open({ path: disk.socket }, options);
    expect(reader.contexts.get(2)).toBe("qemu:dirty-bitmap:f");
    const [from, bytes] = [130 * KiB, 256 * KiB];
    const all = await reader.blockStatus(from, bytes);
    expect(all.get(contexts[0]!)).toEqual([
      { length: 62 * KiB, flags: 1 },
      { length: 194 * KiB, flags: 0 },
    ]);
    const one = await reader.blockStatus(from, bytes, { flags: NBD_CMD_FLAG_REQ_ONE });
    expect(one.get(contexts[0]!)).toEqual([{ length: 62 * KiB, flags: 1 }]);
    await reader.disconnect();
  });

  test("see what others write meanwhile", async () => {
    await add({ granularity: 64 * KiB });
    await exportMap({ bitmaps: [NAME], writable: true });
    expect(await statusOf(NAME)).toEqual([{ length: BYTES, flags: 0 }]);
    const client = await disk.open();
    await client.write(0, pattern(512));
    await client.disconnect();
    expect((await statusOf(NAME))[0]).toEqual({ length: 64 * KiB, flags: 1 });
  });
});

describe("an exported bitmap", () => {
  test("is busy until the export is gone", async () => {
    await add({ disabled: true });
    await exportMap({ bitmaps: [NAME] });
    expect(await infos()).toMatchObject([{ name: NAME, busy: true }]);
    const busy = `Bitmap '${NAME}' is currently in use by another operation and cannot be used`;
    for (const what of ["remove", "clear", "enable", "disable"]) {
      expect(await failure(execute(`block-dirty-bitmap-${what}`))).toBe(busy);
    }
    await deleteMap();
    expect(await infos()).toMatchObject([{ name: NAME, busy: false }]);
    await execute("block-dirty-bitmap-remove");
    expect(await infos()).toEqual([]);
  });

  test("moves with its node, and so does what was written", async () => {
    await add({ granularity: 512 });
    const model = new Model(512);
    await exportMap({ bitmaps: [NAME], writable: true });
    const options = { exportName: "map", contexts: [`qemu:dirty-bitmap:${NAME}`] };
    const client = await NbdClient.open({ path: disk.socket }, options);
    for (const iothread of ["io0", null, "io0"]) {
      const offset = 8 * KiB * (1 + model.bits.filter((dirty) => dirty).length);
      await client.write(offset, pattern(512));
      model.mark(offset, 512);
      const move = { "node-name": "disk", iothread, force: true };
      await disk.qmp.execute("x-blockdev-set-iothread", move);
      expect(await sha256()).toBe(model.sha256);
      expect(await infos()).toMatchObject([{ busy: true, recording: true }]);
      const [extents] = (await client.blockStatus(0, BYTES)).values();
      expect(extents!.length).toBe(model.extents.length);
    }
    await client.disconnect();
    await deleteMap();
    await execute("block-dirty-bitmap-clear");
    expect(await infos()).toMatchObject([{ busy: false, count: 0 }]);
  });

  test("keeps its node where it is, and in being", async () => {
    await disk.qmp.execute("blockdev-add", {
      driver: "null-co",
      "node-name": "other",
      size: BYTES,
    });
    await add({ node: "other", name: "o" });
    await exportMap({ bitmaps: [{ node: "other", name: "o" }] });
    const del = () => disk.qmp.execute("blockdev-del", { "node-name": "other" });
    expect(await failure(del())).toBe("Node other is in use");
    for (const name of ["other", "disk"]) {
      const move = { "node-name": name, iothread: "io0", force: true };
      expect(await failure(disk.qmp.execute("x-blockdev-set-iothread", move))).toBe(
        "Cannot change iothread of active block backend",
      );
    }
    await deleteMap();
    await del();
  });

  test("has to be in the export's iothread", async () => {
    await disk.qmp.execute("blockdev-add", {
      driver: "null-co",
      "node-name": "other",
      size: BYTES,
    });
    await disk.qmp.execute("x-blockdev-set-iothread", { "node-name": "other", iothread: "io0" });
    await add({ node: "other", name: "o" });
    const bitmaps = [{ node: "other", name: "o" }];
    expect(await failure(exportMap({ bitmaps }))).toBe(
      "Bitmap 'o' is in another iothread than node 'disk'",
    );
    expect(await infos("other")).toMatchObject([{ busy: false }]);
  });
});

describe("a transaction", () => {
  const act = (type: string, data: object) => ({ type, data: { node: "disk", ...data } });

  test("takes all of it back when one action fails", async () => {
    await add({ granularity: 512 });
    await add({ name: "other", granularity: 512, disabled: true });
    const client = await disk.open();
    await client.write(0, pattern(4096));
    await client.disconnect();
    const before = [await sha256(), await sha256({ name: "other" }), await infos()];
    const actions = [
      act("block-dirty-bitmap-add", { name: "new" }),
      act("block-dirty-bitmap-merge", { target: "other", bitmaps: [NAME] }),
      act("block-dirty-bitmap-clear", { name: NAME }),
      act("block-dirty-bitmap-disable", { name: NAME }),
      act("block-dirty-bitmap-enable", { name: "other" }),
      act("block-dirty-bitmap-remove", { name: "other" }),
      { type: "abort", data: {} },
    ];
    const message = await failure(disk.qmp.execute("transaction", { actions }));
    expect(message).toBe("Transaction aborted using Abort action");
    expect([await sha256(), await sha256({ name: "other" }), await infos()]).toEqual(before);
  });

  test("does all of it, as a backup tool begins with it", async () => {
    await add({ granularity: 512 });
    const client = await disk.open();
    await client.write(0, pattern(4096));
    const marked = await sha256();
    const actions = [
      act("block-dirty-bitmap-add", { name: "copy", granularity: 512, disabled: true }),
      act("block-dirty-bitmap-merge", { target: "copy", bitmaps: [NAME] }),
      act("block-dirty-bitmap-clear", { name: NAME }),
    ];
    await disk.qmp.execute("transaction", { actions });
    await client.write(8192, pattern(512));
    await client.disconnect();
    expect(await sha256({ name: "copy" })).toBe(marked);
    const model = new Model(512);
    model.mark(8192, 512);
    expect(await sha256()).toBe(model.sha256);
  });
});

describe("bitmaps", () => {
  test("are merged across nodes, iothreads and granularities", async () => {
    await disk.qmp.execute("blockdev-add", {
      driver: "null-co",
      "node-name": "other",
      size: BYTES,
    });
    await disk.qmp.execute("x-blockdev-set-iothread", { "node-name": "other", iothread: "io0" });
    await add({ granularity: 64 * KiB });
    await add({ node: "other", name: "o", granularity: 512 });
    const client = await disk.open();
    await client.write(100 * KiB, pattern(512));
    await client.disconnect();
    const merge = { node: "other", target: "o", bitmaps: [{ node: "disk", name: NAME }] };
    await disk.qmp.execute("block-dirty-bitmap-merge", merge);
    const model = new Model(512);
    model.mark(64 * KiB, 64 * KiB);
    expect(await sha256({ node: "other", name: "o" })).toBe(model.sha256);
  });

  test("are cut when their node is, and grow with it", async () => {
    await add({ granularity: 512 });
    const client = await disk.open();
    await client.write(BYTES - 4096, pattern(4096));
    await client.disconnect();
    await deleteExport("e0");
    const resize = (size: number) =>
      disk.qmp.execute("block_resize", { "node-name": "disk", size });
    await resize(BYTES - 2048);
    expect(await infos()).toMatchObject([{ count: 2048 }]);
    await resize(BYTES + MiB);
    const model = new Model(512, BYTES + MiB);
    model.mark(BYTES - 4096, 2048);
    expect(await sha256()).toBe(model.sha256);
  });
});
