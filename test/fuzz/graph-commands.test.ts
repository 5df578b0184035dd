/**
 * Commands on the graph in any order and at the same time, while any call to an iothread may fail:
 * the graph stays whole, main and the iothreads agree, and all of it can be deleted in the end.
 */
import { expect, test } from "bun:test";
import { blockDrivers } from "../../src/block/drivers/index.ts";
import { BlockGraph, type RootUse } from "../../src/block/graph.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE } from "../../src/block/node.ts";
import { OutportError } from "../../src/util/error.ts";
import { FakeIothreads } from "../support/iothread.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";

const NAMES = ["a", "b", "c", "d", "e", "f"];
/** They fail only when the thread is gone, and with it the process. */
const ENDING = ["nodes-resume", "nodes-reopen-end", "node-close", "node-history-restore"];

class Scene {
  readonly iothreads = new FakeIothreads("io0");
  readonly graph = new BlockGraph({ drivers: blockDrivers, iothreads: this.iothreads });
  /** One call at a time fails: what takes back what was done does not. */
  failed = false;
  readonly #random: Random;
  readonly #uses: RootUse[] = [];

  constructor(random: Random, failures: number) {
    this.#random = random;
    for (const iothread of this.iothreads.members.values()) {
      iothread.before = (call) => {
        if (this.failed || ENDING.includes(call) || !random.chance(failures)) return;
        this.failed = true;
        throw new OutportError("io", "injected");
      };
    }
  }

  #name(): string {
    return this.#random.pick(NAMES);
  }

  #options(depth = 0): Record<string, unknown> {
    const random = this.#random;
    const common = {
      ...(depth === 0 || random.chance(0.5) ? { "node-name": this.#name() } : {}),
      ...(random.chance(0.2) ? { "read-only": true } : {}),
      ...(random.chance(0.1) ? { active: random.chance(0.5) } : {}),
      ...(random.chance(0.2) ? { cache: { direct: true } } : {}),
    };
    if (random.chance(0.4)) return { driver: "file", filename: "/disk", ...common };
    const file = depth < 3 && random.chance(0.5) ? this.#options(depth + 1) : this.#name();
    return { driver: "raw", file, ...common };
  }

  async command(): Promise<unknown> {
    const { graph } = this;
    const random = this.#random;
    switch (random.below(8)) {
      case 0:
      case 1:
        return graph.blockdevAdd(this.#options());
      case 2:
        return graph.blockdevDel(this.#name());
      case 3:
      case 4:
        return graph.blockdevReopen(Array.from({ length: random.below(3) }, () => this.#options()));
      case 5:
        return graph.blockdevSetActive(
          random.chance(0.3) ? undefined : this.#name(),
          random.chance(0.6),
        );
      case 6:
        return graph.setIothread(this.#name(), random.pick(["io0", null]), random.chance(0.7));
      default:
        return graph.exclusive(() => this.#use());
    }
  }

  async #use(): Promise<void> {
    const random = this.#random;
    const old = this.#uses[0];
    const node = this.graph.find(this.#name());
    if (random.chance(0.5) && old !== undefined) {
      await this.graph.detachRoot(old).catch(() => {});
      this.#uses.shift();
    } else if (node !== undefined) {
      const used = PERM_CONSISTENT_READ | (random.chance(0.5) ? PERM_WRITE : 0);
      const shared = random.chance(0.3) ? PERM_ALL & ~PERM_RESIZE : PERM_ALL;
      const moves = { beforeMove: async () => {}, afterMove: async () => {} };
      const user = { allowInactive: random.chance(0.5), ...(random.chance(0.7) ? moves : {}) };
      this.#uses.push(await this.graph.attachRoot(node, { used, shared }, user));
    }
  }

  expectWhole(): void {
    const { nodes } = this.graph;
    for (const node of nodes) {
      const { nodeName, iothread, permissions } = node;
      const thread = this.iothreads.get(iothread.id);
      for (const edge of node.children) {
        expect(nodes).toContain(edge.child);
        expect(edge.child.parents).toContain(edge);
        expect(edge.child.iothread).toBe(iothread);
        expect(node.definition.children[edge.role]).toBe(edge.child.nodeName);
        expect(node.active && !edge.child.active).toBe(false);
      }
      expect(node.monitorOwned || node.parents.length > 0).toBe(true);
      expect(thread.nodes.get(nodeName)).toEqual({
        used: permissions.used,
        shared: permissions.shared,
      });
      expect(thread.inactive.has(nodeName)).toBe(!node.active);
      expect(thread.definitions.get(nodeName)).toMatchObject({
        ...node.definition,
        children: node.definition.children,
      });
    }
    for (const thread of this.iothreads.members.values()) {
      const here = nodes.filter(({ iothread }) => iothread === thread);
      expect([thread.userCount, thread.nodes.size]).toEqual([here.length, here.length]);
      expect([thread.sections.size, thread.reopens.size]).toEqual([0, 0]);
    }
  }

  async end(): Promise<void> {
    for (const iothread of this.iothreads.members.values()) iothread.before = () => {};
    for (const use of this.#uses) await this.graph.exclusive(() => this.graph.detachRoot(use));
    await this.graph.closeAll();
    expect(this.graph.nodes).toEqual([]);
    this.expectWhole();
  }
}

test("BlockGraph stays whole whatever is asked of it and whatever fails", async () => {
  const random = new Random(randomSeed());
  let done = 0;
  for (let round = 0; round < fuzzCases(100); round++) {
    const scene = new Scene(random, round % 2 === 0 ? 0 : 0.05);
    for (let step = 0; step < 20; step++) {
      scene.failed = false;
      const commands = Array.from({ length: 1 + random.below(3) }, () => scene.command());
      for (const result of await Promise.allSettled(commands)) {
        if (result.status === "fulfilled") done++;
        else if (!(result.reason instanceof OutportError)) throw result.reason;
      }
      scene.expectWhole();
    }
    await scene.end();
  }
  expect(done).toBeGreaterThan(0);
});
