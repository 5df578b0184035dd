/**
 * Power cuts of qcow2 images that hold something already: on backing images, with snapshots, with
 * compressed clusters; and of disks with large blocks. FUZZ_CASES: seeds of each.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import type { BlockNode } from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { openContext } from "../support/block.ts";
import { attempt, run } from "../support/clients.ts";
import { FakeNode } from "../support/fake-node.ts";
import { KiB, MiB, temporaryDirectory } from "../support/images.ts";
import { fuzzCases, randomSeed } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import { firstVersions } from "./guest-model.ts";
import { type PowerCutOptions, runManyPowerCuts } from "./power-cut.ts";
import { qcow2Subject } from "./qcow2-subject.ts";

setDefaultTimeout(180_000);

interface Variant {
  readonly name: string;
  /** For `qemu-img create -o`. */
  readonly create: string;
  readonly bytes: number;
  readonly backingBytes?: number;
  /** Allocated in the image itself at first. */
  readonly contentBytes?: number;
  readonly compressed?: true;
  readonly snapshot?: true;
  readonly run?: PowerCutOptions;
}

/** Exit codes of `qemu-img check`. */
const QEMU_IMG_SOUND = 0;
const QEMU_IMG_LEAKS = 3;
/** Images of each variant that qemu-img looks at, too. */
const SAMPLES_MAX = 4;
const EXTENDED = "extended_l2=on,cluster_size=16k";

const VARIANTS: readonly Variant[] = [
  { name: "a backing image", create: "cluster_size=2k", bytes: MiB, backingBytes: 800 * KiB },
  {
    name: "a backing image, version 2",
    create: "compat=0.10,cluster_size=1k",
    bytes: MiB,
    backingBytes: 800 * KiB,
  },
  {
    name: "a backing image, extended L2 entries",
    create: EXTENDED,
    bytes: 2 * MiB,
    backingBytes: 1800 * KiB,
  },
  {
    name: "an internal snapshot",
    create: "cluster_size=1k",
    bytes: MiB,
    contentBytes: 600 * KiB,
    snapshot: true,
  },
  {
    name: "an internal snapshot, extended L2 entries",
    create: EXTENDED,
    bytes: 2 * MiB,
    contentBytes: 1200 * KiB,
    snapshot: true,
  },
  {
    name: "compressed clusters",
    create: "cluster_size=4k",
    bytes: MiB,
    contentBytes: 900 * KiB,
    compressed: true,
  },
  {
    name: "blocks of 4 KiB",
    create: "cluster_size=64k",
    bytes: 2 * MiB,
    run: { requestAlignment: 4096 },
  },
  {
    name: "blocks larger than clusters",
    create: "cluster_size=1k",
    bytes: 512 * KiB,
    run: { requestAlignment: 4096 },
  },
  { name: "few clusters that many write to", create: "cluster_size=4k", bytes: 64 * KiB },
];

const seed = randomSeed();
const reactor = makeReactor("epoll");
const images = new Map<string, Uint8Array>();

beforeAll(async () => {
  await using directory = await temporaryDirectory();
  for (const variant of VARIANTS) {
    const path = directory.file("image.qcow2");
    await make(variant, path, directory.file("other.raw"));
    images.set(variant.name, Uint8Array.from(readFileSync(path)));
  }
});

async function make(variant: Variant, path: string, other: string): Promise<void> {
  const { create, bytes, backingBytes = 0, contentBytes = 0, compressed, snapshot } = variant;
  writeFileSync(other, firstVersions(0, contentBytes));
  truncateSync(other, contentBytes > 0 ? bytes : backingBytes);
  if (contentBytes > 0) {
    const how = ["-f", "raw", "-O", "qcow2", "-o", create, ...(compressed ? ["-c"] : [])];
    await run("qemu-img", ["convert", ...how, other, path]);
  } else {
    const on = backingBytes === 0 ? [] : ["-b", other, "-F", "raw"];
    const how = ["create", "-q", "-f", "qcow2", "-o", create, ...on];
    await run("qemu-img", [...how, path, String(bytes)]);
  }
  if (snapshot) await run("qemu-img", ["snapshot", "-c", "first", path]);
}

afterAll(() => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

function subjectOf({ name, backingBytes, contentBytes = 0 }: Variant) {
  const backing = backingBytes === undefined ? undefined : firstVersions(0, backingBytes);
  return qcow2Subject({
    image: images.get(name)!,
    contentBytes,
    ...(backing === undefined ? {} : { backing }),
    open: (on: Reactor, file: BlockNode) => {
      const children: Record<string, BlockNode> = { file };
      if (backing !== undefined) {
        const node = new FakeNode(on, backing.length);
        node.data.set(backing);
        children.backing = node;
      }
      return qcow2.open(openContext(on, { children, discardUnmap: true }));
    },
  });
}

/** The same judgement by qemu-img: it knows of leaks, and of nothing worse. */
async function expectSound(image: Uint8Array): Promise<void> {
  await using directory = await temporaryDirectory();
  const path = directory.file("image.qcow2");
  writeFileSync(path, image);
  const file = { driver: "file", filename: path };
  const name = `json:${JSON.stringify({ driver: "qcow2", backing: null, file })}`;
  const { code, stdout } = await attempt("qemu-img", ["check", "--output=json", name]);
  expect([QEMU_IMG_SOUND, QEMU_IMG_LEAKS]).toContain(code);
  const said = JSON.parse(stdout) as Record<string, number>;
  expect([said.corruptions ?? 0, said["check-errors"] ?? 0]).toEqual([0, 0]);
}

describe("no power cut corrupts an image, or loses what was flushed", () => {
  for (const variant of VARIANTS) {
    test(variant.name, async () => {
      const subject = subjectOf(variant);
      const samples: Uint8Array[] = [];
      const check = (image: Uint8Array, clean: boolean): string => {
        const wrong = subject.check(image, clean);
        if (!clean && samples.length < SAMPLES_MAX) samples.push(image);
        return wrong;
      };
      const checked = { ...subject, check };
      await runManyPowerCuts(reactor, checked, seed, fuzzCases(8), variant.run);
      for (const image of samples) await expectSound(image);
    });
  }
});
