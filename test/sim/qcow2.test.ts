/**
 * qcow2 on a disk whose power fails: at any moment the image is sound, but for leaks, and holds
 * every flushed byte. Checked by the independent reader. SIM_SEEDS: how many seeds of each variant.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { QCOW2_INCOMPAT_DIRTY } from "../../src/abi/qcow2.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import { openContext } from "../support/block.ts";
import { run } from "../support/clients.ts";
import { decryptSector, encryptedImage } from "../support/encrypted-image.ts";
import { temporaryDirectory } from "../support/images.ts";
import { randomSeed } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import { type PowerCutSubject, runManyPowerCuts } from "./power-cut.ts";
import { qcow2Subject } from "./qcow2-subject.ts";

const SEEDS = Number(process.env.SIM_SEEDS ?? 6);
const INCOMPATIBLE_LAST_BYTE = 79;

interface Variant {
  readonly create: string;
  readonly size: string;
  /** All clusters are in use by a snapshot, too: each write allocates. */
  readonly snapshot?: boolean;
  readonly options?: Readonly<Record<string, unknown>>;
}

const TINY_CACHE = { "l2-cache-size": 1024, "l2-cache-entry-size": 512 };

const variants: readonly Variant[] = [
  { create: "cluster_size=65536", size: "4M" },
  { create: "cluster_size=4096", size: "1M", options: { "pass-discard-other": true } },
  { create: "cluster_size=512,refcount_bits=64", size: "512k", options: TINY_CACHE },
  { create: "cluster_size=512,refcount_bits=1", size: "300k" },
  {
    // The refcount table has room for 2 MiB: it must grow.
    create: "cluster_size=512,refcount_bits=64,preallocation=metadata",
    size: "1900k",
    snapshot: true,
  },
  { create: "cluster_size=65536,extended_l2=on", size: "4M" },
  { create: "cluster_size=4096,lazy_refcounts=on", size: "1M" },
  { create: "cluster_size=1024,compat=0.10", size: "1M", options: TINY_CACHE },
];

const reactor = makeReactor("epoll");

afterAll(() => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

async function subjectOf({
  create,
  size,
  snapshot,
  options = {},
}: Variant): Promise<PowerCutSubject> {
  await using folder = await temporaryDirectory();
  const path = folder.file("image.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, path, size]);
  if (snapshot === true) await run("qemu-img", ["snapshot", "-c", "before", path]);
  const subject = qcow2Subject({
    image: new Uint8Array(await readFile(path)),
    open: (_reactor, disk) =>
      qcow2.open(openContext(reactor, { children: { file: disk }, options, discardUnmap: true })),
  });
  return {
    ...subject,
    // With late refcounts the image says itself that they are wrong.
    check: (content, clean) => {
      const isDirty = (content[INCOMPATIBLE_LAST_BYTE]! & QCOW2_INCOMPAT_DIRTY) !== 0;
      return isDirty && !clean ? "" : subject.check(content, clean);
    },
  };
}

describe("qcow2 survives power cuts", () => {
  const first = randomSeed();
  for (const variant of variants) {
    test(variant.create, async () => {
      await runManyPowerCuts(reactor, await subjectOf(variant), first, SEEDS);
    }, 180_000);
  }

  test("encrypted", async () => {
    const { image, key } = await encryptedImage();
    const options = { encrypt: { format: "luks", "key-secret": "key" } };
    const subject = qcow2Subject({
      image,
      decrypt: (host, sector) => decryptSector(key, host, sector),
      open: (_reactor, disk) => {
        const some = { children: { file: disk }, options, discardUnmap: true };
        return qcow2.open(openContext(reactor, { ...some, key: key.slice() }));
      },
    });
    await runManyPowerCuts(reactor, subject, first, SEEDS);
  }, 180_000);

  for (const variant of [1, 3, 4, 5, 6]) {
    const { create } = variants[variant]!;
    test(`also on a disk that fails at times: ${create}`, async () => {
      const subject = await subjectOf(variants[variant]!);
      await runManyPowerCuts(reactor, subject, first, SEEDS, { failures: 0.01 });
    }, 180_000);
  }
});
