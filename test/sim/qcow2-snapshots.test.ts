/**
 * Internal snapshots on a disk whose power fails while they are taken and deleted and a guest
 * writes: the image is sound, each snapshot is there whole or not at all, and what was answered is
 * true. SIM_SEEDS: how many seeds of each variant.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { QCOW2_INCOMPAT_DIRTY } from "../../src/abi/qcow2.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import { type BlockNode, OP_WRITE, SLOW } from "../../src/block/node.ts";
import { openContext } from "../support/block.ts";
import { run } from "../support/clients.ts";
import { temporaryDirectory } from "../support/images.ts";
import { memorySource, Qcow2Image } from "../support/qcow2-reader.ts";
import { type Random, randomSeed } from "../support/random.ts";
import { makeReactor } from "../support/reactor.ts";
import { SECTOR_BYTES } from "./disk.ts";
import { checkSector, type GuestModel } from "./guest-model.ts";
import { type PowerCutOptions, type PowerCutSubject, runPowerCuts } from "./power-cut.ts";
import { qcow2Subject } from "./qcow2-subject.ts";

const SEEDS = Number(process.env.SIM_SEEDS ?? 6);
const INCOMPATIBLE_LAST_BYTE = 79;
const SNAPSHOTS_MAX = 4;

/** What is known of a snapshot: "unsure" while a command is under way. */
interface Taken {
  state: "there" | "unsure" | "gone";
  readonly content: readonly ReadonlySet<number>[];
}

interface Variant {
  readonly create: string;
  readonly size: string;
  /** Some of what the guest writes is compressed. */
  readonly compresses?: boolean;
}

const variants: readonly Variant[] = [
  { create: "cluster_size=4096", size: "512k" },
  { create: "cluster_size=512,refcount_bits=64", size: "200k" },
  { create: "cluster_size=512,refcount_bits=4", size: "200k" },
  { create: "cluster_size=16k,extended_l2=on", size: "1M" },
  { create: "cluster_size=1024,compat=0.10", size: "300k" },
  { create: "cluster_size=4096,lazy_refcounts=on", size: "512k" },
  { create: "cluster_size=2048", size: "256k", compresses: true },
  { create: "cluster_size=16k,refcount_bits=4,extended_l2=on", size: "512k", compresses: true },
];

const reactor = makeReactor("epoll");

afterAll(() => {
  expect(reactor.buffers.bytesInUse).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

class Snapshots {
  #subject: PowerCutSubject;
  #taken = new Map<string, Taken>();
  #count = 0;
  /** An operation may have failed without a cut. */
  #mayFail: boolean;

  constructor(subject: PowerCutSubject, mayFail: boolean) {
    this.#subject = subject;
    this.#mayFail = mayFail;
  }

  get subject(): PowerCutSubject {
    return {
      ...this.#subject,
      interrupt: (node, random, model) => this.#act(node, random, model),
      check: (image, clean) => {
        const isLate = (image[INCOMPATIBLE_LAST_BYTE]! & QCOW2_INCOMPAT_DIRTY) !== 0 && !clean;
        return (isLate ? "" : this.#subject.check(image, clean)) || this.#check(image);
      },
    };
  }

  async #act(node: BlockNode, random: Random, model: GuestModel): Promise<string> {
    const there = [...this.#taken].filter(([, { state }]) => state === "there");
    if (there.length > 0 && (there.length >= SNAPSHOTS_MAX || random.chance(0.4))) {
      const [name, taken] = random.pick(there);
      const listed = node.describe().image!.snapshots as { id: string; name: string }[];
      const { id } = listed.find((one) => one.name === name)!;
      taken.state = "unsure";
      const result = await node.deleteSnapshot!(id, name);
      if (result === 0) taken.state = "gone";
      return result === 0 || this.#mayFail ? "" : `deleting ${name} said ${result}`;
    }
    const name = `s${this.#count++}`;
    const taken: Taken = { state: "unsure", content: model.capture() };
    this.#taken.set(name, taken);
    const result = await node.takeSnapshot!(name, 1e15);
    if (typeof result === "object") taken.state = "there";
    return typeof result === "object" || this.#mayFail ? "" : `taking ${name} said ${result}`;
  }

  /** Empty, or what is wrong. What was unsure is known from here on. */
  #check(image: Uint8Array): string {
    const opened = new Qcow2Image({ source: memorySource(image) });
    const found = new Map(opened.snapshots.map((one) => [one.name, one]));
    for (const [name, taken] of this.#taken) {
      const snapshot = found.get(name);
      if (taken.state === "there" && snapshot === undefined) return `snapshot ${name} is lost`;
      if (taken.state === "gone" && snapshot !== undefined) return `snapshot ${name} is back`;
      taken.state = snapshot === undefined ? "gone" : "there";
      if (snapshot === undefined) continue;
      const content = opened.readSnapshot(snapshot, 0, taken.content.length * SECTOR_BYTES);
      for (const [i, allowed] of taken.content.entries()) {
        const bytes = content.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
        const text = checkSector(i, bytes, allowed);
        if (text !== "") return `snapshot ${name}: ${text}`;
      }
    }
    return "";
  }
}

async function imageOf({ create, size }: Variant): Promise<Uint8Array> {
  await using folder = await temporaryDirectory();
  const path = folder.file("image.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, path, size]);
  return new Uint8Array(await readFile(path));
}

/** What begins in every other 16 KiB. */
function compressSome(node: BlockNode): void {
  const { resolve, write } = node;
  node.resolve = (op, offset, bytes, out) => {
    return op === OP_WRITE ? SLOW : resolve.call(node, op, offset, bytes, out);
  };
  node.write = (offset, bytes, address, flags) => {
    const isCompressed = Math.floor(offset / 16_384) % 2 === 0;
    if (isCompressed) return node.writeCompressed!(offset, bytes, address);
    return write.call(node, offset, bytes, address, flags);
  };
}

async function runSeeds(
  variant: Variant,
  first: number,
  options: PowerCutOptions = {},
): Promise<void> {
  const image = await imageOf(variant);
  for (let seed = first; seed < first + SEEDS; seed++) {
    const subject = qcow2Subject({
      image,
      open: async (_reactor, disk) => {
        const context = openContext(reactor, { children: { file: disk }, discardUnmap: true });
        const node = await qcow2.open(context);
        if (variant.compresses === true) compressSome(node);
        return node;
      },
    });
    const snapshots = new Snapshots(subject, (options.failures ?? 0) > 0);
    await runPowerCuts(reactor, snapshots.subject, seed, options);
  }
}

describe("internal snapshots survive power cuts", () => {
  const first = randomSeed();
  for (const variant of variants) {
    const how = variant.compresses === true ? ", compressed" : "";
    test(`${variant.create}${how}`, async () => {
      await runSeeds(variant, first);
    }, 180_000);
  }

  for (const variant of [variants[0]!, variants[2]!]) {
    test(`also on a disk that fails at times: ${variant.create}`, async () => {
      await runSeeds(variant, first, { failures: 0.005 });
    }, 180_000);
  }
});
