/**
 * Persistent dirty bitmaps on a disk whose power fails: whenever one is stored that is not in use,
 * it covers all that has changed since it was made. Checked by the independent reader. SIM_SEEDS:
 * how many seeds of each variant.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { DirtyBitmap } from "../../src/bitmaps/dirty-bitmap.ts";
import { bitmapsOf } from "../../src/bitmaps/node-bitmaps.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { openContext } from "../support/block.ts";
import { run } from "../support/clients.ts";
import { temporaryDirectory } from "../support/images.ts";
import { memorySource, Qcow2Image } from "../support/qcow2-reader.ts";
import { randomSeed } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import type { SimDiskNode } from "./disk-node.ts";
import { type PowerCutOptions, type PowerCutSubject, runPowerCuts } from "./power-cut.ts";
import { qcow2Subject } from "./qcow2-subject.ts";

const SEEDS = Number(process.env.SIM_SEEDS ?? 6);

interface Variant {
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
];

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
}

/** Makes bitmaps of new names where there are none of use, and knows the disk as it was then. */
class Recorder {
  readonly seen: Seen = { afterCut: 0, afterClose: 0, inUse: 0 };
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

async function subjectOf({ create, size, granularities }: Variant): Promise<{
  subject: PowerCutSubject;
  renew: () => Recorder;
}> {
  await using folder = await temporaryDirectory();
  const path = folder.file("image.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, path, size]);
  let recorder = new Recorder(granularities);
  const imageOf = (content: Uint8Array) => new Qcow2Image({ source: memorySource(content) });
  const inner = qcow2Subject({
    image: new Uint8Array(await readFile(path)),
    open: async (_reactor, disk) => {
      const image = imageOf((disk as SimDiskNode).disk.content());
      const content = image.read(0, image.bytes).slice();
      const children = { file: disk };
      const node = await qcow2.open(openContext(reactor, { children, discardUnmap: true }));
      await recorder.begin(node, content);
      return node;
    },
  });
  const check = (content: Uint8Array, clean: boolean): string => {
    const image = imageOf(content);
    const isDirty = image.header.incompatible.dirty;
    const wrong = isDirty && !clean ? "" : inner.check(content, clean);
    return wrong || recorder.check(image, clean);
  };
  const renew = (): Recorder => {
    recorder = new Recorder(granularities);
    return recorder;
  };
  return { subject: { ...inner, check }, renew };
}

describe("stored dirty bitmaps survive power cuts", () => {
  const first = randomSeed();
  const total: Seen = { afterCut: 0, afterClose: 0, inUse: 0 };

  async function runSeeds(variant: Variant, options: PowerCutOptions): Promise<void> {
    const { subject, renew } = await subjectOf(variant);
    for (let seed = first; seed < first + SEEDS; seed++) {
      const { seen } = renew();
      await runPowerCuts(reactor, subject, seed, options);
      for (const key of Object.keys(total) as (keyof Seen)[]) total[key] += seen[key];
    }
  }

  for (const variant of variants) {
    test(variant.create, async () => {
      await runSeeds(variant, { cuts: 4, requestsMax: 40 });
    }, 120_000);
  }

  test(`also on a disk that fails at times: ${variants[1]!.create}`, async () => {
    await runSeeds(variants[1]!, { failures: 0.01 });
  }, 120_000);

  test("which were in use at times, and had something to miss at others", () => {
    expect(total.inUse).toBeGreaterThan(0);
    expect(total.afterCut + total.afterClose).toBeGreaterThan(0);
  });
});
