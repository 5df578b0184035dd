/**
 * Commands and transactions on dirty bitmaps in any order, between writes: what they leave is what
 * a simple model says, and a failing one leaves all as it was.
 */
import { afterAll, expect, test } from "bun:test";
import { type BitmapChange, Bitmaps } from "../../src/bitmaps/bitmaps.ts";
import { bitmapsOf } from "../../src/bitmaps/node-bitmaps.ts";
import { BitmapService } from "../../src/bitmaps/service.ts";
import { blockDrivers } from "../../src/block/drivers/index.ts";
import { BlockGraph } from "../../src/block/graph.ts";
import { abortStep, runSteps } from "../../src/block/transactions.ts";
import { MAIN_LOOP } from "../../src/iothread/pool.ts";
import { OutportError } from "../../src/util/error.ts";
import { FakeNode } from "../support/fake-node.ts";
import { FakeIothreads } from "../support/iothread.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";

const NODES = ["a", "b", "far"];
const NAMES = ["x", "y", "z", ""];
const GRANULARITIES = [512, 1024, 4096, 100, undefined];
const BYTES = 64 * 1024;
const reactor = makeReactor("epoll");

afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

interface ModelBitmap {
  readonly granularity: number;
  enabled: boolean;
  busy: boolean;
  /** Of an exported one: commands never end it. */
  readonly dirty: Set<number>;
}

/** By node and name. */
type Model = Map<string, ModelBitmap>;

const keyOf = (node: string, name: string): string => `${node}/${name}`;

function clone(model: Model): Model {
  const copy = ([key, one]: [string, ModelBitmap]): [string, ModelBitmap] => [
    key,
    { ...one, dirty: new Set(one.dirty) },
  ];
  return new Map([...model].map(copy));
}

function mark(bitmap: ModelBitmap, offset: number, bytes: number): void {
  const { granularity, dirty } = bitmap;
  for (let bit = Math.floor(offset / granularity); bit * granularity < offset + bytes; bit++) {
    dirty.add(bit);
  }
}

class Failure extends Error {}

function usable(model: Model, node: string, name: string): ModelBitmap {
  const bitmap = model.get(keyOf(node, name));
  if (bitmap === undefined || bitmap.busy) throw new Failure();
  return bitmap;
}

/** Throws Failure. Returns what is done when all of a transaction has succeeded. */
function apply(model: Model, { type, data }: BitmapChange): () => void {
  if (type === "add") {
    const { node, name, granularity = 65_536, disabled = false } = data;
    const isPower = Number.isInteger(Math.log2(granularity)) && granularity >= 512;
    if (name === "" || !NODES.includes(node) || !isPower) throw new Failure();
    if (model.has(keyOf(node, name))) throw new Failure();
    const dirty = new Set<number>();
    model.set(keyOf(node, name), { granularity, enabled: !disabled, busy: false, dirty });
  } else if (type === "merge") {
    const target = usable(model, data.node, data.target);
    const sources = data.bitmaps.map((source) =>
      typeof source === "string"
        ? usable(model, data.node, source)
        : usable(model, source.node, source.name),
    );
    for (const { granularity, dirty } of sources) {
      for (const bit of [...dirty]) {
        const start = bit * granularity;
        mark(target, start, Math.min(granularity, BYTES - start));
      }
    }
  } else {
    const bitmap = usable(model, data.node, data.name);
    if (type === "clear") bitmap.dirty.clear();
    else if (type === "remove") {
      bitmap.busy = true;
      return () => model.delete(keyOf(data.node, data.name));
    } else bitmap.enabled = type === "enable";
  }
  return () => {};
}

class Scene {
  readonly graph: BlockGraph;
  readonly bitmaps: Bitmaps;
  readonly nodes = new Map(NODES.map((name) => [name, new FakeNode(reactor, BYTES)]));
  model: Model = new Map();
  readonly #random: Random;

  constructor(random: Random) {
    this.#random = random;
    const iothreads = new FakeIothreads("io0");
    for (const thread of iothreads.members.values()) {
      const isHere = (name: string) => (name === "far") === (thread.id === "io0");
      const service = new BitmapService({
        findNode: (name) => (isHere(name) ? this.nodes.get(name) : undefined),
      });
      const call = thread.call.bind(thread);
      thread.call = async (name, params) => {
        const handler = (service.calls as unknown as Record<string, (given: unknown) => never>)[
          name
        ];
        return handler === undefined ? call(name, params) : handler(structuredClone(params));
      };
    }
    this.graph = new BlockGraph({ drivers: blockDrivers, iothreads });
    this.bitmaps = new Bitmaps(this.graph);
    expect(iothreads.get(MAIN_LOOP).id).toBe(MAIN_LOOP);
  }

  async open(): Promise<void> {
    for (const name of NODES) {
      await this.graph.blockdevAdd({ driver: "null-co", "node-name": name, size: BYTES });
    }
    await this.graph.setIothread("far", "io0", false);
  }

  change(): BitmapChange {
    const random = this.#random;
    const node = random.chance(0.03) ? "none" : random.pick(NODES);
    const name = random.pick(NAMES);
    if (random.chance(0.4)) {
      const granularity = random.pick(GRANULARITIES);
      const disabled = random.chance(0.3);
      return { type: "add", data: { node, name, granularity, disabled } };
    }
    if (random.chance(0.35)) {
      const bitmaps = Array.from({ length: random.below(4) }, () => {
        const source = random.pick(NAMES);
        return random.chance(0.5) ? source : { node: random.pick(NODES), name: source };
      });
      return { type: "merge", data: { node, target: name, bitmaps } };
    }
    const type = random.pick(["remove", "clear", "enable", "disable"] as const);
    return { type, data: { node, name } };
  }

  async write(): Promise<void> {
    const random = this.#random;
    const name = random.pick(NODES);
    const offset = random.below(BYTES / 512) * 512;
    const bytes = Math.min(BYTES - offset, 512 * (1 + random.below(20)));
    const node = this.nodes.get(name)!;
    await runOn(reactor, () => node.write(offset, bytes, reactor.memory.address, 0));
    for (const [key, bitmap] of this.model) {
      if (key.startsWith(`${name}/`) && bitmap.enabled) mark(bitmap, offset, bytes);
    }
  }

  /** As an export does. */
  toggleBusy(): void {
    const key = this.#random.pick([...this.model.keys(), ""]);
    if (key === "") return;
    const bitmap = this.model.get(key)!;
    const [node, name] = key.split("/") as [string, string];
    bitmap.busy = !bitmap.busy;
    bitmapsOf(this.nodes.get(node)!).get(name).busy = bitmap.busy;
  }

  /** True: it succeeded, as the model says. */
  async transaction(): Promise<boolean> {
    const random = this.#random;
    const changes = Array.from({ length: 1 + random.below(4) }, () => this.change());
    const aborts = random.chance(0.1);
    const steps = changes.map((change) => () => this.bitmaps.change(change));
    const run = runSteps(
      this.graph,
      () => this.graph.nodes,
      aborts ? [...steps, abortStep] : steps,
    );
    const outcome = await run.then(
      () => true,
      (error: unknown) => {
        if (!(error instanceof OutportError)) throw error;
        return false;
      },
    );
    expect(outcome).toBe(this.#predict(changes, aborts));
    return outcome;
  }

  #predict(changes: readonly BitmapChange[], aborts: boolean): boolean {
    const next = clone(this.model);
    try {
      const ends = changes.map((change) => apply(next, change));
      if (aborts) return false;
      for (const end of ends) end();
    } catch (error) {
      if (error instanceof Failure) return false;
      throw error;
    }
    this.model = next;
    return true;
  }

  expectAsModel(): void {
    const seen = NODES.flatMap((node) =>
      bitmapsOf(this.nodes.get(node)!).list.map((bitmap) => {
        const { name, bits, enabled, busy } = bitmap;
        const dirty = Array.from({ length: bits.bitCount }, (_, bit) => bit);
        const isDirty = (bit: number) => bits.get(bit * bits.granularity);
        const state = { granularity: bits.granularity, enabled, busy };
        return [keyOf(node, name), { ...state, dirty: dirty.filter(isDirty) }] as const;
      }),
    );
    const expected = [...this.model].map(
      ([key, one]) =>
        [key, { ...one, dirty: [...one.dirty].sort((left, right) => left - right) }] as const,
    );
    expect(Object.fromEntries(seen)).toEqual(Object.fromEntries(expected));
  }
}

test("bitmaps are what a model says, whatever is asked", async () => {
  const random = new Random(randomSeed());
  let succeeded = 0;
  let failed = 0;
  for (let round = 0; round < fuzzCases(60); round++) {
    const scene = new Scene(random);
    await scene.open();
    for (let step = 0; step < 60; step++) {
      if (random.chance(0.4)) await scene.write();
      if (random.chance(0.1)) scene.toggleBusy();
      if (await scene.transaction()) succeeded++;
      else failed++;
      scene.expectAsModel();
    }
  }
  expect(succeeded).toBeGreaterThan(100);
  expect(failed).toBeGreaterThan(100);
});
