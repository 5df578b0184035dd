/**
 * qcow2 images of every kind that qemu-img makes, and of every kind that outport makes, under
 * concurrent random requests over NBD: compared with a model while they run, and by qemu-img
 * afterwards. OUTPORT_SEED repeats a run.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile, writeFile } from "node:fs/promises";
import { run } from "../support/clients.ts";
import {
  assertSameBytes,
  MiB,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/images.ts";
import { type Mode, NbdClient } from "../support/nbd-client.ts";
import { type RunningDaemon, startDaemon } from "../support/process.ts";
import { Random, randomSeed } from "../support/random.ts";
import { DiskModel } from "./disk-model.ts";
import { content, type Extent, extentsOf, makeImage, mapOf, variants } from "./qcow2-matrix.ts";

setDefaultTimeout(60_000);

const OPERATIONS = 90;
const DEPTH = 4;
const MODES: readonly Mode[] = ["simple", "structured", "extended"];
const CONTEXTS = ["base:allocation", "qemu:allocation-depth"];

const seed = randomSeed();
let folder: TemporaryDirectory;
let daemon: RunningDaemon;
let count = 0;

beforeAll(async () => {
  folder = await temporaryDirectory();
  const server = ["--nbd-server", `addr.type=unix,addr.path=${folder.file("nbd.sock")}`];
  daemon = await startDaemon(folder.path, [...server, "--object", "iothread,id=io0"]);
});

afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  await folder[Symbol.asyncDispose]();
});

interface Loaded {
  readonly content: Buffer;
  /** What the export told of itself in the end. */
  readonly base: readonly Extent[];
}

/** Requests of three clients to the image, by which it is still as the model has it. */
async function load(
  random: Random,
  path: string,
  before: Uint8Array,
  options: object,
): Promise<Loaded> {
  const { qmp } = daemon;
  const name = `n${count++}`;
  const unmap = { discard: "unmap" };
  const file = { driver: "file", filename: path, ...unmap };
  await qmp.execute("blockdev-add", {
    ...{ driver: "qcow2", "node-name": name, file, ...unmap, ...options },
  });
  await qmp.execute("block-export-add", {
    ...{ type: "nbd", id: name, "node-name": name, writable: true, "allocation-depth": true },
    ...(count % 2 === 0 ? { iothread: "io0" } : {}),
  });
  const address = { path: folder.file("nbd.sock") };
  const clients = await Promise.all(
    MODES.map((mode) =>
      NbdClient.open(address, {
        ...{ exportName: name, mode },
        ...(mode === "simple" ? {} : { contexts: CONTEXTS }),
      }),
    ),
  );
  const model = new DiskModel(before, random.u32());
  await model.run(clients, OPERATIONS, DEPTH);
  const last = clients.at(-1)!;
  assertSameBytes(await last.read(0, before.length), model.content, "the export");
  const { base } = await extentsOf(last);
  await Promise.all(clients.map((client) => client.disconnect()));
  await qmp.execute("block-export-del", { id: name, mode: "hard" });
  await qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === name);
  await qmp.execute("blockdev-del", { "node-name": name });
  return { content: model.content, base };
}

/** The image is sound, and to qemu-img what it was to NBD clients. */
async function verify(path: string, { content, base }: Loaded): Promise<void> {
  const raw = `${path}.model`;
  await writeFile(raw, content);
  const [map] = await Promise.all([
    mapOf(path),
    run("qemu-img", ["check", "-q", "-f", "qcow2", path]),
    run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "raw", path, raw]),
  ]);
  expect(base).toEqual(map);
}

describe("qcow2 images made by qemu-img", () => {
  // Engines matter less than images: with the other one a part has to do.
  const isPart = process.env.OUTPORT_IO_ENGINE === "epoll";
  for (const variant of isPart ? variants.filter((_, index) => index % 4 === 0) : variants) {
    test(variant.name, async () => {
      const random = new Random(seed);
      const prefix = folder.file(`image${count}`);
      const { path, content } = await makeImage(random, variant, prefix);
      const options = variant.options ?? {};
      const between = await load(random, path, content, options);
      // The second time with what the first one left.
      const after = await load(random, path, between.content, options);
      await verify(path, after);
      if (!variant.create.includes("data_file_raw=on")) return;
      assertSameBytes(await readFile(`${prefix}.data`), after.content, "the data file");
    });
  }
});

/** Members of BlockdevCreateOptionsQcow2; "data-file" and "backing-file" are made for it. */
const ownVariants: readonly Readonly<Record<string, unknown>>[] = [
  {},
  { version: "v2", "cluster-size": 512 },
  { version: "v2", "backing-file": "raw" },
  { "cluster-size": 2 * MiB, "refcount-bits": 1, "lazy-refcounts": true },
  { "cluster-size": 4096, "refcount-bits": 64, preallocation: "metadata" },
  { "extended-l2": true, "backing-file": "qcow2" },
  { "extended-l2": true, "backing-file": "qcow2", preallocation: "metadata" },
  { "extended-l2": true, "cluster-size": 16384, preallocation: "falloc" },
  { "cluster-size": 8192, preallocation: "full", "compression-type": "zstd" },
  { "data-file": "data", "cluster-size": 4096 },
  { "data-file": "data", "extended-l2": true, "backing-file": "raw" },
  { "data-file": "data", "data-file-raw": true, preallocation: "metadata" },
];

const OWN_BYTES = 2 * MiB + 3 * 512;

/** Runs a job that makes an image to its end. Throws what it failed with. */
async function create(options: object): Promise<void> {
  const { qmp } = daemon;
  const id = `job${count++}`;
  await qmp.execute("blockdev-create", { "job-id": id, options });
  const isDone = (data: Record<string, unknown>) => data.id === id && data.status === "concluded";
  await qmp.event("JOB_STATUS_CHANGE", isDone);
  const jobs = await qmp.execute<{ id: string; error?: string }[]>("query-jobs");
  const job = jobs.find((one) => one.id === id);
  await qmp.execute("job-dismiss", { id });
  if (job?.error !== undefined) throw new Error(job.error);
}

async function createFile(path: string, size: number): Promise<string> {
  await create({ driver: "file", filename: path, size });
  const name = `f${count++}`;
  const file = { driver: "file", filename: path, "node-name": name };
  await daemon.qmp.execute("blockdev-add", file);
  return name;
}

/** By blockdev-create; returns what it holds. */
async function makeOwn(random: Random, path: string, variant: object): Promise<Buffer> {
  const wanted = variant as Record<string, string>;
  const backing = wanted["backing-file"];
  const disk = backing === undefined ? Buffer.alloc(OWN_BYTES) : content(random, OWN_BYTES);
  const base = `${path}.base`;
  const file = await createFile(path, 0);
  const options = { driver: "qcow2", file, size: OWN_BYTES, ...variant };
  const nodes = [file];
  if (backing !== undefined) {
    await writeFile(`${base}.raw`, disk);
    await run("qemu-img", ["convert", "-f", "raw", "-O", backing, `${base}.raw`, base]);
    Object.assign(options, { "backing-file": base, "backing-fmt": backing });
  }
  if (wanted["data-file"] !== undefined) {
    const dataFile = await createFile(`${path}.data`, 0);
    Object.assign(options, { "data-file": dataFile });
    nodes.push(dataFile);
  }
  await create(options);
  for (const node of nodes) await daemon.qmp.execute("blockdev-del", { "node-name": node });
  return disk;
}

/** What qemu-io writes there, and what it is then. */
async function writeOutside(random: Random, path: string, disk: Buffer): Promise<void> {
  const commands: string[] = [];
  for (let i = 0; i < 12; i++) {
    const start = random.below(OWN_BYTES / 512) * 512;
    const bytes = Math.min(OWN_BYTES - start, (1 + random.below(200)) * 512);
    const value = random.chance(0.3) ? 0 : 1 + random.below(255);
    const how = value > 0 ? `-P ${value}` : random.pick(["-z", "-z -u"]);
    commands.push("-c", `write ${how} ${start} ${bytes}`);
    disk.fill(value, start, start + bytes);
  }
  await run("qemu-io", ["-f", "qcow2", "-d", "unmap", ...commands, path]);
}

describe("qcow2 images made by blockdev-create", () => {
  for (const variant of ownVariants) {
    test(JSON.stringify(variant), async () => {
      const random = new Random(seed);
      const path = folder.file(`own${count}.qcow2`);
      const disk = await makeOwn(random, path, variant);
      await run("qemu-img", ["check", "-q", "-f", "qcow2", path]);
      await writeOutside(random, path, disk);
      const result = await load(random, path, disk, {});
      await verify(path, result);
      if (variant["data-file-raw"] !== true) return;
      assertSameBytes(await readFile(`${path}.data`), result.content, "the data file");
    });
  }
});
