/**
 * The compress filter over qcow2 images of every kind, under concurrent random requests, some of
 * them past it: compared with a model while they run, and by qemu-img afterwards. OUTPORT_SEED
 * repeats a run.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile, writeFile } from "node:fs/promises";
import { BlockBackend } from "../../src/block/backend.ts";
import { compress } from "../../src/block/drivers/compress.ts";
import {
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_MAY_UNMAP,
} from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { openContext } from "../support/block.ts";
import { run } from "../support/clients.ts";
import {
  assertSameBytes,
  KiB,
  MiB,
  pattern,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { runDaemon, startDaemon } from "../support/process.ts";
import { openQcow2 } from "../support/qcow2-rig.ts";
import { Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";
import { DiskModel } from "./disk-model.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

const REQUESTS = 150;
const DEPTH = 8;
const REQUEST_BYTES_MAX = 256 * KiB;

interface Variant {
  /** Of qemu-img create. */
  readonly create: string;
  readonly bytes: number;
  /** What the image is full of before the test, as `qemu-img convert -c` has it. */
  readonly isFull?: boolean;
  readonly hasSnapshot?: boolean;
  readonly hasBacking?: boolean;
}

const VARIANTS: readonly Variant[] = [
  { create: "cluster_size=512", bytes: MiB },
  { create: "cluster_size=4k,compression_type=zstd", bytes: 3 * MiB, isFull: true },
  { create: "cluster_size=64k", bytes: 5 * MiB },
  { create: "cluster_size=64k", bytes: 5 * MiB, isFull: true, hasSnapshot: true },
  { create: "cluster_size=64k,compression_type=zstd", bytes: 5 * MiB, hasBacking: true },
  { create: "cluster_size=2M", bytes: 20 * MiB, isFull: true },
  { create: "cluster_size=2M,compression_type=zstd", bytes: 20 * MiB },
  { create: "cluster_size=64k,extended_l2=on", bytes: 5 * MiB, isFull: true },
  { create: "cluster_size=16k,extended_l2=on,compression_type=zstd", bytes: MiB, hasBacking: true },
  { create: "cluster_size=4k,compat=0.10", bytes: 2 * MiB, isFull: true },
  { create: "cluster_size=4k,refcount_bits=1", bytes: 2 * MiB },
  { create: "cluster_size=4k,refcount_bits=64,lazy_refcounts=on", bytes: 2 * MiB },
];

let folder: TemporaryDirectory;
let reactor: Reactor;
let imageCount = 0;
const seed = randomSeed();

beforeAll(async () => {
  folder = await temporaryDirectory();
  reactor = makeReactor("io_uring");
});

afterAll(async () => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
  await folder[Symbol.asyncDispose]();
});

/** Text-like, noise, or both. */
function someBytes(random: Random, bytes: number): Uint8Array {
  const data = new Uint8Array(bytes);
  const unit = pattern(1 + random.below(300), random.u32());
  for (let at = 0; at < bytes; at += unit.length) data.set(unit.subarray(0, bytes - at), at);
  if (random.chance(0.3)) {
    const from = random.below(bytes);
    data.set(pattern(1 + random.below(bytes - from), random.u32()), from);
  }
  return data;
}

interface MadeImage {
  readonly path: string;
  readonly backing?: { readonly path: string; readonly format: "raw" };
}

/** `model` is what it holds then. */
async function makeImage(random: Random, variant: Variant, model: Uint8Array): Promise<MadeImage> {
  const { create, bytes, isFull = false, hasSnapshot = false, hasBacking = false } = variant;
  const path = folder.file(`${imageCount}.qcow2`);
  const raw = folder.file(`${imageCount++}.raw`);
  if (isFull || hasBacking) {
    for (let at = 0; at < bytes; at += MiB) {
      if (random.chance(0.8)) model.set(someBytes(random, Math.min(MiB, bytes - at)), at);
    }
    await writeFile(raw, model);
  }
  const behind = hasBacking ? ["-b", raw, "-F", "raw"] : [];
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, ...behind, path, `${bytes}`]);
  if (isFull) {
    await run("qemu-img", ["convert", "-n", "-c", "-f", "raw", "-O", "qcow2", raw, path]);
  }
  if (hasSnapshot) await run("qemu-img", ["snapshot", "-c", "before", path]);
  return hasBacking ? { path, backing: { path: raw, format: "raw" } } : { path };
}

/** Requests of one image, several at a time, none over another. */
class Load {
  readonly #random: Random;
  /** Through the filter, and past it. */
  readonly #backends: readonly BlockBackend[];
  readonly #model: Uint8Array;
  readonly #busy: { start: number; end: number }[] = [];
  #left = REQUESTS;

  constructor(random: Random, backends: readonly BlockBackend[], model: Uint8Array) {
    this.#random = random;
    this.#backends = backends;
    this.#model = model;
  }

  async run(): Promise<void> {
    const work = async (): Promise<void> => {
      const at = await reactor.allocate(REQUEST_BYTES_MAX);
      while (this.#left-- > 0) await this.#one(at);
      reactor.buffers.free(at);
    };
    await runOn(reactor, () => Promise.all(Array.from({ length: DEPTH }, work)));
  }

  async #one(at: number): Promise<void> {
    const random = this.#random;
    const unit = random.chance(0.7) ? 512 : 1;
    const start = Math.floor(random.below(this.#model.length) / unit) * unit;
    const most = random.pick([4 * KiB, 64 * KiB, REQUEST_BYTES_MAX]);
    const bytes = Math.max(unit, Math.floor(random.below(most) / unit) * unit);
    const end = Math.min(this.#model.length, start + bytes);
    if (this.#busy.some((other) => other.start < end && start < other.end)) {
      await reactor.sleep(1000);
      return;
    }
    const range = { start, end };
    this.#busy.push(range);
    await this.#request(start, end - start, at);
    this.#busy.splice(this.#busy.indexOf(range), 1);
  }

  async #request(offset: number, bytes: number, at: number): Promise<void> {
    const random = this.#random;
    const backend = this.#backends[random.chance(0.8) ? 0 : 1]!;
    const ask = async (op: Parameters<typeof backend.request>[0], flags = 0): Promise<void> => {
      const address = reactor.memory.address + at;
      const result = await backend.request(op, offset, bytes, address, flags);
      if (result !== 0) throw new Error(`op ${op} at ${offset}, ${bytes} bytes: ${result}`);
    };
    const buffer = reactor.memory.u8.subarray(at, at + bytes);
    const known = this.#model.subarray(offset, offset + bytes);
    const kind = random.below(100);
    if (kind < 45) {
      const data = someBytes(random, bytes);
      buffer.set(data);
      await ask(OP_WRITE);
      known.set(data);
    } else if (kind < 70) {
      await ask(OP_READ);
      assertSameBytes(buffer, known, `read at ${offset}`);
    } else if (kind < 82) {
      await ask(OP_WRITE_ZEROES, random.pick([0, REQ_MAY_UNMAP]));
      known.fill(0);
    } else if (kind < 94) {
      await ask(OP_DISCARD);
      await ask(OP_READ);
      const isOld = buffer.every((byte, i) => byte === 0 || byte === known[i]);
      if (!isOld) throw new Error(`discarded bytes at ${offset} are others`);
      known.set(buffer);
    } else {
      await ask(OP_FLUSH);
    }
  }
}

async function expectSnapshot(path: string, content: Uint8Array): Promise<void> {
  const kept = `${path}.before`;
  await run("qemu-img", ["convert", "-l", "before", "-O", "raw", path, kept]);
  assertSameBytes(await readFile(kept), content, "the snapshot");
}

describe("compressed writes among others", () => {
  for (const [index, variant] of VARIANTS.entries()) {
    test(`${index}: ${variant.create}`, async () => {
      const random = new Random(seed + index);
      const model = new Uint8Array(variant.bytes);
      const files = await makeImage(random, variant, model);
      const first = model.slice();
      // The second time with what the first one left.
      for (let round = 0; round < 2; round++) {
        const image = await openQcow2(reactor, files);
        const context = openContext(reactor, {
          discardUnmap: true,
          children: { file: image.node },
        });
        const filter = await compress.open(context);
        const access = { writable: true, writethrough: false };
        const backend = new BlockBackend(reactor, filter, access);
        await new Load(random, [backend, image.backend], model).run();
        await runOn(reactor, () => backend.close());
        await image.close();
        expect(image.events).toEqual([]);
        await run("qemu-img", ["check", "-q", "-f", "qcow2", files.path]);
      }
      const raw = `${files.path}.model`;
      await writeFile(raw, model);
      await run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "raw", files.path, raw]);
      const said = JSON.parse(await run("qemu-img", ["check", "--output=json", files.path]));
      if (variant.hasSnapshot === true) await expectSnapshot(files.path, first);
      // The few that are so large have all been written in part, past the filter.
      const least = variant.create.startsWith("cluster_size=2M") ? 0 : 1;
      expect(said["compressed-clusters"] ?? 0).toBeGreaterThanOrEqual(least);
    });
  }
});

function filterArgs(path: string, socket: string): string[] {
  const file = { driver: "file", filename: path };
  const image = { driver: "qcow2", "node-name": "image", discard: "unmap", file };
  const filter = { driver: "compress", "node-name": "disk", discard: "unmap", file: "image" };
  return [
    ...["--blockdev", JSON.stringify(image), "--blockdev", JSON.stringify(filter)],
    ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
    ...["--export", "type=nbd,id=e0,node-name=disk,name=disk,writable=on"],
  ];
}

interface BitmapNode {
  readonly "dirty-bitmaps"?: readonly { readonly count: number }[];
}

describe("an export of the filter", () => {
  for (const type of ["zlib", "zstd"]) {
    test(`takes what qemu-img converts, compressed: ${type}`, async () => {
      await using own = await temporaryDirectory();
      const path = own.file("disk.qcow2");
      const socket = own.file("nbd.sock");
      // Always the same: how much of it is noise depends on it.
      const random = new Random(1);
      const content = new Uint8Array(8 * MiB);
      for (let at = 0; at < 6 * MiB; at += MiB) content.set(someBytes(random, MiB), at);
      content.set(pattern(MiB, seed), 2 * MiB);
      await writeFile(own.file("disk.raw"), content);
      const options = `compression_type=${type}`;
      await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, path, "8M"]);
      {
        await using _ = await startDaemon(own.path, filterArgs(path, socket));
        const uri = unixUri(socket, "disk");
        await run("qemu-img", ["convert", "-n", "-W", "-f", "raw", own.file("disk.raw"), uri]);
        await run("qemu-img", ["compare", "-q", "-f", "raw", own.file("disk.raw"), uri]);
        expect(JSON.parse(await run("nbdinfo", ["--json", uri])).exports[0]).toMatchObject({
          block_size_minimum: 64 * KiB,
          block_size_preferred: 64 * KiB,
        });
        const extents: { type: number }[] = JSON.parse(
          await run("nbdinfo", ["--map", "--json", uri]),
        );
        expect(extents.map((extent) => extent.type)).toEqual([0, 3]);
      }
      await run("qemu-img", ["check", "-q", path]);
      await run("qemu-img", ["compare", "-q", own.file("disk.raw"), path]);
      const said = JSON.parse(await run("qemu-img", ["check", "--output=json", path]));
      // All but the noise.
      expect(said["compressed-clusters"]).toBeGreaterThan(60);
      const image = JSON.parse(await run("qemu-img", ["info", "--output=json", path]));
      expect(image["format-specific"].data["compression-type"]).toBe(type);
      expect(image["actual-size"]).toBeLessThan(4 * MiB);
    });
  }

  test("does what clients ask at random, several at a time", async () => {
    await using own = await temporaryDirectory();
    const path = own.file("disk.qcow2");
    const socket = own.file("nbd.sock");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", path, "3M"]);
    const model = new DiskModel(new Uint8Array(3 * MiB), seed);
    {
      await using _ = await startDaemon(own.path, filterArgs(path, socket));
      const open = (mode: "structured" | "extended") =>
        NbdClient.open(
          { path: socket },
          { exportName: "disk", mode, contexts: ["base:allocation"] },
        );
      const clients = [await open("structured"), await open("extended")];
      await model.run(clients, 1500, 6);
      await Promise.all(clients.map((client) => client.disconnect()));
    }
    await writeFile(own.file("model"), model.content);
    await run("qemu-img", ["check", "-q", path]);
    await run("qemu-img", ["compare", "-q", "-F", "raw", path, own.file("model")]);
  });

  test("marks what is written in bitmaps of the image below, too", async () => {
    await using own = await temporaryDirectory();
    const path = own.file("disk.qcow2");
    const socket = own.file("nbd.sock");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", path, "1M"]);
    await using running = await startDaemon(own.path, filterArgs(path, socket));
    const { qmp } = running;
    for (const node of ["image", "disk"]) {
      await qmp.execute("block-dirty-bitmap-add", { node, name: "changed" });
    }
    const io = ["-f", "raw", "-c", "write 192k 128k", unixUri(socket, "disk")];
    await run("qemu-io", io);
    const nodes = await qmp.execute<BitmapNode[]>("query-named-block-nodes", { flat: true });
    const counts = nodes.flatMap((node) => node["dirty-bitmaps"] ?? []).map(({ count }) => count);
    expect(counts).toEqual([128 * KiB, 128 * KiB]);
  });

  test("can't be writable where the last cluster is not whole", async () => {
    await using own = await temporaryDirectory();
    const path = own.file("disk.qcow2");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", path, "1000448"]);
    const { exit, stderr } = await runDaemon(filterArgs(path, own.file("nbd.sock")));
    expect(exit).toBe(1);
    expect(stderr).toContain(
      "Cannot get 'write' permission without 'resize': " +
        "Image size is not a multiple of request alignment",
    );
  });

  test("can't write to an external data file", async () => {
    await using own = await temporaryDirectory();
    const path = own.file("disk.qcow2");
    const socket = own.file("nbd.sock");
    const options = `data_file=${own.file("data.raw")}`;
    await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, path, "1M"]);
    await using _ = await startDaemon(own.path, filterArgs(path, socket));
    const io = run("qemu-io", ["-f", "raw", "-c", "write 0 64k", unixUri(socket, "disk")]);
    await expect(io).rejects.toThrow("Operation not supported");
  });
});

describe("blockdev-add of the filter", () => {
  for (const driver of ["null-co", "raw", "file"]) {
    test(`refuses to compress for ${driver}`, async () => {
      await using own = await temporaryDirectory();
      await writeFile(own.file("disk"), new Uint8Array(MiB));
      const file = { driver: "file", filename: own.file("disk") };
      const child = { "null-co": { driver: "null-co" }, raw: { driver: "raw", file }, file }[
        driver
      ];
      const node = JSON.stringify({ driver: "compress", "node-name": "disk", file: child });
      const { exit, stderr } = await runDaemon(["--blockdev", node]);
      expect(exit).toBe(1);
      expect(stderr).toContain(`Compression is not supported for underlying format: ${driver}\n`);
    });
  }
});
