/** Dirty bitmaps in qcow2 images: exchanged with qemu-img and qemu-storage-daemon, bit for bit. */
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { attempt, requireClient, run } from "../support/clients.ts";
import { KiB, MiB, type TemporaryDirectory, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { COMMAND, startProgram } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";
import { Random, randomSeed } from "../support/random.ts";

setDefaultTimeout(180_000);

const theirs = (process.env.QSD_COMMAND ?? requireClient("qemu-storage-daemon")).split(" ");
const ours = COMMAND;
const BYTES = 8 * MiB + 512;
const PASSPHRASE = "Rumpelstilzchen";
const NAMES = ["coarse", "fine", "off"];

let folder: TemporaryDirectory;
let disk: string;

beforeEach(async () => {
  folder = await temporaryDirectory();
  disk = folder.file("disk.qcow2");
});

afterEach(() => folder[Symbol.asyncDispose]());

const create = (options: string, ...more: string[]) =>
  run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, ...more, disk, String(BYTES)]);
const bitmap = (...args: string[]) => run("qemu-img", ["bitmap", ...args]);

/** Runs `use` while a daemon has the disk open. */
async function opened<Result>(
  command: readonly string[],
  use: (qmp: Qmp, socket: string) => Promise<Result>,
  more = "",
  format = "",
): Promise<Result> {
  const file = (name: string) => join(folder.path, name);
  const daemon = startProgram([
    ...command,
    ...["--blockdev", `driver=file,node-name=f,filename=${disk}${more}`],
    ...["--object", `secret,id=key,data=${PASSPHRASE}`],
    ...["--blockdev", `driver=qcow2,node-name=disk,file=f${format}${more}`],
    ...["--nbd-server", `addr.type=unix,addr.path=${file("nbd.sock")}`],
    ...["--chardev", `socket,id=qmp,path=${file("qmp.sock")},server=on,wait=off`],
    ...["--monitor", "chardev=qmp", "--pidfile", file("pid")],
  ]);
  try {
    await daemon.ready(file("pid"));
    const qmp = await Qmp.connect(file("qmp.sock"));
    const result = await use(qmp, file("nbd.sock"));
    await qmp.execute("quit");
    qmp.close();
    await daemon.exitSoon();
    return result;
  } finally {
    await daemon.stop();
  }
}

interface Stored {
  readonly name: string;
  readonly granularity: number;
  readonly flags: string[];
}

/** What `qemu-img info` lists, and nothing wrong by `qemu-img check`. */
async function stored(): Promise<Stored[]> {
  const check = await attempt("qemu-img", ["check", "-f", "qcow2", disk]);
  expect(check.stdout).toContain("No errors");
  const info = JSON.parse(await run("qemu-img", ["info", "--output=json", disk]));
  return info["format-specific"].data.bitmaps ?? [];
}

/** As clients of either daemon see them. */
async function seen(qmp: Qmp): Promise<unknown[]> {
  type Info = { "node-name": string; "dirty-bitmaps"?: { name: string }[]; image: object };
  const nodes = await qmp.execute<Info[]>("query-named-block-nodes");
  const node = nodes.find((one) => one["node-name"] === "disk")!;
  const list: unknown[] = [];
  // Their order says which one was made or loaded last.
  const infos = (node["dirty-bitmaps"] ?? []).sort((a, b) => a.name.localeCompare(b.name));
  for (const info of infos) {
    const place = { node: "disk", name: info.name };
    list.push([info, await qmp.execute("x-debug-block-dirty-bitmap-sha256", place)]);
  }
  const specific = (node.image as { "format-specific": { data: { bitmaps?: unknown } } })[
    "format-specific"
  ];
  return [...list, specific.data.bitmaps];
}

async function work(qmp: Qmp, socket: string, random: Random, node = "disk"): Promise<void> {
  const options = { id: "e", type: "nbd", "node-name": node, name: "disk", writable: true };
  await qmp.execute("block-export-add", options);
  const client = await NbdClient.open({ path: socket }, { exportName: "disk" });
  for (let i = 0; i < 12; i++) {
    const offset = random.below(BYTES / 512 - 256) * 512;
    const bytes = 512 * (1 + random.below(200));
    if (random.chance(0.2)) await client.writeZeroes(offset, bytes);
    else await client.write(offset, Buffer.alloc(bytes, random.bytes(16)));
  }
  await client.disconnect();
  const gone = qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === "e");
  await qmp.execute("block-export-del", { id: "e", mode: "hard" });
  await gone;
}

const add = (qmp: Qmp, name: string, more: object = {}) =>
  qmp.execute("block-dirty-bitmap-add", { node: "disk", name, persistent: true, ...more });

async function addAll(qmp: Qmp): Promise<void> {
  await add(qmp, "coarse");
  await add(qmp, "fine", { granularity: 512 });
  await add(qmp, "off", { granularity: 4 * KiB, disabled: true });
}

describe("bitmaps go from one program to the other and back", () => {
  const kinds = [
    "cluster_size=65536",
    "cluster_size=512",
    "cluster_size=2M",
    "extended_l2=on",
    "refcount_bits=1,lazy_refcounts=on",
  ];
  for (const kind of kinds) {
    test(kind, async () => {
      await create(kind);
      const random = new Random(randomSeed());
      await opened(ours, (qmp) => addAll(qmp));
      for (const [writer, reader] of [
        [ours, theirs],
        [theirs, ours],
      ] as const) {
        const before = await opened(writer, async (qmp, socket) => {
          await work(qmp, socket, random);
          return seen(qmp);
        });
        const list = await stored();
        expect(list.map(({ name }) => name).sort()).toEqual(NAMES);
        expect(list.flatMap(({ flags }) => flags)).toEqual(["auto", "auto"]);
        expect(await opened(reader, seen)).toEqual(before);
      }
    });
  }

  test("also beside a data file and over a backing file, whose name must make room", async () => {
    const backing = folder.file("b".repeat(200));
    await run("qemu-img", ["create", "-q", "-f", "raw", backing, String(BYTES)]);
    await create("cluster_size=4096", "-b", backing, "-F", "raw");
    await opened(ours, addAll);
    expect((await stored()).length).toBe(3);
    const info = JSON.parse(await run("qemu-img", ["info", "--output=json", disk]));
    expect(info["backing-filename"]).toBe(backing);
    await create(`data_file=${folder.file("data.raw")},data_file_raw=on`);
    const random = new Random(randomSeed());
    const before = await opened(ours, async (qmp, socket) => {
      await addAll(qmp);
      await work(qmp, socket, random);
      return (await seen(qmp)).slice(0, -1);
    });
    expect((await opened(theirs, seen)).slice(0, -1)).toEqual(before);
  });
});

describe("bitmaps stay what they are", () => {
  test("while internal snapshots are taken and deleted", async () => {
    await create("cluster_size=4096");
    const random = new Random(randomSeed());
    const snapshot = (qmp: Qmp, what: string, name: string) =>
      qmp.execute(`blockdev-snapshot-${what}internal-sync`, { device: "disk", name });
    await opened(ours, addAll);
    for (const [writer, reader] of [
      [ours, theirs],
      [theirs, ours],
    ] as const) {
      const before = await opened(writer, async (qmp, socket) => {
        for (const name of ["one", "two"]) {
          await snapshot(qmp, "", name);
          await work(qmp, socket, random);
        }
        const marked = (await seen(qmp)).slice(0, -1);
        await snapshot(qmp, "delete-", "one");
        expect((await seen(qmp)).slice(0, -1)).toEqual(marked);
        return seen(qmp);
      });
      expect((await stored()).map(({ name }) => name).sort()).toEqual(NAMES);
      // It would be a change that they miss.
      const apply = await attempt("qemu-img", ["snapshot", "-a", "two", disk]);
      expect(apply.stderr).toContain("Device has active dirty bitmaps");
      expect(await opened(reader, seen)).toEqual(before);
      await run("qemu-img", ["snapshot", "-d", "two", disk]);
      expect(await opened(reader, seen)).toEqual(before);
    }
  });

  test("in an encrypted image, whose key stays what it is", async () => {
    const secret = ["--object", `secret,id=key,data=${PASSPHRASE}`];
    const luks = "encrypt.format=luks,encrypt.key-secret=key";
    await create(`cluster_size=4096,${luks},encrypt.iter-time=10`, ...secret);
    const encrypted = `,${luks}`;
    const random = new Random(randomSeed());
    await opened(ours, addAll, "", encrypted);
    for (const [writer, reader] of [
      [ours, theirs],
      [theirs, ours],
    ] as const) {
      const before = await opened(
        writer,
        async (qmp, socket) => {
          await work(qmp, socket, random);
          return seen(qmp);
        },
        "",
        encrypted,
      );
      const image = `driver=qcow2,encrypt.key-secret=key,file.filename=${disk}`;
      const check = await attempt("qemu-img", ["check", ...secret, "--image-opts", image]);
      expect(check.stdout).toContain("No errors");
      expect(await opened(reader, seen, "", encrypted)).toEqual(before);
    }
  });
});

describe("what qemu-img does to bitmaps", () => {
  test("is what the daemon finds", async () => {
    await create("cluster_size=65536");
    for (const name of ["a", "b", "gone", "off"]) await bitmap("--add", disk, name);
    await bitmap("--disable", disk, "off");
    await opened(ours, (qmp, socket) => work(qmp, socket, new Random(randomSeed())));
    await bitmap("--remove", disk, "gone");
    await bitmap("--clear", disk, "b");
    await bitmap("--merge", "a", disk, "off");
    await bitmap("--enable", disk, "off");
    const found = await opened(ours, seen);
    expect(await opened(theirs, seen)).toEqual(found);
    type Info = { name: string; count: number; recording: boolean };
    const infos = new Map((found.slice(0, -1) as [Info, unknown][]).map(([i]) => [i.name, i]));
    expect([...infos.keys()].sort()).toEqual(["a", "b", "off"]);
    expect(infos.get("a")!.count).toBeGreaterThan(0);
    expect(infos.get("b")).toMatchObject({ count: 0, recording: true });
    expect(infos.get("off")).toMatchObject({ count: infos.get("a")!.count, recording: true });
  });

  test("is done to what the daemon has stored", async () => {
    await create("cluster_size=65536");
    await opened(ours, addAll);
    await bitmap("--remove", disk, "fine");
    await bitmap("--enable", disk, "off");
    expect(await stored()).toEqual([
      { name: "off", granularity: 4096, flags: ["auto"] },
      { name: "coarse", granularity: 65536, flags: ["auto"] },
    ]);
  });
});

describe("an image", () => {
  test("tells that its bitmaps are in use, while it is open for writing", async () => {
    await create("cluster_size=65536");
    await opened(ours, addAll);
    const flags = async (): Promise<boolean[]> => {
      const text = await run("qemu-img", ["info", "-U", "--output=json", disk]);
      const list: Stored[] = JSON.parse(text)["format-specific"].data.bitmaps;
      return list.map((one) => one.flags.includes("in-use"));
    };
    await opened(ours, async (qmp) => {
      expect(await flags()).toEqual([true, true, true]);
      const reopen = (readOnly: boolean) =>
        qmp.execute("blockdev-reopen", {
          options: [
            { driver: "file", "node-name": "f", filename: disk, "read-only": readOnly },
            { driver: "qcow2", "node-name": "disk", file: "f", "read-only": readOnly },
          ],
        });
      await reopen(true);
      expect(await flags()).toEqual([false, false, false]);
      await reopen(false);
      expect(await flags()).toEqual([true, true, true]);
      await qmp.execute("blockdev-set-active", { "node-name": "disk", active: false });
      expect(await flags()).toEqual([false, false, false]);
      await qmp.execute("blockdev-set-active", { "node-name": "disk", active: true });
      expect(await flags()).toEqual([true, true, true]);
      await qmp.execute("blockdev-del", { "node-name": "disk" });
      expect(await flags()).toEqual([false, false, false]);
    });
    await opened(
      ours,
      async () => expect(await flags()).toEqual([false, false, false]),
      ",read-only=on",
    );
  });

  test("that holds another has recorded what this wrote when both become read-only", async () => {
    const inner = folder.file("inner.qcow2");
    const format = ["-f", "qcow2", "-o", "lazy_refcounts=on"];
    await run("qemu-img", ["create", "-q", ...format, inner, String(BYTES)]);
    await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", inner, disk]);
    await run("qemu-img", ["resize", "-q", disk, String(2 * BYTES)]);
    await bitmap("--add", "-g", "512", disk, "outer");
    const sha256 = (qmp: Qmp) =>
      qmp.execute("x-debug-block-dirty-bitmap-sha256", { node: "disk", name: "outer" });
    const before = await opened(ours, async (qmp, socket) => {
      const nodes = [
        { driver: "file", "node-name": "f", filename: disk },
        { driver: "qcow2", "node-name": "disk", file: "f" },
        { driver: "qcow2", "node-name": "inner", file: "disk" },
      ];
      await qmp.execute("blockdev-add", nodes[2]!);
      // What it keeps in memory is written when it becomes read-only.
      await add(qmp, "inside", { node: "inner" });
      await work(qmp, socket, new Random(randomSeed()), "inner");
      const options = nodes.map((one) => ({ ...one, "read-only": true }));
      await qmp.execute("blockdev-reopen", { options });
      return sha256(qmp);
    });
    expect(await opened(ours, sha256, ",read-only=on")).toEqual(before);
  });

  test("that is moved between iothreads keeps its bitmaps", async () => {
    await create("cluster_size=65536");
    const random = new Random(randomSeed());
    const before = await opened(ours, async (qmp, socket) => {
      await qmp.execute("object-add", { "qom-type": "iothread", id: "io0" });
      await addAll(qmp);
      await work(qmp, socket, random);
      const list = await seen(qmp);
      for (const iothread of ["io0", null]) {
        await qmp.execute("x-blockdev-set-iothread", { "node-name": "disk", iothread });
        expect((await seen(qmp)).slice(0, -1)).toEqual(list.slice(0, -1));
      }
      return list.slice(0, -1);
    });
    expect((await opened(theirs, seen)).slice(0, -1)).toEqual(before);
  });

  test("stays active while clients see a bitmap of it", async () => {
    await create("cluster_size=65536");
    await opened(ours, async (qmp) => {
      await addAll(qmp);
      const options = { id: "e", type: "nbd", "node-name": "disk", "allow-inactive": true };
      await qmp.execute("block-export-add", { ...options, bitmaps: ["off"] });
      const inactivate = (): Promise<unknown> =>
        qmp.execute("blockdev-set-active", { "node-name": "disk", active: false });
      await expect(inactivate()).rejects.toThrow(
        "Bitmap 'off' is currently in use by another operation and cannot be used",
      );
      const gone = qmp.event("BLOCK_EXPORT_DELETED");
      await qmp.execute("block-export-del", { id: "e" });
      await gone;
      await inactivate();
    });
    expect((await stored()).map(({ name }) => name).sort()).toEqual(NAMES);
  });

  test("that was resized has bitmaps of its new length, and refuses with a lost one", async () => {
    await create("cluster_size=65536");
    const resize = (qmp: Qmp, size: number) =>
      qmp.execute("block_resize", { "node-name": "disk", size });
    const before = await opened(ours, async (qmp, socket) => {
      await addAll(qmp);
      await work(qmp, socket, new Random(randomSeed()));
      await resize(qmp, 32 * MiB);
      await work(qmp, socket, new Random(1));
      await resize(qmp, 4 * MiB);
      return (await seen(qmp)).slice(0, -1);
    });
    expect((await opened(theirs, seen)).slice(0, -1)).toEqual(before);
    await crash();
    await opened(ours, async (qmp) => {
      const failure = resize(qmp, 8 * MiB);
      await expect(failure).rejects.toThrow(/^Bitmap '.*' is inconsistent and cannot be used$/);
    });
  });
});

/** Opens the image for writing, and ends without closing it. */
async function crash(): Promise<void> {
  const pid = folder.file("crash.pid");
  const daemon = startProgram([
    ...ours,
    ...["--blockdev", `driver=file,node-name=f,filename=${disk}`],
    ...["--blockdev", "driver=qcow2,node-name=disk,file=f", "--pidfile", pid],
  ]);
  await daemon.ready(pid);
  daemon.kill();
  await daemon.exited;
}

test("bitmaps of a crashed daemon are listed and can only be removed", async () => {
  await create("cluster_size=65536");
  await opened(ours, addAll);
  await crash();
  await opened(ours, async (qmp) => {
    const lost = await seen(qmp);
    expect(lost.slice(0, -1).map((one) => (one as [object])[0])).toMatchObject(
      NAMES.map(() => ({ inconsistent: true, recording: false, count: 0 })),
    );
    for (const what of ["clear", "enable", "disable"]) {
      const failure = qmp.execute(`block-dirty-bitmap-${what}`, { node: "disk", name: "fine" });
      await expect(failure).rejects.toThrow("Bitmap 'fine' is inconsistent and cannot be used");
    }
    await qmp.execute("block-dirty-bitmap-remove", { node: "disk", name: "fine" });
  });
  const left = [
    { name: "off", granularity: 4096, flags: ["in-use"] },
    { name: "coarse", granularity: 65536, flags: ["in-use", "auto"] },
  ];
  expect(await stored()).toEqual(left);
  await opened(ours, async (qmp) => {
    for (const { name } of left) {
      await qmp.execute("block-dirty-bitmap-remove", { node: "disk", name });
    }
  });
  expect(await stored()).toEqual([]);
});
