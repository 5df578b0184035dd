/**
 * Snapshots while clients write: what each holds is what the disk held at that moment, and no write
 * is lost or done twice.
 */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  closeSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { attempt, run } from "../support/clients.ts";
import { KiB, MiB, pattern, sparseImage, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type RunningDaemon, sleep, startDaemon } from "../support/process.ts";
import { openChain, openImage, type Source } from "../support/qcow2-reader.ts";
import type { Qmp } from "../support/qmp.ts";
import { Random, randomSeed } from "../support/random.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

const BLOCK = 16 * KiB;
const BLOCKS = 256;
const BYTES = BLOCK * BLOCKS;

/** Blocks that clients write again and again, each time in a version of its own. */
class Versions {
  readonly #begun = new Uint32Array(BLOCKS);
  readonly #done = new Uint32Array(BLOCKS);
  readonly #random: Random;
  #isGoing = true;
  writes = 0;

  constructor(seed: number) {
    this.#random = new Random(seed);
  }

  /** Writes and reads back until stop(). Blocks `index` modulo `of` are this writer's. */
  async write(client: NbdClient, index: number, of: number): Promise<void> {
    const own = Array.from({ length: BLOCKS / of }, (_, i) => i * of + index);
    while (this.#isGoing) {
      const block = this.#random.pick(own);
      const version = ++this.#begun[block]!;
      await client.write(block * BLOCK, contentOf(block, version));
      this.#done[block] = version;
      this.writes++;
      const other = this.#random.pick(own);
      const found = await client.read(other * BLOCK, BLOCK);
      expect(versionOf(found, other)).toBe(this.#done[other]!);
    }
  }

  stop(): void {
    this.#isGoing = false;
  }

  /** What a snapshot may hold that `take` makes: see check(). */
  async around(take: () => Promise<unknown>): Promise<{ from: Uint32Array; to: Uint32Array }> {
    const from = this.#done.slice();
    await take();
    return { from, to: this.#begun.slice() };
  }

  get now(): { from: Uint32Array; to: Uint32Array } {
    return { from: this.#done, to: this.#done };
  }
}

function contentOf(block: number, version: number): Buffer {
  if (version === 0) return Buffer.alloc(BLOCK);
  const content = pattern(BLOCK, block * 65_537 + version);
  content.writeUInt32LE(version);
  return content;
}

/** -1: the block has never looked like this. */
function versionOf(found: Uint8Array, block: number): number {
  const bytes = Buffer.from(found);
  const version = bytes.readUInt32LE();
  return Buffer.compare(bytes, contentOf(block, version)) === 0 ? version : -1;
}

type Held = Awaited<ReturnType<Versions["around"]>>;

function check(what: string, disk: Uint8Array, { from, to }: Held): void {
  for (let block = 0; block < BLOCKS; block++) {
    const bytes = disk.subarray(block * BLOCK, (block + 1) * BLOCK);
    const version = versionOf(bytes, block);
    if (version >= from[block]! && version <= to[block]!) continue;
    throw new Error(`${what}: block ${block} is ${version}, not ${from[block]} to ${to[block]}`);
  }
}

const contentAt = (source: Source): Uint8Array => source.read(0, BYTES);

interface Scene extends RunningDaemon {
  readonly image: string;
  readonly file: (name: string) => string;
  readonly uri: string;
  open(): Promise<NbdClient>;
}

/** A qcow2 image in an iothread, exported over NBD as "disk". */
async function serve(create = "cluster_size=4k"): Promise<Scene> {
  await using made = new AsyncDisposableStack();
  const directory = made.use(await temporaryDirectory());
  const { file } = directory;
  const image = file("disk.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, image, String(BYTES)]);
  const socket = file("nbd.sock");
  const running = made.use(
    await startDaemon(directory.path, [
      ...["--object", "iothread,id=io0"],
      "--blockdev",
      `driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename=${image}`,
      ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
      ...["--export", "type=nbd,id=e0,node-name=disk,name=disk,writable=on,iothread=io0"],
    ]),
  );
  const all = made.move();
  return {
    ...running,
    image,
    file: (name) => file(name),
    uri: unixUri(socket, "disk"),
    open: () => NbdClient.open({ path: socket }, { exportName: "disk" }),
    [Symbol.asyncDispose]: () => all[Symbol.asyncDispose](),
  };
}

/** While several clients write. */
async function underWrites(scene: Scene, action: (versions: Versions) => Promise<void>) {
  const versions = new Versions(randomSeed());
  const clients = await Promise.all(Array.from({ length: 4 }, () => scene.open()));
  const work = clients.map((client, index) => versions.write(client, index, clients.length));
  try {
    await action(versions);
  } finally {
    versions.stop();
    await Promise.all(work);
  }
  for (const client of clients) client.close();
  return versions;
}

async function refused(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => "no error",
    (error: Error) => error.message,
  );
}

const internal = (qmp: Qmp, name: string) =>
  qmp.execute("blockdev-snapshot-internal-sync", { device: "disk", name });
const nodeOfExport = async (qmp: Qmp) => {
  const [exp] = await qmp.execute<{ "node-name": string }[]>("query-block-exports");
  return exp!["node-name"];
};

describe("internal snapshots", () => {
  for (const create of ["cluster_size=4k", "extended_l2=on", "lazy_refcounts=on", "compat=0.10"]) {
    test(`hold the disk of their moment while clients write: ${create}`, async () => {
      await using scene = await serve(create);
      const { qmp, image } = scene;
      const held = new Map<string, Held>();
      const versions = await underWrites(scene, async (all) => {
        for (let i = 0; i < 12; i++) {
          const before = all.writes;
          while (all.writes < before + 40) await sleep(2);
          const name = `s${i}`;
          held.set(name, await all.around(() => internal(qmp, name)));
          if (i % 3 !== 2) continue;
          const gone = `s${i - 1}`;
          const found = await qmp.execute("blockdev-snapshot-delete-internal-sync", {
            device: "disk",
            name: gone,
          });
          expect(found).toMatchObject({ name: gone, "vm-state-size": 0 });
          held.delete(gone);
        }
      });
      await qmp.execute("quit");
      await scene.daemon.exited;
      const checked = await attempt("qemu-img", ["check", image]);
      expect(checked.stdout).toContain("No errors were found");
      const listed = await run("qemu-img", ["snapshot", "-l", image]);
      for (const [name, expected] of held) {
        expect(listed).toContain(` ${name} `);
        const copy = scene.file("copy.raw");
        const from = ["-l", `snapshot.name=${name}`, image];
        await run("qemu-img", ["convert", "-O", "raw", ...from, copy]);
        check(name, readFileSync(copy), expected);
      }
      check("the disk", contentAt(openImage(image)), versions.now);
      await run("qemu-img", ["snapshot", "-a", "s0", image]);
      check("the disk again", contentAt(openImage(image)), held.get("s0")!);
      await run("qemu-img", ["snapshot", "-d", "s0", image]);
      expect(await run("qemu-img", ["check", image])).toContain("No errors");
    });
  }

  test("are taken together or not at all", async () => {
    await using scene = await serve();
    const { qmp, image } = scene;
    const action = (name: string) => ({
      type: "blockdev-snapshot-internal-sync",
      data: { device: "disk", name },
    });
    const twice = { actions: [action("a"), action("b"), action("a")] };
    await underWrites(scene, async () => {
      expect(await refused(qmp.execute("transaction", twice))).toBe(
        "Snapshot with name 'a' already exists on device 'disk'",
      );
      await qmp.execute("transaction", { actions: [action("c"), action("d")] });
    });
    await qmp.execute("quit");
    await scene.daemon.exited;
    expect(openImage(image).snapshots.map(({ name }) => name)).toEqual(["c", "d"]);
    expect(await run("qemu-img", ["check", image])).toContain("No errors");
  });
});

describe("overlays", () => {
  test("take over from their base in the midst of writes", async () => {
    await using scene = await serve();
    const { qmp, file } = scene;
    const names = ["disk"];
    const held: Held[] = [];
    const versions = await underWrites(scene, async (all) => {
      for (let i = 0; i < 10; i++) {
        const before = all.writes;
        while (all.writes < before + 40) await sleep(2);
        const [base, overlay] = [names.at(-1)!, `o${i}`];
        const path = file(`${overlay}.qcow2`);
        const made = { "snapshot-file": path, "snapshot-node-name": overlay };
        if (i % 2 === 0) {
          const args = { "node-name": base, ...made };
          held.push(await all.around(() => qmp.execute("blockdev-snapshot-sync", args)));
        } else {
          const below = file(`${base}.qcow2`);
          const backing = ["-b", below, "-F", "qcow2", "-u", path, String(BYTES)];
          await run("qemu-img", ["create", "-q", "-f", "qcow2", ...backing]);
          await qmp.execute("blockdev-add", {
            driver: "qcow2",
            "node-name": overlay,
            file: { driver: "file", filename: path },
            backing: null,
          });
          const args = { node: base, overlay };
          held.push(await all.around(() => qmp.execute("blockdev-snapshot", args)));
        }
        names.push(overlay);
        expect(await nodeOfExport(qmp)).toBe(overlay);
        // Nobody writes there any more.
        const [node] = (
          await qmp.execute<Record<string, unknown>[]>("query-named-block-nodes")
        ).filter((one) => one["node-name"] === base);
        expect(node?.ro).toBe(true);
      }
    });
    await qmp.execute("quit");
    await scene.daemon.exited;
    for (const [i, expected] of held.entries()) {
      check(names[i]!, contentAt(openChain(file(`${names[i]}.qcow2`))), expected);
      const path = file(`${names[i + 1]}.qcow2`);
      expect(await run("qemu-img", ["check", path])).toContain("No errors");
      const info = JSON.parse(await run("qemu-img", ["info", "--output=json", path]));
      expect(info["backing-filename"]).toBe(file(`${names[i]}.qcow2`));
      expect(info["backing-filename-format"]).toBe("qcow2");
    }
    const top = file(`${names.at(-1)}.qcow2`);
    check("the disk", contentAt(openChain(top)), versions.now);
    await run("qemu-img", ["convert", "-O", "raw", top, file("copy.raw")]);
    check("the disk by qemu-img", readFileSync(file("copy.raw")), versions.now);
  });

  test("that a transaction gives up leave everything as it was", async () => {
    await using scene = await serve();
    const { qmp, file } = scene;
    const versions = await underWrites(scene, async (all) => {
      for (let i = 0; i < 8; i++) {
        const before = all.writes;
        while (all.writes < before + 20) await sleep(2);
        const [first, second] = [`a${i}`, `b${i}`];
        const sync = (base: string, name: string) => ({
          type: "blockdev-snapshot-sync",
          data: {
            "node-name": base,
            "snapshot-file": file(`${name}.qcow2`),
            "snapshot-node-name": name,
          },
        });
        const inside = {
          type: "blockdev-snapshot-internal-sync",
          data: { device: second, name: "inside" },
        };
        const bitmap = { type: "block-dirty-bitmap-add", data: { node: "disk", name: "b" } };
        const abort = { type: "abort", data: {} };
        const actions = [bitmap, sync("disk", first), sync(first, second), inside, abort];
        expect(await refused(qmp.execute("transaction", { actions }))).toBe(
          "Transaction aborted using Abort action",
        );
        expect(await nodeOfExport(qmp)).toBe("disk");
      }
    });
    const nodes = await qmp.execute<Record<string, unknown>[]>("query-named-block-nodes");
    expect(nodes).toHaveLength(2);
    expect(nodes[0]).toMatchObject({ "node-name": "disk", ro: false });
    await qmp.execute("quit");
    await scene.daemon.exited;
    check("the disk", contentAt(openChain(scene.image)), versions.now);
    expect(await run("qemu-img", ["check", scene.image])).toContain("No errors");
  });

  test("that fail leave links, permissions and image locks as they were", async () => {
    await using scene = await serve();
    const { qmp, file } = scene;
    const create = ["create", "-q", "-f", "qcow2"];
    for (const name of ["o", "fixed"])
      await run("qemu-img", [...create, file(name), String(BYTES)]);
    for (const name of ["o", "fixed"]) {
      const below = { driver: "file", filename: file(name) };
      const more = { "node-name": name, "read-only": name === "fixed", backing: null };
      await qmp.execute("blockdev-add", { driver: "qcow2", file: below, ...more });
    }
    writeFileSync(file("garbage"), "no image");
    const identity = `:${statSync(scene.image).ino} `;
    const state = async () => ({
      nodes: (await qmp.execute<Record<string, unknown>[]>("query-named-block-nodes")).map(
        (node) => [node["node-name"], node.ro, node.active, node.file],
      ),
      links: (await qmp.execute<{ edges: unknown[] }>("x-debug-query-block-graph")).edges,
      exports: await qmp.execute("query-block-exports"),
      locks: readFileSync("/proc/locks", "utf8")
        .split("\n")
        .filter((line) => line.includes(identity))
        .map((line) => line.replace(/^\d+:/, ""))
        .sort(),
    });
    const sync = (path: string, more = {}) => ({
      type: "blockdev-snapshot-sync",
      data: { "node-name": "disk", "snapshot-file": path, "snapshot-node-name": "n", ...more },
    });
    const onto = (overlay: string) => ({
      type: "blockdev-snapshot",
      data: { node: "disk", overlay },
    });
    const inside = {
      type: "blockdev-snapshot-internal-sync",
      data: { device: "disk", name: "inside" },
    };
    const nowhere = "/nowhere/o.qcow2";
    for (const [actions, message] of [
      [[sync(nowhere)], `Could not create '${nowhere}': No such file or directory`],
      [[sync(file("garbage"), { mode: "existing" })], "Image is not in qcow2 format"],
      [[sync(scene.image, { mode: "existing" })], 'Failed to get "write" lock'],
      [[onto("fixed")], "Block node is read-only"],
      [
        [inside, onto("o"), sync(nowhere, { "node-name": "o" })],
        `Could not create '${nowhere}': No such file or directory`,
      ],
    ] as const) {
      const before = await state();
      expect(before.locks.length).toBeGreaterThan(0);
      expect(await refused(qmp.execute("transaction", { actions }))).toBe(message);
      expect(await state()).toEqual(before);
    }
    const client = await scene.open();
    await client.write(0, contentOf(0, 1));
    client.close();
  });

  test("leave exported bitmaps where they are, with who reads them", async () => {
    await using scene = await serve();
    const { qmp, file } = scene;
    await qmp.execute("block-export-del", { id: "e0" });
    await qmp.execute("block-dirty-bitmap-add", { node: "disk", name: "b", granularity: 4096 });
    const nbd = { type: "nbd", id: "e0", "node-name": "disk", name: "disk", writable: true };
    await qmp.execute("block-export-add", { ...nbd, bitmaps: ["b"] });
    const client = await scene.open();
    await client.write(8192, pattern(4096, 1));
    await qmp.execute("blockdev-snapshot-sync", {
      "node-name": "disk",
      "snapshot-file": file("o.qcow2"),
      "snapshot-node-name": "o",
    });
    await client.write(16_384, pattern(4096, 2));
    const map = await run("nbdinfo", ["--json", "--map=qemu:dirty-bitmap:b", scene.uri]);
    const dirty = (JSON.parse(map) as { offset: number; length: number; type: number }[])
      .filter(({ type }) => type === 1)
      .map(({ offset, length }) => [offset, length]);
    expect(dirty).toEqual([[8192, 4096]]);
    expect(
      await refused(qmp.execute("block-dirty-bitmap-remove", { node: "disk", name: "b" })),
    ).toContain("currently in use");
    expect(await refused(qmp.execute("blockdev-del", { "node-name": "disk" }))).toBe(
      "Node disk is in use",
    );
    client.close();
    await qmp.execute("block-export-del", { id: "e0", mode: "hard" });
    await qmp.execute("block-dirty-bitmap-remove", { node: "disk", name: "b" });
  });
});

describe("change-backing-file", () => {
  test("is for who opens the image next", async () => {
    await using scene = await serve();
    const { qmp, file } = scene;
    for (const [base, name] of [
      ["disk", "o0"],
      ["o0", "o1"],
    ] as const) {
      await qmp.execute("blockdev-snapshot-sync", {
        "node-name": base,
        "snapshot-file": file(`${name}.qcow2`),
        "snapshot-node-name": name,
      });
    }
    const client = await scene.open();
    await client.write(0, contentOf(0, 1));
    const change = (image: string, name: string) =>
      qmp.execute("change-backing-file", {
        device: "o1",
        "image-node-name": image,
        "backing-file": name,
      });
    const infoOf = async (name: string) =>
      JSON.parse(await run("qemu-img", ["info", "-U", "--output=json", file(name)]));
    for (const name of ["elsewhere.qcow2", "x".repeat(1023), "", file("disk.qcow2")]) {
      await change("o0", name);
      const info = await infoOf("o0.qcow2");
      expect([info["backing-filename"], info["backing-filename-format"]]).toEqual(
        name === "" ? [undefined, undefined] : [name, "qcow2"],
      );
    }
    expect(await refused(change("o0", "x".repeat(1024)))).toContain("Invalid argument");
    expect(await refused(change("disk", "x"))).toBe(
      "not allowing backing file change on an image without a backing file",
    );
    expect(versionOf(await client.read(0, BLOCK), 0)).toBe(1);
    client.close();
    await qmp.execute("quit");
    await scene.daemon.exited;
    expect(await run("qemu-img", ["check", file("o0.qcow2")])).toContain("No errors");
    expect(versionOf(openChain(file("o1.qcow2")).read(0, BLOCK), 0)).toBe(1);
  });
});

describe("overlays under FUSE", () => {
  test("take over while programs write and make the disk longer", async () => {
    await using directory = await temporaryDirectory();
    const { file } = directory;
    const [image, mountpoint] = [file("disk.qcow2"), file("mounted")];
    await run("qemu-img", ["create", "-q", "-f", "qcow2", image, String(MiB)]);
    writeFileSync(mountpoint, "");
    const named = `type=fuse,id=e0,node-name=disk,mountpoint=${mountpoint}`;
    await using daemon = await startDaemon(directory.path, [
      ...["--object", "iothread,id=io0"],
      "--blockdev",
      `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image}`,
      ...["--export", `${named},iothread=io0,writable=on,growable=on`],
    ]);
    const { qmp } = daemon;
    const disk = await open(mountpoint, "r+");
    let isGoing = true;
    let blocks = MiB / BLOCK;
    const versions: number[] = [];
    const work = async () => {
      const random = new Random(randomSeed());
      while (isGoing) {
        const block = random.below(blocks);
        const version = (versions[block] ?? 0) + 1;
        await disk.write(contentOf(block, version), 0, BLOCK, block * BLOCK);
        versions[block] = version;
        await disk.truncate(++blocks * BLOCK);
        // Beyond the end.
        versions[blocks] = 1;
        await disk.write(contentOf(blocks, 1), 0, BLOCK, blocks * BLOCK);
        blocks++;
      }
    };
    const done = work();
    let top = "disk";
    for (let i = 0; i < 12; i++) {
      const before = blocks;
      while (blocks < before + 8) await Promise.race([sleep(2), done]);
      const name = `o${i}`;
      await qmp.execute("blockdev-snapshot-sync", {
        "node-name": top,
        "snapshot-file": file(name),
        "snapshot-node-name": name,
      });
      top = name;
    }
    isGoing = false;
    await done;
    expect((await disk.stat()).size).toBe(blocks * BLOCK);
    await disk.close();
    await qmp.execute("quit");
    await daemon.daemon.exited;
    const found = openChain(file(top)).read(0, blocks * BLOCK);
    for (let block = 0; block < blocks; block++) {
      const bytes = found.subarray(block * BLOCK, (block + 1) * BLOCK);
      expect(versionOf(bytes, block)).toBe(versions[block] ?? 0);
    }
  });

  test("wait until the kernel no longer writes to the base directly", async () => {
    await using directory = await temporaryDirectory();
    const { file } = directory;
    const [image, mountpoint] = [file("disk.raw"), file("mounted")];
    await sparseImage(image, MiB);
    writeFileSync(mountpoint, "");
    await using daemon = await startDaemon(directory.path, [
      ...["--blockdev", `driver=file,node-name=disk-file,filename=${image}`],
      ...["--blockdev", "driver=raw,node-name=disk,file=disk-file"],
      ...["--export", `type=fuse,id=e0,node-name=disk,mountpoint=${mountpoint},writable=on`],
    ]);
    const { qmp } = daemon;
    const snapshot = () =>
      qmp.execute("blockdev-snapshot-sync", {
        "node-name": "disk",
        "snapshot-file": file("o.qcow2"),
        "snapshot-node-name": "o",
      });
    const fd = openSync(mountpoint, "r+");
    writeSync(fd, contentOf(0, 1), 0, BLOCK, 0);
    const answer = await refused(snapshot());
    if (answer !== "no error") {
      expect(answer).toContain("programs that the kernel lets read and write directly");
    }
    closeSync(fd);
    if (answer !== "no error") await snapshot();
    const again = openSync(mountpoint, "r+");
    const found = Buffer.alloc(BLOCK);
    readSync(again, found, 0, BLOCK, 0);
    expect(versionOf(found, 0)).toBe(1);
    writeSync(again, contentOf(0, 2), 0, BLOCK, 0);
    readSync(again, found, 0, BLOCK, 0);
    expect(versionOf(found, 0)).toBe(2);
    closeSync(again);
    await qmp.execute("quit");
    await daemon.daemon.exited;
    expect(versionOf(readFileSync(image).subarray(0, BLOCK), 0)).toBe(1);
    const copy = file("copy.raw");
    await run("qemu-img", ["convert", "-O", "raw", file("o.qcow2"), copy]);
    expect(versionOf(readFileSync(copy).subarray(0, BLOCK), 0)).toBe(2);
  });
});
