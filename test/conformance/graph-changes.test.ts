/** blockdev-reopen, blockdev-set-active and x-blockdev-set-iothread while clients use the disk. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, statSync } from "node:fs";
import { NBD_CMD_READ } from "../../src/abi/nbd.ts";
import { assertSameBytes, MiB, pattern, sparseImage } from "../support/images.ts";
import type { NbdClient } from "../support/nbd-client.ts";
import { sleep } from "../support/process.ts";
import type { Qmp } from "../support/qmp.ts";
import { type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

const BLOCK = 65_536;
/** Bytes of a file that say who uses it and what is kept from others. */
const READ = 100;
const WRITE = 101;
const RESIZE_UNSHARED = 203;
const EXPORTED = [READ, WRITE, RESIZE_UNSHARED];

/** Image locks that anybody holds on the file, each byte as often as it is locked. */
function locksOf(path: string): number[] {
  const inode = String(statSync(path).ino);
  const lines = readFileSync("/proc/locks", "utf8").split("\n");
  const fields = lines.map((line) => line.trim().split(/\s+/));
  const ours = fields.filter(([, kind, , , , file]) => {
    return kind === "OFDLCK" && file?.split(":")[2] === inode;
  });
  return ours.flatMap(([, , , , , , from, to]) => range(Number(from), Number(to))).sort();
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, index) => from + index);
}

async function refused(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => "no error",
    (error: Error) => error.message,
  );
}

const reopen = (qmp: Qmp, ...options: Record<string, unknown>[]) =>
  qmp.execute("blockdev-reopen", { options });
const fileOf = ({ image }: Scene) => ({
  driver: "file",
  "node-name": "disk-file",
  filename: image,
});
const rawOf = (file: string) => ({ driver: "raw", "node-name": "disk", file });
const nodeOf = async (qmp: Qmp, name: string) => {
  const nodes = await qmp.execute<Record<string, unknown>[]>("query-named-block-nodes");
  return nodes.find((node) => node["node-name"] === name);
};

/** Writes and reads all the time until told to stop; every byte must be what was written last. */
function exercise(client: NbdClient, bytes: number): () => Promise<number> {
  let going = true;
  let count = 0;
  const work = (async () => {
    for (; going; count++) {
      const offset = (count * BLOCK) % bytes;
      const payload = pattern(BLOCK, count + 1);
      await client.write(offset, payload);
      assertSameBytes(await client.read(offset, BLOCK), payload, `round ${count}`);
    }
  })();
  return async () => {
    going = false;
    await work;
    return count;
  };
}

describe("blockdev-reopen", () => {
  test("changes the options of a disk in use, and a client sees only its data", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const client = await disk.open();
    const stop = exercise(client, MiB);
    for (let round = 0; round < 20; round++) {
      const direct = round % 2 === 0;
      await reopen(qmp, { ...fileOf(disk), cache: { direct }, "detect-zeroes": "on" });
      expect(await nodeOf(qmp, "disk-file")).toMatchObject({ cache: { direct } });
      expect(locksOf(disk.image)).toEqual(EXPORTED);
    }
    expect(await stop()).toBeGreaterThan(0);
    client.close();
  });

  test("is not held up by a client that never reads its replies", async () => {
    await using disk = await serve({
      before: ["--object", "iothread,id=io0"],
      bytes: 64 * MiB,
      sparse: true,
    });
    const { qmp } = disk;
    const silent = await disk.open();
    silent.stream.pause();
    for (let request = 0; request < 16; request++) {
      silent.request(NBD_CMD_READ, 0, 4 * MiB).catch(() => {});
    }
    await sleep(100);
    await reopen(qmp, { ...fileOf(disk), "detect-zeroes": "on" });
    const move = { "node-name": "disk", iothread: "io0", force: true };
    // Its replies can't go along; whether that is refused or not, nobody waits for ever.
    await refused(qmp.execute("x-blockdev-set-iothread", move));
    const client = await disk.open();
    await client.write(0, pattern(BLOCK, 4));
    assertSameBytes(await client.read(0, BLOCK), pattern(BLOCK, 4));
    client.close();
    silent.close();
  });

  test("takes another file, with its locks, and gives the first one back", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const other = `${disk.directory}/other.raw`;
    await sparseImage(other, disk.bytes);
    await qmp.execute("blockdev-add", { driver: "file", "node-name": "other", filename: other });
    const client = await disk.open();
    await client.write(0, pattern(BLOCK, 7));
    await reopen(qmp, rawOf("other"));
    expect([locksOf(disk.image), locksOf(other)]).toEqual([[], EXPORTED]);
    assertSameBytes(await client.read(0, BLOCK), Buffer.alloc(BLOCK));
    await client.write(BLOCK, pattern(BLOCK, 8));
    client.close();
    assertSameBytes(readFileSync(disk.image).subarray(0, BLOCK), pattern(BLOCK, 7));
    assertSameBytes(readFileSync(other).subarray(BLOCK, 2 * BLOCK), pattern(BLOCK, 8));
    expect(await refused(reopen(qmp, { ...rawOf("disk-file"), size: 5 }))).toBe(
      "Specified size is not multiple of 512",
    );
    expect([locksOf(disk.image), locksOf(other)]).toEqual([[], EXPORTED]);
  });

  test("puts a throttle node below another one and takes it away again", async () => {
    await using disk = await serve({ before: ["--object", "throttle-group,id=tg"] });
    const { qmp } = disk;
    const throttle = (name: string, file: string) => {
      return { driver: "throttle", "node-name": name, "throttle-group": "tg", file };
    };
    await qmp.execute("blockdev-add", throttle("t0", "disk-file"));
    await qmp.execute("blockdev-add", throttle("t1", "disk-file"));
    await reopen(qmp, rawOf("t1"));
    const client = await disk.open();
    const stop = exercise(client, MiB);
    // Each is told of the drained section that it comes into, and of that section's end.
    for (let round = 0; round < 6; round++) {
      await reopen(qmp, throttle("t1", round % 2 === 0 ? "t0" : "disk-file"));
    }
    await stop();
    client.close();
  });

  test("refuses what its users forbid, and changes nothing", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const readOnly = { ...fileOf(disk), "read-only": true };
    const before = await nodeOf(qmp, "disk-file");
    // The first of both could be done.
    const options = [{ ...rawOf("disk-file"), "detect-zeroes": "on" }, readOnly];
    expect(await refused(reopen(qmp, ...options))).toBe(
      "Read-only block node 'disk-file' cannot support read-write users",
    );
    expect(await refused(reopen(qmp, { ...fileOf(disk), filename: "/other" }))).toBe(
      "Cannot change the option 'filename'",
    );
    expect(await refused(reopen(qmp, rawOf("disk")))).toBe(
      "Making 'disk' a file child of 'disk' would create a cycle",
    );
    expect(await nodeOf(qmp, "disk-file")).toEqual(before);
    expect(await nodeOf(qmp, "disk")).toMatchObject({ detect_zeroes: "off" });
    expect(locksOf(disk.image)).toEqual(EXPORTED);
    // It aborts the real one.
    await reopen(qmp);
  });

  test("opens a file for writing and only for reading again", async () => {
    await using disk = await serve({ export: "writable=off" });
    const { qmp } = disk;
    const readOnly = (is: boolean) => ({ "read-only": is });
    await reopen(qmp, { ...rawOf("disk-file"), ...readOnly(true) });
    await reopen(qmp, { ...fileOf(disk), ...readOnly(true) });
    const add = { type: "nbd", id: "e1", "node-name": "disk", name: "e1", writable: true };
    expect(await refused(qmp.execute("block-export-add", add))).toBe(
      "Cannot export read-only node as writable",
    );
    await reopen(qmp, { ...rawOf("disk-file"), ...readOnly(false) }, fileOf(disk));
    await qmp.execute("block-export-add", add);
    const client = await disk.open("e1");
    await client.write(0, pattern(BLOCK, 3));
    client.close();
    assertSameBytes(readFileSync(disk.image).subarray(0, BLOCK), pattern(BLOCK, 3));
  });
});

describe("blockdev-set-active", () => {
  const exportOf = (more: object) => ({ type: "nbd", id: "e1", "node-name": "disk", ...more });

  test("lets go of the image, with all that was written, and takes it again", async () => {
    await using disk = await serve({ export: "writable=on,allow-inactive=on" });
    const { qmp } = disk;
    const client = await disk.open();
    const stop = exercise(client, MiB);
    await refused(qmp.execute("query-version"));
    await stop();
    await qmp.execute("blockdev-set-active", { active: false });
    expect(locksOf(disk.image)).toEqual([]);
    expect(await nodeOf(qmp, "disk-file")).toMatchObject({ active: false });
    await qmp.execute("blockdev-set-active", { "node-name": "disk", active: true });
    expect(locksOf(disk.image)).toEqual(EXPORTED);
    await client.write(0, pattern(BLOCK, 5));
    assertSameBytes(await client.read(0, BLOCK), pattern(BLOCK, 5));
    client.close();
  });

  test("is refused while someone may write, or an active node uses the node", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const inactivate = (name?: string) =>
      refused(
        qmp.execute("blockdev-set-active", {
          ...(name === undefined ? {} : { "node-name": name }),
          active: false,
        }),
      );
    expect(await inactivate("disk")).toBe("Failed to inactivate node: Operation not permitted");
    expect(await inactivate()).toBe("Failed to inactivate all nodes: Operation not permitted");
    expect(await inactivate("disk-file")).toBe("Node has active parent node");
    expect(locksOf(disk.image)).toEqual(EXPORTED);
  });

  test("makes an export without allow-inactive activate its node", async () => {
    await using disk = await serve({ export: "writable=off" });
    const { qmp } = disk;
    await qmp.execute("blockdev-set-active", { active: false });
    await qmp.execute("block-export-add", exportOf({ name: "e1", writable: true }));
    expect(await nodeOf(qmp, "disk-file")).toMatchObject({ active: true });
    expect(locksOf(disk.image)).toEqual(EXPORTED);
  });
});

describe("x-blockdev-set-iothread", () => {
  test("moves a disk in use, and a client sees only its data", async () => {
    const before = ["--object", "iothread,id=io0", "--object", "iothread,id=io1"];
    await using disk = await serve({ before });
    const { qmp } = disk;
    const client = await disk.open();
    const stop = exercise(client, MiB);
    for (let round = 0; round < 20; round++) {
      const iothread = ["io0", "io1", null][round % 3];
      const args = { "node-name": "disk-file", iothread, force: true };
      await qmp.execute("x-blockdev-set-iothread", args);
      expect(locksOf(disk.image)).toEqual(EXPORTED);
    }
    expect(await stop()).toBeGreaterThan(0);
    client.close();
  });

  test("refuses a node in use without force, and threads that are not there", async () => {
    await using disk = await serve({ before: ["--object", "iothread,id=io0"] });
    const move = (name: string, iothread: string | null, force: boolean) =>
      refused(disk.qmp.execute("x-blockdev-set-iothread", { "node-name": name, iothread, force }));
    expect(await move("disk", "io0", false)).toBe(
      "Node disk is associated with a BlockBackend and could be in use " +
        "(use force=true to override this check)",
    );
    expect(await move("zz", "io0", true)).toBe("Failed to find node with node-name='zz'");
    expect(await move("disk", "zz", true)).toBe("Cannot find iothread zz");
  });
});

describe("blockdev-add", () => {
  test("takes a thousand nodes inside each other", async () => {
    await using disk = await serve({ export: "writable=off" });
    const { qmp } = disk;
    let options: Record<string, unknown> = { driver: "file", filename: disk.image };
    for (let depth = 0; depth < 1000; depth++) options = { driver: "raw", file: options };
    await qmp.execute("blockdev-add", { ...options, "node-name": "top" });
    const add = { type: "nbd", id: "top", "node-name": "top", name: "top", writable: true };
    await qmp.execute("block-export-add", add);
    const client = await disk.open("top");
    await client.write(0, pattern(BLOCK, 9));
    assertSameBytes(await client.read(0, BLOCK), pattern(BLOCK, 9));
    client.close();
    await qmp.execute("block-export-del", { id: "top", mode: "hard" });
    await qmp.event("BLOCK_EXPORT_DELETED");
    await qmp.execute("blockdev-del", { "node-name": "top" });
  });

  test("refuses a chain that no stack holds", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    let last = "disk-file";
    let message = "no error";
    for (let depth = 0; depth < 1100 && message === "no error"; depth++) {
      const name = `n${depth}`;
      const options = { driver: "raw", "node-name": name, file: last };
      message = await refused(qmp.execute("blockdev-add", options));
      last = name;
    }
    expect(message).toBe("Node 'n1023' makes a chain of more than 1024 nodes");
    // An orderly end, one node after the other, takes a busy machine long.
    disk.daemon.expectedExit = "SIGKILL";
    disk.daemon.kill();
  });

  test("opens each name once, however many ask at a time", async () => {
    await using disk = await serve();
    const { qmp } = disk;
    const options = { driver: "null-co", "node-name": "same" };
    const all = Array.from({ length: 7 }, () => refused(qmp.execute("blockdev-add", options)));
    const results = await Promise.all(all);
    expect(results.filter((result) => result === "no error")).toHaveLength(1);
    expect(new Set(results).size).toBe(2);
    expect(results).toContain("Duplicate nodes with node-name='same'");
  });
});
