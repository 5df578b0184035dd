import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../../src/block/node.ts";
import type { BlockExport, ExportType } from "../../../src/exports/export.ts";
import { ExportManager } from "../../../src/exports/manager.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { OutportError } from "../../../src/util/error.ts";
import { FakeIothreads, messageOf } from "../../support/iothread.ts";

let iothreads: FakeIothreads;
let graph: BlockGraph;
let manager: ExportManager;
let deleted: string[];
let created: BlockExport[];
let type: ExportType;
let clientCount: number;
let failCreate: boolean;
let failSuspend: boolean;
let moves: string[];
/** Resolved: deletions end at once. */
let deletions: Promise<void>;

beforeEach(async () => {
  iothreads = new FakeIothreads("io0");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  deleted = [];
  created = [];
  clientCount = 0;
  failCreate = false;
  failSuspend = false;
  moves = [];
  deletions = Promise.resolve();
  type = {
    name: "fake",
    members: { "own-member": {} as never },
    allowsInactive: false,
    async create(exp) {
      if (failCreate) throw new OutportError("io", "create failed");
      created.push(exp);
    },
    async requestShutdown(_exp, safe) {
      if (safe && clientCount > 0) throw new OutportError("in-use", "clients");
      return clientCount;
    },
    delete: () => deletions,
    async suspend(exp) {
      if (failSuspend) throw new OutportError("in-use", "suspend failed");
      moves.push(`from ${exp.node.iothread.id}`);
    },
    async resume(exp) {
      moves.push(`to ${exp.node.iothread.id}`);
    },
  };
  manager = new ExportManager({
    graph,
    iothreads,
    types: [type],
    emit: (event, { id }) => void deleted.push(`${event} ${id}`),
  });
  await graph.blockdevAdd({ driver: "null-co", "node-name": "n0" });
  await graph.blockdevAdd({ driver: "null-co", "node-name": "ro", "read-only": true });
});

const add = (more: Record<string, unknown> = {}) =>
  manager.add({ type: "fake", id: "e0", "node-name": "n0", ...more });
const nodesOf = (id: string) => [...iothreads.get(id).nodes.keys()];

describe("add()", () => {
  // Each of these is wrong in all the ways of those below it, too: the first wins.
  const wrong = {
    id: "0",
    type: "none",
    "node-name": "zz",
    writable: true,
    iothread: "io9",
    "allow-inactive": true,
  };
  const order: [right: Record<string, unknown>, message: string][] = [
    [{}, "Invalid block export id"],
    [{ id: "e0" }, "Block export id 'e0' is already in use"],
    [{ id: "e1" }, "No driver found for the requested export type"],
    [{ type: "fake" }, "Cannot find device='' nor node-name='zz'"],
    [{ "node-name": "ro" }, "Cannot export read-only node as writable"],
    [{ "node-name": "n0" }, 'iothread "io9" not found'],
    [{ iothread: "io0" }, "Export type does not support inactive exports"],
    [{ "allow-inactive": false }, "create failed"],
  ];
  test("checks in QSD's order", async () => {
    await add();
    await graph.blockdevAdd({ driver: "null-co", "node-name": "n1" });
    failCreate = true;
    let options: Record<string, unknown> = { ...wrong };
    for (const [right, message] of order) {
      options = { ...options, ...right };
      if (options["node-name"] === "n0") options["node-name"] = "n1";
      expect(await messageOf(manager.add(options))).toBe(message);
    }
    expect(manager.query().map(({ id }) => id)).toEqual(["e0"]);
  });

  const lists: [iothread: string[], fixed: boolean, message: string][] = [
    [[], true, "Cannot use fixed-iothread for a multi-threaded export"],
    [["zz"], true, "Cannot use fixed-iothread for a multi-threaded export"],
    [[], false, "The set of I/O threads must not be empty"],
    [["io0", "zz"], false, 'iothread "zz" not found'],
  ];
  for (const [iothread, fixed, message] of lists) {
    test(`refuses iothread [${iothread}] with fixed-iothread ${fixed}`, async () => {
      const options = { iothread, "fixed-iothread": fixed };
      expect(await messageOf(add(options))).toBe(message);
    });
  }

  test("asks for the permissions of its kind", async () => {
    await add();
    expect(created[0]!.permissions).toEqual({ used: PERM_CONSISTENT_READ, shared: PERM_ALL });
    await add({ id: "e1", writable: true });
    expect(created[1]!.permissions.used).toBe(PERM_CONSISTENT_READ | PERM_WRITE);
    expect(iothreads.get(MAIN_LOOP).nodes.get("n0")!.used).toBe(PERM_CONSISTENT_READ | PERM_WRITE);
  });

  test("gives its type the members that are its own", async () => {
    await add({ "own-member": 7, writethrough: true });
    expect(created[0]).toMatchObject({ options: { "own-member": 7 }, writethrough: true });
    expect(Object.keys(created[0]!.options)).toEqual(["own-member"]);
  });

  test("moves the node to its iothread", async () => {
    await add({ iothread: "io0" });
    expect(nodesOf("io0")).toEqual(["n0"]);
    expect(nodesOf(MAIN_LOOP)).toEqual(["ro"]);
  });

  test("moves the exports that its node has", async () => {
    await add();
    await add({ id: "e1", iothread: "io0" });
    expect(nodesOf("io0")).toEqual(["n0"]);
    expect(moves).toEqual([`from ${MAIN_LOOP}`, "to io0"]);
    const moved = manager.query().map(({ id }) => id);
    expect(moved).toEqual(["e1", "e0"]);
  });

  test("ignores a move that fails, unless the iothread is fixed", async () => {
    const message = "Cannot change iothread of active block backend";
    await add({ "fixed-iothread": true });
    await add({ id: "e1", iothread: "io0" });
    expect(nodesOf("io0")).toEqual([]);
    expect(moves).toEqual([]);
    const options = { id: "e2", iothread: "io0", "fixed-iothread": true };
    expect(await messageOf(add(options))).toBe(message);
    expect(manager.query()).toHaveLength(2);
  });

  test("leaves all as before when an export of its node can't move", async () => {
    await add();
    await add({ id: "e1" });
    failSuspend = true;
    const options = { id: "e2", iothread: "io0", "fixed-iothread": true };
    expect(await messageOf(add(options))).toBe("suspend failed");
    expect(nodesOf(MAIN_LOOP)).toContain("n0");
    expect(moves).toEqual([]);
  });

  test("takes the exports back when it fails after the move", async () => {
    await add();
    failCreate = true;
    expect(await messageOf(add({ id: "e1", iothread: "io0" }))).toBe("create failed");
    expect(nodesOf("io0")).toEqual([]);
    expect(moves).toEqual([`from ${MAIN_LOOP}`, "to io0", "from io0", `to ${MAIN_LOOP}`]);
  });

  test("activates its node, and takes that back when it fails", async () => {
    const node = graph.find("n0")!;
    await graph.blockdevSetActive("n0", false);
    failCreate = true;
    expect(await messageOf(add({ writable: true }))).toBe("create failed");
    expect(node.active).toBe(false);
    failCreate = false;
    await add({ writable: true });
    expect(node.active).toBe(true);
  });

  test("takes a fixed iothread where the node is already", async () => {
    await add({ iothread: "io0" });
    await add({ id: "e1", iothread: "io0", "fixed-iothread": true });
    expect(manager.query()).toHaveLength(2);
  });

  test("leaves all as before when its type fails", async () => {
    failCreate = true;
    expect(await messageOf(add({ iothread: "io0", writable: true }))).toBe("create failed");
    expect(nodesOf("io0")).toEqual([]);
    expect(iothreads.get(MAIN_LOOP).nodes.get("n0")).toEqual({ used: 0, shared: PERM_ALL });
    expect(manager.query()).toEqual([]);
    expect(deleted).toEqual([]);
    failCreate = false;
    await add();
  });

  test("reserves its id at once", async () => {
    const first = add();
    expect(await messageOf(add())).toBe("Block export id 'e0' is already in use");
    await first;
  });
});

describe("delete()", () => {
  test("refuses what is not there", async () => {
    expect(await messageOf(manager.delete("zz"))).toBe("Export 'zz' is not found");
  });

  test("ends an idle export before it returns", async () => {
    await add();
    await manager.delete("e0", "safe");
    expect(deleted).toEqual(["BLOCK_EXPORT_DELETED e0"]);
    expect(manager.query()).toEqual([]);
    await graph.blockdevDel("n0");
  });

  test("refuses safely while there is a client", async () => {
    await add();
    clientCount = 1;
    expect(await messageOf(manager.delete("e0", "safe"))).toBe("export 'e0' still in use");
    expect(manager.query()[0]!["shutting-down"]).toBe(false);
    clientCount = 0;
    await manager.delete("e0", "safe");
  });

  test("returns before the event when clients are dropped", async () => {
    let end: () => void = () => {};
    deletions = new Promise((resolve) => {
      end = resolve;
    });
    await add();
    clientCount = 2;
    await manager.delete("e0", "hard");
    expect(manager.query()).toEqual([
      { id: "e0", type: "fake", "node-name": "n0", "shutting-down": true },
    ]);
    expect(await messageOf(manager.delete("e0", "hard"))).toBe(
      "Export 'e0' is already shutting down",
    );
    expect(await messageOf(add())).toBe("Block export id 'e0' is already in use");
    expect(await messageOf(graph.blockdevDel("n0"))).toBe("Node n0 is in use");
    expect(deleted).toEqual([]);
    end();
    await manager.closeAll();
    expect(deleted).toEqual(["BLOCK_EXPORT_DELETED e0"]);
    await add();
  });
});

describe("closeAll()", () => {
  test("deletes newest first, and keeps the order of events", async () => {
    await add();
    await add({ id: "e1" });
    await add({ id: "e2" });
    const delays = [30, 0, 15];
    type.delete = () => new Promise((resolve) => setTimeout(resolve, delays.shift()));
    await manager.closeAll("fake");
    expect(deleted.map((event) => event.slice(-2))).toEqual(["e2", "e1", "e0"]);
    expect(manager.query()).toEqual([]);
  });

  test("leaves other types alone", async () => {
    await add();
    await manager.closeAll("nbd");
    expect(manager.query()).toHaveLength(1);
  });
});

test("query() lists the newest first", async () => {
  await add();
  await add({ id: "e1", "node-name": "ro" });
  expect(manager.query()).toEqual([
    { id: "e1", type: "fake", "node-name": "ro", "shutting-down": false },
    { id: "e0", type: "fake", "node-name": "n0", "shutting-down": false },
  ]);
});
