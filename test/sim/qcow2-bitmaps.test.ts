/**
 * Persistent dirty bitmaps on a disk whose power fails: whenever one is stored that is not in use,
 * it covers all that has changed since it was made. Meanwhile the image is reopened and handed
 * over, and bitmaps and internal snapshots come and go. Checked by the independent reader.
 * SIM_SEEDS: how many seeds of each variant.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { DirtyBitmap } from "../../src/bitmaps/dirty-bitmap.ts";
import { bitmapsOf } from "../../src/bitmaps/node-bitmaps.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { OutportError } from "../../src/util/error.ts";
import { openContext } from "../support/block.ts";
import { run } from "../support/clients.ts";
import { decryptSector, encryptedImage } from "../support/encrypted-image.ts";
import { temporaryDirectory } from "../support/images.ts";
import { memorySource, Qcow2Image } from "../support/qcow2-reader.ts";
import { type Random, randomSeed } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import type { SimDiskNode } from "./disk-node.ts";
import { type PowerCutOptions, type PowerCutSubject, runPowerCuts } from "./power-cut.ts";
import { qcow2Subject } from "./qcow2-subject.ts";

const SEEDS = Number(process.env.SIM_SEEDS ?? 6);

interface Variant {
  /** Empty: an encrypted image. */
  readonly create: string;
  readonly size: string;
  readonly granularities: readonly number[];
}

const variants: readonly Variant[] = [
  { create: "cluster_size=65536", size: "4M", granularities: [65536, 512] },
  { create: "cluster_size=4096", size: "1M", granularities: [4096] },
  // The bits of one take more than a cluster.
  { create: "cluster_size=512,refcount_bits=64", size: "3M", granularities: [512, 2048] },
  { create: "cluster_size=4096,lazy_refcounts=on", size: "1M", granularities: [512, 65536] },
  { create: "", size: "1M", granularities: [4096] },
];

const SNAPSHOTS_MAX = 3;

const reactor = makeReactor("epoll");

afterAll(() => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

/** What was seen in all runs of a variant. */
interface Seen {
  /** Bitmaps that were stored, not in use, and had bits set: after a cut, and after closing. */
  afterCut: number;
  afterClose: number;
  inUse: number;
  /** What else was done to the image, and succeeded. */
  settled: number;
  handedOver: number;
  removed: number;
  snapshots: number;
}

/** Makes bitmaps of new names where there are none of use, and knows the disk as it was then. */
class Recorder {
  readonly seen: Seen = {
    ...{ afterCut: 0, afterClose: 0, inUse: 0 },
    ...{ settled: 0, handedOver: 0, removed: 0, snapshots: 0 },
  };
  #granularities: readonly number[];
  #before = new Map<string, Buffer>();
  #count = 0;

  constructor(granularities: readonly number[]) {
    this.#granularities = granularities;
  }

  async begin(node: BlockNode, content: Uint8Array): Promise<void> {
    const bitmaps = bitmapsOf(node);
    for (const bitmap of [...bitmaps.list]) {
      if (!bitmap.inconsistent) continue;
      await node.removeStoredBitmap!(bitmap.name);
      bitmaps.remove(bitmap);
    }
    for (const granularity of this.#granularities.slice(bitmaps.list.length)) {
      const name = `bitmap-${this.#count++}`;
      await node.checkNewBitmap!(name, granularity);
      const options = { name, bytes: node.bytes, granularity, persistent: true, enabled: true };
      bitmaps.add(new DirtyBitmap(options));
      this.#before.set(name, Buffer.from(content));
    }
  }

  /** `content`: of the disk, when all is flushed. */
  async interrupt(node: BlockNode, random: Random, content: () => Uint8Array): Promise<void> {
    const { seen } = this;
    switch (random.below(4)) {
      case 0:
        // To read-only, which is taken back.
        await node.settle!("read-only");
        await node.unsettle!();
        seen.settled++;
        break;
      case 1:
        await node.settle!("handover");
        await node.invalidate!();
        seen.handedOver++;
        break;
      case 2: {
        const { list } = bitmapsOf(node);
        // All are gone when the image could not be looked at again.
        if (list.length === 0) break;
        const bitmap = random.pick(list);
        await node.removeStoredBitmap!(bitmap.name);
        bitmapsOf(node).remove(bitmap);
        seen.removed++;
        if ((await node.flush()) === 0) await this.begin(node, content());
        break;
      }
      default:
        if ((await changeSnapshots(node, random)) === 0) seen.snapshots++;
    }
  }

  /** Empty, or what is wrong. */
  check(image: Qcow2Image, clean: boolean): string {
    if (!image.header.autoclearBitmaps) return "";
    const now = image.read(0, image.bytes);
    for (const bitmap of image.bitmaps) {
      if (bitmap.inUse) this.seen.inUse++;
      if (bitmap.inUse && clean) return `${bitmap.name} is in use after closing`;
      if (bitmap.inUse) continue;
      const bits = image.bitmapBits(bitmap);
      if (bits.some((byte) => byte !== 0)) this.seen[clean ? "afterClose" : "afterCut"]++;
      const before = this.#before.get(bitmap.name)!;
      const piece = Math.min(bitmap.granularityBytes, now.length);
      for (let at = 0; at < now.length; at += piece) {
        const bit = at / bitmap.granularityBytes;
        if (((bits[bit >> 3]! >> (bit & 7)) & 1) === 1) continue;
        const end = Math.min(at + piece, now.length);
        if (before.compare(now, at, end, at, end) === 0) continue;
        return `${bitmap.name} misses the change at ${at}`;
      }
    }
    return "";
  }
}

/** 0 or -errno. */
async function changeSnapshots(node: BlockNode, random: Random): Promise<number> {
  const { image } = node.describe();
  const listed = (image!.snapshots ?? []) as { id: string; name: string }[];
  if (listed.length > 0 && (listed.length >= SNAPSHOTS_MAX || random.chance(0.4))) {
    const { id, name } = random.pick(listed);
    return node.deleteSnapshot!(id, name);
  }
  const result = await node.takeSnapshot!("s", 1e15);
  return typeof result === "number" ? result : 0;
}

/** The image as it is made, and what is needed to open and to read it. */
async function imageOf({ create, size }: Variant): Promise<{
  image: Uint8Array;
  key?: Uint8Array;
}> {
  if (create === "") return encryptedImage();
  await using folder = await temporaryDirectory();
  const path = folder.file("image.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, path, size]);
  return { image: new Uint8Array(await readFile(path)) };
}

async function subjectOf(variant: Variant): Promise<{
  subject: PowerCutSubject;
  interrupt: (node: BlockNode, random: Random, mayFail: boolean) => Promise<string>;
  renew: () => Recorder;
}> {
  const { granularities } = variant;
  const { image: first, key } = await imageOf(variant);
  let recorder = new Recorder(granularities);
  let disk: SimDiskNode;
  const decrypt = key && ((host: number, data: Uint8Array) => decryptSector(key, host, data));
  const readerOf = (content: Uint8Array) => {
    return new Qcow2Image({ source: memorySource(content), ...(decrypt && { decrypt }) });
  };
  const contentNow = (): Uint8Array => {
    const image = readerOf(disk.disk.content());
    return image.read(0, image.bytes).slice();
  };
  const inner = qcow2Subject({
    image: first,
    ...(decrypt && { decrypt }),
    open: async (_reactor, file) => {
      disk = file as SimDiskNode;
      const content = contentNow();
      const options = { encrypt: { format: "luks", "key-secret": "key" } };
      const more = key && { options, key: key.slice() };
      const common = { children: { file }, discardUnmap: true };
      const node = await qcow2.open(openContext(reactor, { ...common, ...more }));
      await recorder.begin(node, content);
      return node;
    },
  });
  const interrupt = async (node: BlockNode, random: Random, mayFail: boolean): Promise<string> => {
    try {
      await recorder.interrupt(node, random, contentNow);
    } catch (error) {
      if (!(error instanceof OutportError)) throw error;
      return mayFail ? "" : error.message;
    }
    return "";
  };
  const check = (content: Uint8Array, clean: boolean): string => {
    const image = readerOf(content);
    const isDirty = image.header.incompatible.dirty;
    const wrong = isDirty && !clean ? "" : inner.check(content, clean);
    return wrong || recorder.check(image, clean);
  };
  const renew = (): Recorder => {
    recorder = new Recorder(granularities);
    return recorder;
  };
  return { subject: { ...inner, check }, interrupt, renew };
}

describe("stored dirty bitmaps survive power cuts", () => {
  const first = randomSeed();
  const total = new Recorder([]).seen;

  async function runSeeds(variant: Variant, options: PowerCutOptions): Promise<void> {
    const { subject: inner, interrupt, renew } = await subjectOf(variant);
    const mayFail = (options.failures ?? 0) > 0;
    const subject: PowerCutSubject = {
      ...inner,
      interrupt: (node, random) => interrupt(node, random, mayFail),
    };
    // The reader takes its time to decrypt.
    const seeds = variant.create === "" ? Math.ceil(SEEDS / 4) : SEEDS;
    for (let seed = first; seed < first + seeds; seed++) {
      const { seen } = renew();
      await runPowerCuts(reactor, subject, seed, options);
      for (const key of Object.keys(total) as (keyof Seen)[]) total[key] += seen[key];
    }
  }

  for (const variant of variants) {
    test(variant.create || "encrypted", async () => {
      await runSeeds(variant, { cuts: 4, requestsMax: 40 });
    }, 120_000);
  }

  test(`also on a disk that fails at times: ${variants[1]!.create}`, async () => {
    await runSeeds(variants[1]!, { failures: 0.02 });
  }, 120_000);

  test("which were in use at times, and had something to miss at others", () => {
    const { afterCut, afterClose, ...others } = total;
    expect(afterCut + afterClose).toBeGreaterThan(0);
    expect(Object.entries(others).filter(([, count]) => count === 0)).toEqual([]);
  });
});
