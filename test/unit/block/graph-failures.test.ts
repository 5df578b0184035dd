/**
 * A failing command leaves the graph as it was: each command, failing at each of its calls to an
 * iothread; also when what takes it back fails, too.
 */
import { describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import type { RootUser } from "../../../src/block/graph-node.ts";
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "../../../src/block/node.ts";
import { Snapshots } from "../../../src/block/snapshots.ts";
import { OutportError } from "../../../src/util/error.ts";
import { FakeIothreads, messageOf } from "../../support/iothread.ts";

let iothreads: FakeIothreads;
let graph: BlockGraph;
/** What its users were told about moves. */
let moves: string[];

async function setUp(before: (() => Promise<unknown>) | undefined): Promise<void> {
  iothreads = new FakeIothreads("io0");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  moves = [];
  await add({ driver: "file", "node-name": "f0", filename: "/a" });
  await add({ driver: "file", "node-name": "f1", filename: "/b" });
  await add({ driver: "raw", "node-name": "r0", file: "f0" });
  const file = { driver: "file", "node-name": "fi", filename: "/c" };
  await add({ driver: "raw", "node-name": "ri", file });
  await attach("r0", PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL & ~PERM_RESIZE, {
    allowInactive: true,
    onReplaced: async () => {},
    beforeMove: async () => void moves.push("before"),
    afterMove: async () => void moves.push("after"),
  });
  await before?.();
}

const add = (options: Record<string, unknown>) => graph.blockdevAdd(options);
const attach = (name: string, used: number, shared: number, user: RootUser = {}) =>
  graph.exclusive(() => graph.attachRoot(graph.find(name)!, { used, shared }, user));
const move = (name: string, id: string) =>
  graph.exclusive(() => graph.move(graph.find(name)!, iothreads.get(id)));

/** All that main knows and all that the iothreads know. */
function dump(): string {
  const nodes = graph.nodes.map((node) => ({
    definition: node.definition,
    explicit: node.explicit,
    inheritsFrom: node.inheritsFrom?.nodeName,
    active: [node.active, node.toldActive],
    iothread: node.iothread.id,
    info: node.info,
    monitorOwned: node.monitorOwned,
    children: node.children.map(({ role, child, permissions }) => [
      role,
      child.nodeName,
      permissions,
    ]),
    parents: node.parents.map(({ role, parent }) => [role, parent?.nodeName]),
    permissions: node.permissions,
  }));
  const threads = [...iothreads.members.values()].map((iothread) => ({
    id: iothread.id,
    userCount: iothread.userCount,
    nodes: [...iothread.nodes].sort(),
    definitions: [...iothread.definitions].sort(),
    inactive: [...iothread.inactive].sort(),
    sections: iothread.sections.size,
    reopens: iothread.reopens.size,
  }));
  return JSON.stringify({ nodes, threads }, null, 1);
}

const snapshots = () =>
  new Snapshots({
    graph,
    checkOptions: (options) => options,
    isBlockDevice: () => false,
    servedDevices: () => [],
    realTimeUs: () => 0,
  });
const overlay = (node: string, name: string) =>
  snapshots().run({ type: "blockdev-snapshot", data: { node, overlay: name } });
const addOverlay = (name: string) =>
  add({
    driver: "qcow2",
    "node-name": name,
    file: { driver: "file", "node-name": `${name}-file`, filename: `/${name}` },
    backing: null,
  });
const reopen = (...options: Record<string, unknown>[]) => graph.blockdevReopen(options);
const inline = (name: string, file: unknown) => ({ driver: "raw", "node-name": name, file });

interface Case {
  readonly does: string;
  readonly command: () => Promise<unknown>;
  /** What is there before. */
  readonly before?: () => Promise<unknown>;
}

const cases: readonly Case[] = [
  {
    does: "blockdev-add of three nodes",
    command: () => add(inline("top", inline("middle", { driver: "file", filename: "/d" }))),
  },
  { does: "blockdev-add over a node in use", command: () => add(inline("top", "r0")) },
  {
    does: "blockdev-add that brings trees together",
    before: () => move("ri", "io0"),
    command: () => add({ driver: "blkverify", "node-name": "v", test: "ri", raw: "f1" }),
  },
  {
    does: "blockdev-reopen with other options",
    command: () =>
      reopen(
        { driver: "file", "node-name": "f0", filename: "/a", cache: { direct: true } },
        { driver: "raw", "node-name": "ri", "read-only": true, file: "fi" },
      ),
  },
  {
    does: "blockdev-reopen with another child",
    command: () => reopen({ driver: "raw", "node-name": "r0", file: "f1", size: 512 }),
  },
  {
    does: "blockdev-reopen with a child from another iothread",
    before: () => move("f1", "io0"),
    command: () => reopen({ driver: "raw", "node-name": "r0", file: "f1" }),
  },
  {
    does: "blockdev-reopen that lets go of an inline child",
    command: () => reopen({ driver: "raw", "node-name": "ri", file: "f1" }),
  },
  {
    does: "blockdev-reopen in two iothreads",
    before: () => move("ri", "io0"),
    command: () =>
      reopen(
        { driver: "raw", "node-name": "r0", file: "f0", offset: 512 },
        { driver: "raw", "node-name": "ri", file: "fi", "detect-zeroes": "on" },
      ),
  },
  {
    does: "blockdev-set-active of all nodes",
    command: () => graph.blockdevSetActive(undefined, false),
  },
  {
    does: "blockdev-set-active of one",
    before: () => graph.blockdevSetActive(undefined, false),
    command: () => graph.blockdevSetActive("r0", true),
  },
  { does: "a move of a tree in use", command: () => move("r0", "io0") },
  {
    does: "blockdev-snapshot of a node in use",
    before: () => addOverlay("q0"),
    command: () => overlay("r0", "q0"),
  },
  {
    does: "blockdev-snapshot below a parent, in another iothread",
    before: async () => {
      await addOverlay("q0");
      await move("r0", "io0");
    },
    command: () => overlay("f0", "q0"),
  },
  {
    does: "blockdev-snapshot of an inactive node",
    before: async () => {
      await addOverlay("q0");
      await graph.blockdevSetActive("ri", false);
    },
    command: () => overlay("ri", "q0"),
  },
  {
    does: "blockdev-snapshot-sync with an image that exists",
    command: () => {
      const data = {
        "node-name": "r0",
        "snapshot-file": "/q",
        "snapshot-node-name": "q",
        mode: "existing",
      } as const;
      return snapshots().run({ type: "blockdev-snapshot-sync", data });
    },
  },
  {
    does: "a further user",
    command: () => attach("r0", PERM_CONSISTENT_READ, PERM_ALL & ~PERM_WRITE_UNCHANGED),
  },
];

/** These end a section, a reopen or a node's life: they fail only when the thread is gone. */
const ENDING = ["nodes-resume", "nodes-reopen-end", "node-close", "node-history-restore"];

/** Does it while `fails` lets calls fail, which it counts from 1. */
async function failing(
  command: () => Promise<unknown>,
  fails: (call: string, count: number) => boolean,
): Promise<{ message: string; count: number }> {
  let count = 0;
  const all = [...iothreads.members.values()];
  for (const iothread of all) {
    iothread.before = (call) => {
      if (fails(call, ++count)) throw new OutportError("io", "injected");
    };
  }
  const message = await messageOf(command());
  for (const iothread of all) iothread.before = () => {};
  return { message, count };
}

/** Every edge is in both of its nodes, and every node is where its parents are. */
function expectWhole(): void {
  const { nodes } = graph;
  for (const node of nodes) {
    for (const edge of node.children) {
      expect([edge.parent === node, edge.child.parents.includes(edge)]).toEqual([true, true]);
      expect(nodes).toContain(edge.child);
      expect(node.definition.children[edge.role]).toBe(edge.child.nodeName);
    }
    for (const edge of node.parents) {
      expect(edge.child === node).toBe(true);
      if (edge.parent !== null) expect(edge.parent.children).toContain(edge);
    }
  }
}

for (const { does, command, before } of cases) {
  describe(does, () => {
    test("leaves all as before at whichever call it fails", async () => {
      await setUp(before);
      const { message, count } = await failing(command, () => false);
      expect(message).toBe("no error");
      let failures = 0;
      for (let at = 1; at <= count; at++) {
        await setUp(before);
        const state = dump();
        moves = [];
        const failed = await failing(
          command,
          (call, number) => number === at && !ENDING.includes(call),
        );
        // It may have found another way.
        if (failed.message === "no error") continue;
        failures++;
        expect([at, failed.message, dump()]).toEqual([at, "injected", state]);
        const half = moves.length / 2;
        expect(moves.filter((move) => move === "after").length).toBe(half);
      }
      expect(failures).toBeGreaterThan(0);
    });

    test("tells its error and keeps the graph whole when undoing fails, too", async () => {
      await setUp(before);
      const { count } = await failing(command, () => false);
      for (let from = 1; from <= count; from++) {
        await setUp(before);
        const { message } = await failing(command, (_call, number) => number >= from);
        // What is no longer needed is closed after everything else.
        expect(from === count ? "injected" : message).toBe("injected");
        expectWhole();
      }
    });
  });
}
