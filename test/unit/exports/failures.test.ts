import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { ExportManager } from "../../../src/exports/manager.ts";
import { NbdServer } from "../../../src/exports/nbd/index.ts";
import type { IothreadCall } from "../../../src/iothread/messages.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { OutportError } from "../../../src/util/error.ts";
import { FakeIothreads, messageOf } from "../../support/iothread.ts";

// What takes something back never fails: these calls are made while it is done.
const NEVER_FAIL: readonly IothreadCall[] = [
  "node-close",
  "nodes-resume",
  "node-history",
  "node-history-restore",
  "export-close",
  "export-resume",
  "nbd-server-stop",
];
const ADDRESS = { addr: { type: "unix", path: "/tmp/x.sock" } } as const;

let iothreads: FakeIothreads;
let graph: BlockGraph;
let server: NbdServer;
let manager: ExportManager;
let deleted: string[];

beforeEach(async () => {
  iothreads = new FakeIothreads("io0", "io1");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  server = new NbdServer({
    iothreads,
    resolve: async () => [],
    objectExists: () => false,
    graph,
    closeExports: () => manager.closeAll("nbd"),
  });
  deleted = [];
  manager = new ExportManager({
    graph,
    iothreads,
    types: [server.exportType],
    emit: (_event, { id }) => void deleted.push(id),
  });
  await graph.blockdevAdd({
    driver: "raw",
    "node-name": "top",
    file: { driver: "null-co", "node-name": "below" },
  });
  await server.start(ADDRESS, "monitor");
});

const add = (more: Record<string, unknown> = {}) =>
  manager.add({ type: "nbd", id: "e", "node-name": "top", ...more });

/** All that a command may change, in any part of the process. */
function state(): unknown {
  return {
    iothreads: [...iothreads.members.values()].map((one) => ({
      id: one.id,
      userCount: one.userCount,
      nodes: new Map([...one.nodes].sort()),
      inactive: [...one.inactive].sort(),
      exports: [...one.exports].sort(),
      registered: [...one.registered].sort(),
      listening: one.listening,
      sections: one.sections.size,
    })),
    graph: graph.nodes.map(({ nodeName, iothread, active, permissions, parents, children }) => ({
      nodeName,
      iothread: iothread.id,
      active,
      permissions,
      users: parents.map((edge) => [edge.role, edge.permissions]),
      children: children.map((edge) => [edge.role, edge.permissions]),
    })),
    exports: manager.query(),
    isRunning: server.running,
    deleted: [...deleted],
  };
}

/** The `count`-th call that may fail from now on does, if there are so many; then `failed`. */
async function failing(
  count: number,
  task: () => Promise<unknown>,
): Promise<{ failed: boolean; message: string }> {
  let left = count;
  let failed = false;
  for (const iothread of iothreads.members.values()) {
    iothread.before = (call) => {
      if (NEVER_FAIL.includes(call) || left-- > 0 || failed) return;
      failed = true;
      throw new OutportError("io", `${call} fails`);
    };
  }
  const message = await messageOf(task());
  for (const iothread of iothreads.members.values()) iothread.before = () => {};
  return { failed, message };
}

interface Case {
  readonly name: string;
  readonly prepare: () => Promise<void>;
  readonly options: Record<string, unknown>;
  /** Calls that may fail, at least. */
  readonly countMin: number;
}

const nothing = async (): Promise<void> => {};
const FIXED = { iothread: "io0", "fixed-iothread": true };
const cases: readonly Case[] = [
  { name: "as it is", prepare: nothing, options: {}, countMin: 4 },
  { name: "to be written", prepare: nothing, options: { writable: true }, countMin: 4 },
  { name: "on an iothread", prepare: nothing, options: FIXED, countMin: 9 },
  {
    name: "on an iothread if possible",
    prepare: nothing,
    options: { iothread: "io0" },
    countMin: 9,
  },
  {
    name: "of an inactive node",
    prepare: () => graph.blockdevSetActive("top", false),
    options: { writable: true, ...FIXED },
    countMin: 9,
  },
  {
    name: "of an inactive node that stays so",
    prepare: () => graph.blockdevSetActive("top", false),
    options: { writable: true, "allow-inactive": true },
    countMin: 2,
  },
  {
    name: "beside others, which move",
    prepare: async () => {
      await add({ id: "first", iothread: "io1" });
      await add({ id: "second", name: "other", "node-name": "below", writable: true });
    },
    options: { name: "third", ...FIXED },
    countMin: 11,
  },
];

describe("block-export-add leaves all as it was, whatever fails", () => {
  for (const { name, prepare, options, countMin } of cases) {
    test(name, async () => {
      await prepare();
      const before = state();
      let count = 0;
      for (; ; count++) {
        const { failed, message } = await failing(count, () => add(options));
        if (!failed) break;
        if (message === "no error") {
          // A move that nobody insists on.
          await manager.delete("e");
          expect(deleted.splice(0)).toEqual(["e"]);
        }
        expect(state()).toEqual(before);
      }
      expect(manager.query()[0]!.id).toBe("e");
      expect(count).toBeGreaterThanOrEqual(countMin);
    });
  }
});

describe("nbd-server-start leaves all as it was", () => {
  beforeEach(() => server.stop());

  test("when it can't listen", async () => {
    const before = state();
    expect((await failing(0, () => server.start(ADDRESS, "monitor"))).failed).toBe(true);
    expect(state()).toEqual(before);
    await server.start(ADDRESS, "monitor");
  });

  test("when there are no such credentials", async () => {
    const before = state();
    const options = { ...ADDRESS, "tls-creds": "x" };
    expect(await messageOf(server.start(options, "monitor"))).toContain("No TLS credentials");
    expect(state()).toEqual(before);
  });
});

test("x-blockdev-set-iothread leaves all as it was, whatever fails", async () => {
  await add({ id: "first", iothread: "io1", writable: true });
  await add({ id: "second", name: "other", "node-name": "below" });
  const before = state();
  const move = () => graph.setIothread("top", "io0", true);
  let count = 0;
  for (; (await failing(count, move)).failed; count++) expect(state()).toEqual(before);
  expect(count).toBeGreaterThan(6);
  expect(graph.find("below")!.iothread.id).toBe("io0");
  await graph.setIothread("top", null, true);
  expect([...iothreads.get(MAIN_LOOP).exports].sort()).toEqual(["first", "second"]);
});
