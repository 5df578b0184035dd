/** The commands with fake managers: what they pass on, and the schemas made of plug-ins. */
import { describe, expect, test } from "bun:test";
import type { BlockDriver } from "../../../src/block/driver.ts";
import type { ExportType } from "../../../src/exports/export.ts";
import { QomTree } from "../../../src/objects/qom.ts";
import { ObjectRegistry } from "../../../src/objects/registry.ts";
import { int, optional, str } from "../../../src/qapi/scalars.ts";
import type { ChardevCommands } from "../../../src/qmp/commands/chardev.ts";
import { allCommands } from "../../../src/qmp/commands/index.ts";
import { Dispatcher } from "../../../src/qmp/dispatcher.ts";

const COW_CHILD = { role: "backing", optional: true, nullable: true };
const open = () => Promise.reject(new Error("not on main"));
const drivers: BlockDriver[] = [
  { name: "disk", members: { filename: str, size: optional(int) }, children: [], open },
  { name: "over", members: {}, children: [{ role: "file", optional: false }], open },
  { name: "cow", members: {}, children: [COW_CHILD], open },
];
const types = [{ name: "nbd", members: { name: optional(str) } }] as unknown as ExportType[];

function setUp() {
  const log: unknown[] = [];
  const record =
    (name: string) =>
    async (...args: unknown[]) => {
      log.push([name, ...args]);
    };
  const nbdServer = {
    running: false,
    start: record("start"),
    listenAlso: record("listenAlso"),
    stop: record("stop"),
  };
  const commands = allCommands({
    drivers,
    graph: {
      blockdevAdd: record("blockdevAdd"),
      blockdevDel: record("blockdevDel"),
      blockdevReopen: record("blockdevReopen"),
      blockdevSetActive: record("blockdevSetActive"),
      setIothread: record("setIothread"),
    },
    queries: {
      namedBlockNodes: async (flat) => [{ flat }] as never,
      devices: () => [],
      blockStats: async (ofNodes) => [{ ofNodes }] as never,
      blockGraph: async () => ({ nodes: [], edges: [] }),
    },
    resize: record("resize"),
    setWriteThreshold: record("setWriteThreshold"),
    bitmaps: { sha256: async ({ name }) => `of ${name}` },
    changeBitmap: record("changeBitmap"),
    bitmapStep: (change) => async () => {
      log.push(["bitmapStep", change]);
      return { keep: async () => {}, undo: async () => {} };
    },
    snapshots: {
      run: record("snapshot"),
      deleteInternal: async (deletion) => {
        log.push(["deleteInternal", deletion]);
        return { id: "1" } as never;
      },
      changeBackingFile: record("changeBackingFile"),
      step: (action) => async () => {
        log.push(["snapshotStep", action]);
        return { keep: async () => {}, undo: async () => {} };
      },
    },
    runSteps: async (steps) => {
      for (const step of steps) await step();
    },
    jobs: { query: () => [], apply: (verb, id) => void log.push([verb, id]) },
    createImage: (id, options) => void log.push(["createImage", id, options]),
    exports: {
      add: record("add"),
      delete: record("delete"),
      addLegacyNbd: record("addLegacyNbd"),
      deleteLegacyNbd: record("deleteLegacyNbd"),
      query: () => [],
    },
    nbdServer,
    types,
    objects: new ObjectRegistry([]),
    qom: new QomTree({ kinds: [], types: [], objects: () => [], chardevs: () => [] }),
    chardevs: {} as ChardevCommands,
    quit: record("quit"),
  });
  return { log, nbdServer, dispatcher: new Dispatcher(commands) };
}

describe("blockdev-add", () => {
  const add = (options: object) => setUp().dispatcher.execute("blockdev-add", options);

  test("takes a tree of inline children and references", async () => {
    const { log, dispatcher } = setUp();
    const options = {
      driver: "over",
      "node-name": "a",
      file: { driver: "cow", backing: { driver: "over", file: "zz" } },
    };
    expect(await dispatcher.execute("blockdev-add", options)).toEqual({});
    expect(log).toEqual([["blockdevAdd", options]]);
  });

  test("asks for children and members of the driver", async () => {
    await expect(add({ driver: "over" })).rejects.toThrow("Parameter 'file' is missing");
    await expect(add({ driver: "over", file: { driver: "disk" } })).rejects.toThrow(
      "Parameter 'file.filename' is missing",
    );
    await expect(add({ driver: "over", file: null })).rejects.toThrow(
      "Invalid parameter type for 'file', expected: BlockdevRef",
    );
    expect(await add({ driver: "cow", backing: null })).toEqual({});
    expect(await add({ driver: "cow" })).toEqual({});
    await expect(add({ driver: "x" })).rejects.toThrow(
      "Parameter 'driver' does not accept value 'x'",
    );
  });
});

describe("dirty bitmaps", () => {
  const place = { node: "n", name: "b" };

  test("each command is one change", async () => {
    const { log, dispatcher } = setUp();
    for (const what of ["remove", "clear", "enable", "disable"]) {
      expect(await dispatcher.execute(`block-dirty-bitmap-${what}`, place)).toEqual({});
    }
    const added = { ...place, granularity: 512 };
    await dispatcher.execute("block-dirty-bitmap-add", added);
    const merged = { node: "n", target: "b", bitmaps: ["c", place] };
    await dispatcher.execute("block-dirty-bitmap-merge", merged);
    expect(log).toEqual([
      ["changeBitmap", { type: "remove", data: place }],
      ["changeBitmap", { type: "clear", data: place }],
      ["changeBitmap", { type: "enable", data: place }],
      ["changeBitmap", { type: "disable", data: place }],
      ["changeBitmap", { type: "add", data: added }],
      ["changeBitmap", { type: "merge", data: merged }],
    ]);
    expect(await dispatcher.execute("x-debug-block-dirty-bitmap-sha256", place)).toEqual({
      sha256: "of b",
    });
  });

  test("a transaction is its changes in their order", async () => {
    const { log, dispatcher } = setUp();
    const actions = [
      { type: "block-dirty-bitmap-add", data: place },
      { type: "block-dirty-bitmap-clear", data: place },
    ];
    expect(await dispatcher.execute("transaction", { actions })).toEqual({});
    expect(log).toEqual([
      ["bitmapStep", { type: "add", data: place }],
      ["bitmapStep", { type: "clear", data: place }],
    ]);
    const properties = { "completion-mode": "grouped" };
    await expect(dispatcher.execute("transaction", { actions, properties })).rejects.toThrow(
      "Action 'block-dirty-bitmap-add' does not support transaction property " +
        "completion-mode = grouped",
    );
    const aborting = { actions: [{ type: "abort", data: {} }] };
    await expect(dispatcher.execute("transaction", aborting)).rejects.toThrow(
      "Transaction aborted using Abort action",
    );
  });
});

describe("nbd-server-start", () => {
  const args = { addr: { type: "unix", data: { path: "/x" } }, "max-connections": 5 };
  const flat = { addr: { type: "unix", path: "/x" }, "max-connections": 5 };

  test("wants the nested form of the address", async () => {
    const { log, dispatcher } = setUp();
    await dispatcher.execute("nbd-server-start", args);
    expect(log).toEqual([["start", flat, "monitor"]]);
    await expect(dispatcher.execute("nbd-server-start", flat)).rejects.toThrow(
      "Parameter 'addr.data' is missing",
    );
  });

  test("adds an address on the command line only", async () => {
    const { log, nbdServer, dispatcher } = setUp();
    nbdServer.running = true;
    await dispatcher.execute("nbd-server-start", args);
    await dispatcher.execute("nbd-server-start", args, { commandLine: true });
    expect(log).toEqual([
      ["start", flat, "monitor"],
      ["listenAlso", flat],
    ]);
  });
});

describe("commands on nodes", () => {
  test("have QSD's defaults", async () => {
    const { dispatcher } = setUp();
    expect(await dispatcher.execute("query-named-block-nodes", {})).toEqual([{ flat: false }]);
    const flat = { flat: true };
    expect(await dispatcher.execute("query-named-block-nodes", flat)).toEqual([flat]);
    expect(await dispatcher.execute("query-blockstats", {})).toEqual([{ ofNodes: false }]);
    expect(await dispatcher.execute("query-block", flat)).toEqual([]);
  });

  test("hand on what they are given", async () => {
    const { log, dispatcher } = setUp();
    const resize = { "node-name": "n", size: 512 };
    expect(await dispatcher.execute("block_resize", resize)).toEqual({});
    const threshold = { "node-name": "n", "write-threshold": 7 };
    expect(await dispatcher.execute("block-set-write-threshold", threshold)).toEqual({});
    expect(log).toEqual([
      ["resize", resize],
      ["setWriteThreshold", "n", 7],
    ]);
  });
});

describe("block-export-del", () => {
  test("hands on the mode", async () => {
    const { log, dispatcher } = setUp();
    await dispatcher.execute("block-export-del", { id: "e" });
    await dispatcher.execute("block-export-del", { id: "e", mode: "hard" });
    expect(log).toEqual([
      ["delete", "e", undefined],
      ["delete", "e", "hard"],
    ]);
  });
});

describe("query-commands", () => {
  test("lists every command", async () => {
    const { dispatcher } = setUp();
    const listed = (await dispatcher.execute("query-commands", {})) as { name: string }[];
    expect(listed.map(({ name }) => name)).toEqual(dispatcher.commands.map(({ name }) => name));
  });
});
