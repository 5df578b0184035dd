/**
 * qcow2 images of every kind that qemu-img makes, under concurrent random requests: compared with a
 * model while they run, and by qemu-img afterwards. OUTPORT_SEED repeats a run.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFile, writeFile } from "node:fs/promises";
import {
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_FUA,
  REQ_MAY_UNMAP,
} from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { run } from "../support/clients.ts";
import {
  assertSameBytes,
  KiB,
  MiB,
  pattern,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/images.ts";
import { type ImageFiles, type OpenedImage, openQcow2 } from "../support/qcow2-rig.ts";
import { Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";

const REQUESTS = 150;
const DEPTH = 8;
const REQUEST_BYTES_MAX = 256 * KiB;

interface Variant {
  readonly name: string;
  /** Of qemu-img create. */
  readonly create: string;
  readonly bytes: number;
  /** "short": ends before the image does. */
  readonly backing?: "raw" | "short" | "qcow2" | "compressed";
  /** What the image is full of, compressed or not, before the test. */
  readonly content?: "plain" | "compressed";
  readonly snapshot?: boolean;
  readonly dataFile?: boolean;
  readonly options?: Readonly<Record<string, unknown>>;
}

const TINY_CACHE = { "l2-cache-size": 2048, "l2-cache-entry-size": 512 };

const variants: readonly Variant[] = [
  { name: "64 KiB clusters", create: "cluster_size=65536", bytes: 20 * MiB },
  { name: "an odd length", create: "cluster_size=65536", bytes: 3 * MiB + 1536 },
  { name: "512-byte clusters", create: "cluster_size=512", bytes: 2 * MiB, options: TINY_CACHE },
  { name: "2 MiB clusters", create: "cluster_size=2097152", bytes: 20 * MiB },
  { name: "version 2", create: "compat=0.10,cluster_size=4096", bytes: 3 * MiB },
  {
    name: "version 2 over a backing file",
    create: "compat=0.10,cluster_size=4096",
    bytes: 3 * MiB,
    backing: "raw",
  },
  {
    name: "subclusters over a backing file",
    create: "cluster_size=65536,extended_l2=on",
    bytes: 7 * MiB,
    backing: "qcow2",
  },
  {
    name: "subclusters with a snapshot",
    create: "cluster_size=16384,extended_l2=on",
    bytes: 3 * MiB,
    content: "compressed",
    snapshot: true,
  },
  {
    name: "a short backing file",
    create: "cluster_size=65536",
    bytes: 7 * MiB,
    backing: "short",
    options: { "discard-no-unref": true },
  },
  {
    name: "a compressed backing file",
    create: "cluster_size=1024",
    bytes: 2 * MiB,
    backing: "compressed",
  },
  {
    name: "compressed clusters",
    create: "cluster_size=65536",
    bytes: 7 * MiB,
    content: "compressed",
  },
  {
    name: "zstd",
    create: "cluster_size=65536,compression_type=zstd",
    bytes: 7 * MiB,
    content: "compressed",
  },
  {
    name: "an internal snapshot",
    create: "cluster_size=4096",
    bytes: 4 * MiB,
    content: "plain",
    snapshot: true,
    options: TINY_CACHE,
  },
  { name: "lazy refcounts", create: "cluster_size=4096,lazy_refcounts=on", bytes: 4 * MiB },
  ...[1, 2, 4, 8, 32, 64].map((bits) => ({
    name: `refcounts of ${bits} bits`,
    create: `cluster_size=512,refcount_bits=${bits}`,
    bytes: MiB,
    options: { "pass-discard-other": true, "refcount-cache-size": 2048 },
  })),
  {
    name: "a refcount table that grows",
    create: "cluster_size=512,refcount_bits=64",
    bytes: 12 * MiB,
  },
  { name: "a data file", create: "cluster_size=65536", bytes: 7 * MiB, dataFile: true },
  {
    name: "a raw data file",
    create: "cluster_size=65536,data_file_raw=on",
    bytes: 7 * MiB,
    dataFile: true,
  },
];

let folder: TemporaryDirectory;
/** A failed test may still be at work on its own. */
let imageCount = 0;
let reactor: Reactor;

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

/** Data with holes in it. */
function content(random: Random, bytes: number): Uint8Array {
  const result = new Uint8Array(bytes);
  for (let i = 0; i < 20; i++) {
    const at = random.below(bytes / 512) * 512;
    const part = Math.min(bytes - at, (1 + random.below(600)) * 512);
    result.set(pattern(part, random.u32()), at);
  }
  return result;
}

async function makeBacking(
  random: Random,
  { backing, bytes }: Variant,
  model: Uint8Array,
): Promise<NonNullable<ImageFiles["backing"]>> {
  const length = backing === "short" ? Math.floor(bytes / 3 / 512) * 512 : bytes;
  const data = content(random, length);
  model.set(data);
  const raw = folder.file(`${imageCount}-base.raw`);
  await writeFile(raw, data);
  if (backing === "raw" || backing === "short") return { path: raw, format: "raw" };
  const path = folder.file(`${imageCount}-base.qcow2`);
  const compress = backing === "compressed" ? ["-c"] : [];
  await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", ...compress, raw, path]);
  return { path, format: "qcow2" };
}

/** Makes the image; `model` is what it holds then. */
async function makeImage(random: Random, variant: Variant, model: Uint8Array): Promise<ImageFiles> {
  const number = imageCount++;
  const path = folder.file(`${number}-top.qcow2`);
  const dataFile = variant.dataFile === true ? folder.file(`${number}-data.raw`) : undefined;
  const create =
    dataFile === undefined ? variant.create : `${variant.create},data_file=${dataFile}`;
  const backing =
    variant.backing === undefined ? undefined : await makeBacking(random, variant, model);
  if (variant.content === undefined) {
    const behind = backing === undefined ? [] : ["-b", backing.path, "-F", backing.format];
    const what = ["-o", create, ...behind, path, `${variant.bytes}`];
    await run("qemu-img", ["create", "-q", "-f", "qcow2", ...what]);
  } else {
    const raw = folder.file(`${number}-content.raw`);
    model.set(content(random, variant.bytes));
    await writeFile(raw, model);
    const compress = variant.content === "compressed" ? ["-c"] : [];
    const what = ["-O", "qcow2", "-o", create, ...compress, raw, path];
    await run("qemu-img", ["convert", "-f", "raw", ...what]);
  }
  if (variant.snapshot === true) await run("qemu-img", ["snapshot", "-c", "before", path]);
  return {
    path,
    options: variant.options ?? {},
    ...(backing === undefined ? {} : { backing }),
    ...(dataFile === undefined ? {} : { dataFile }),
  };
}

/** Requests of one image, several at a time, none over another. */
class Load {
  readonly #random: Random;
  readonly #image: OpenedImage;
  readonly #model: Uint8Array;
  readonly #busy: { start: number; end: number }[] = [];
  #left = REQUESTS;

  constructor(random: Random, image: OpenedImage, model: Uint8Array) {
    this.#random = random;
    this.#image = image;
    this.#model = model;
  }

  async run(): Promise<void> {
    await runOn(reactor, () =>
      Promise.all(Array.from({ length: DEPTH }, () => this.#work())).then(() => {}),
    );
  }

  async #work(): Promise<void> {
    const at = await reactor.allocate(REQUEST_BYTES_MAX);
    while (this.#left-- > 0) {
      const range = this.#pickRange();
      if (this.#busy.some(({ start, end }) => start < range.end && range.start < end)) {
        await reactor.sleep(1000);
        continue;
      }
      this.#busy.push(range);
      await this.#request(range.start, range.end - range.start, at);
      this.#busy.splice(this.#busy.indexOf(range), 1);
    }
    reactor.buffers.free(at);
  }

  #pickRange(): { start: number; end: number } {
    const random = this.#random;
    const unit = random.chance(0.7) ? 512 : 1;
    const length = this.#model.length;
    const start = Math.floor(random.below(length) / unit) * unit;
    const most = random.pick([4 * KiB, 64 * KiB, REQUEST_BYTES_MAX]);
    const bytes = Math.max(unit, Math.floor(random.below(most) / unit) * unit);
    return { start, end: Math.min(length, start + bytes) };
  }

  async #request(offset: number, bytes: number, at: number): Promise<void> {
    const random = this.#random;
    const { backend } = this.#image;
    const ask = async (op: Parameters<typeof backend.request>[0], flags = 0): Promise<void> => {
      const address = reactor.memory.address + at;
      const result = await backend.request(op, offset, bytes, address, flags);
      if (result !== 0) throw new Error(`op ${op} at ${offset}, ${bytes} bytes: ${result}`);
    };
    const kind = random.below(100);
    if (kind < 45) {
      const data = pattern(bytes, random.u32());
      reactor.memory.u8.set(data, at);
      await ask(OP_WRITE, random.chance(0.1) ? REQ_FUA : 0);
      this.#model.set(data, offset);
    } else if (kind < 65) {
      await ask(OP_READ);
      const read = reactor.memory.u8.subarray(at, at + bytes);
      assertSameBytes(read, this.#model.subarray(offset, offset + bytes), `read at ${offset}`);
    } else if (kind < 80) {
      await ask(OP_WRITE_ZEROES, random.pick([0, REQ_MAY_UNMAP]));
      this.#model.fill(0, offset, offset + bytes);
    } else if (kind < 92) {
      await ask(OP_DISCARD);
      await ask(OP_READ);
      this.#takeDiscarded(offset, reactor.memory.u8.subarray(at, at + bytes));
    } else {
      await ask(kind < 96 ? OP_FLUSH : OP_CACHE);
    }
  }

  /** What is discarded reads as before, or as zeroes. */
  #takeDiscarded(offset: number, read: Uint8Array): void {
    for (let i = 0; i < read.length; i++) {
      const same = read[i] === 0 || read[i] === this.#model[offset + i];
      if (!same) throw new Error(`discarded byte ${offset + i} is ${read[i]}`);
    }
    this.#model.set(read, offset);
  }
}

describe("qcow2 images made by qemu-img", () => {
  const seed = randomSeed();
  for (const variant of variants) {
    test(variant.name, async () => {
      const random = new Random(seed);
      const model = new Uint8Array(variant.bytes);
      const files = await makeImage(random, variant, model);
      // The second time with what the first one left.
      for (let round = 0; round < 2; round++) {
        const image = await openQcow2(reactor, files);
        await new Load(random, image, model).run();
        await image.close();
        expect(image.events).toEqual([]);
        await run("qemu-img", ["check", "-q", "-f", "qcow2", files.path]);
      }
      const raw = folder.file(`${imageCount}-model.raw`);
      await writeFile(raw, model);
      await run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "raw", files.path, raw]);
      if (!variant.create.includes("data_file_raw=on")) return;
      assertSameBytes(await readFile(files.dataFile!), model, "the data file");
    }, 60_000);
  }
});
