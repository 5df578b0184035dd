/**
 * Compressed writes on a disk whose power fails: clusters that share host clusters, and sectors of
 * them, with others that are flushed, overwritten or given up. SIM_SEEDS: how many seeds of each.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFile, writeFile } from "node:fs/promises";
import { compress } from "../../src/block/drivers/compress.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { openContext } from "../support/block.ts";
import { run } from "../support/clients.ts";
import { temporaryDirectory } from "../support/images.ts";
import { randomSeed } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import { firstVersions } from "./guest-model.ts";
import { type PowerCutOptions, type PowerCutSubject, runManyPowerCuts } from "./power-cut.ts";
import { qcow2Subject } from "./qcow2-subject.ts";

const SEEDS = Number(process.env.SIM_SEEDS ?? 6);
const KiB = 1024;

interface Variant {
  readonly create: string;
  readonly bytes: number;
  readonly contentBytes?: number;
  readonly snapshot?: boolean;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly run?: PowerCutOptions;
}

const variants: readonly Variant[] = [
  { create: "cluster_size=4k", bytes: 512 * KiB },
  { create: "cluster_size=4k,compression_type=zstd", bytes: 512 * KiB },
  { create: "cluster_size=512", bytes: 128 * KiB },
  { create: "cluster_size=4k,refcount_bits=1", bytes: 256 * KiB },
  { create: "cluster_size=4k,refcount_bits=2", bytes: 256 * KiB },
  { create: "cluster_size=1k,lazy_refcounts=on", bytes: 256 * KiB },
  {
    create: "cluster_size=4k",
    bytes: 128 * KiB,
    options: { "pass-discard-other": true, "pass-discard-request": true },
  },
  { create: "cluster_size=16k,extended_l2=on", bytes: 512 * KiB },
  { create: "cluster_size=4k", bytes: 256 * KiB, contentBytes: 200 * KiB, snapshot: true },
  // On offload threads: such a seed need not come to the same again.
  { create: "cluster_size=64k", bytes: 1024 * KiB },
  { create: "cluster_size=4k", bytes: 256 * KiB, run: { requestAlignment: 4096 } },
  { create: "cluster_size=4k", bytes: 256 * KiB, run: { failures: 0.01 } },
];

const reactor = makeReactor("epoll");

afterAll(() => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

async function subjectOf(variant: Variant): Promise<PowerCutSubject> {
  const { create, bytes, contentBytes = 0, snapshot = false, options = {} } = variant;
  await using folder = await temporaryDirectory();
  const path = folder.file("image.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, path, String(bytes)]);
  if (contentBytes > 0) {
    const content = new Uint8Array(bytes);
    content.set(firstVersions(0, contentBytes));
    await writeFile(folder.file("content"), content);
    const how = ["-c", "-n", "-f", "raw", "-O", "qcow2", folder.file("content"), path];
    await run("qemu-img", ["convert", ...how]);
  }
  if (snapshot) await run("qemu-img", ["snapshot", "-c", "first", path]);
  const subject = qcow2Subject({
    image: new Uint8Array(await readFile(path)),
    contentBytes,
    open: (on, disk) => openCompressing(on, disk, options),
  });
  const isLazy = create.includes("lazy_refcounts");
  // With late refcounts the image says itself that they are wrong.
  return isLazy
    ? { ...subject, check: (image, clean) => (clean ? subject.check(image, true) : "") }
    : subject;
}

/** The filter over the image; closing it closes both. */
async function openCompressing(
  on: Reactor,
  disk: BlockNode,
  options: Readonly<Record<string, unknown>>,
): Promise<BlockNode> {
  const discardUnmap = true;
  const context = openContext(on, { children: { file: disk }, options, discardUnmap });
  const image = await qcow2.open(context);
  const children = { file: image };
  const node = await compress.open(openContext(on, { children, discardUnmap }));
  node.close = () => image.close();
  return node;
}

describe("compressed writes survive power cuts", () => {
  const first = randomSeed();
  for (const [index, variant] of variants.entries()) {
    test(`${index}: ${variant.create}`, async () => {
      await runManyPowerCuts(reactor, await subjectOf(variant), first, SEEDS, variant.run);
    }, 120_000);
  }
});
