import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../../src/block/graph.ts";
import { PERM_ALL, PERM_RESIZE } from "../../../../src/block/node.ts";
import type { BlockExport } from "../../../../src/exports/export.ts";
import { ExportManager } from "../../../../src/exports/manager.ts";
import { NbdServer } from "../../../../src/exports/nbd/index.ts";
import { MAIN_LOOP } from "../../../../src/iothread/pool.ts";
import { OutportError } from "../../../../src/util/error.ts";
import { type FakeIothread, FakeIothreads, messageOf } from "../../../support/iothread.ts";

let iothreads: FakeIothreads;
let main: FakeIothread;
let graph: BlockGraph;
let server: NbdServer;
let manager: ExportManager;
let deleted: string[];
let exportsMade: BlockExport[];

const ADDRESS = { addr: { type: "unix", path: "/tmp/x.sock" } } as const;

beforeEach(async () => {
  iothreads = new FakeIothreads("io0");
  main = iothreads.get(MAIN_LOOP);
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  server = new NbdServer({
    iothreads,
    resolve: async () => [],
    objectExists: (id) => id === "io0",
    graph,
    closeExports: () => manager.closeAll("nbd"),
  });
  deleted = [];
  exportsMade = [];
  const types = [server.exportType].map((type) => ({
    ...type,
    create: (exp: BlockExport) => {
      exportsMade.push(exp);
      return type.create(exp);
    },
  }));
  manager = new ExportManager({
    graph,
    iothreads,
    types,
    emit: (_event, { id }) => void deleted.push(id),
  });
  await graph.blockdevAdd({ driver: "null-co", "node-name": "n0" });
});

const add = (more: Record<string, unknown> = {}) =>
  manager.add({ type: "nbd", id: "e0", "node-name": "n0", ...more });

describe("start()", () => {
  test("listens with QSD's defaults", async () => {
    let params: unknown;
    main.before = (_call, given) => {
      params = given;
    };
    await server.start(ADDRESS, "monitor");
    expect(params).toEqual({
      addresses: [{ type: "unix", path: "/tmp/x.sock" }],
      label: "/tmp/x.sock",
      connectionsMax: 100,
      handshakeSecondsMax: 10,
    });
    expect(server.running).toBe(true);
  });

  test("refuses a second one", async () => {
    const first = server.start(ADDRESS, "monitor");
    expect(await messageOf(server.start(ADDRESS, "monitor"))).toBe("NBD server already running");
    await first;
    expect(await messageOf(server.start(ADDRESS, "monitor"))).toBe("NBD server already running");
  });

  test("is as before when nothing can be listened on", async () => {
    main.before = () => {
      throw new OutportError("io", "Failed to bind socket to /tmp/x.sock: No");
    };
    expect(await messageOf(server.start(ADDRESS, "monitor"))).toBe(
      "Failed to bind socket to /tmp/x.sock: No",
    );
    main.before = () => {};
    expect(server.running).toBe(false);
    await server.start(ADDRESS, "monitor");
  });

  test("stops again without the credentials that it needs", async () => {
    const messages: string[] = [];
    for (const id of ["io0", "tls0"]) {
      const options = { ...ADDRESS, "tls-creds": id };
      messages.push(await messageOf(server.start(options, "monitor")));
    }
    expect(messages).toEqual([
      "Object with id 'io0' is not TLS credentials",
      "No TLS credentials with id 'tls0'",
    ]);
    expect(main.log.slice(-2)).toEqual(["nbd-server-start", "nbd-server-stop"]);
    await server.start(ADDRESS, "monitor");
  });
});

test("stop() ends the exports first, newest first", async () => {
  await server.start(ADDRESS, "monitor");
  await add();
  await add({ id: "e1", name: "x" });
  main.log.length = 0;
  await server.stop();
  expect(deleted).toEqual(["e1", "e0"]);
  expect(main.log.at(-1)).toBe("nbd-server-stop");
  expect(await messageOf(server.stop())).toBe("NBD server not running");
  expect(await messageOf(add())).toBe("NBD server not running");
});

describe("an export", () => {
  test("needs a server", async () => {
    expect(await messageOf(add({ iothread: ["io0"] }))).toBe("NBD server not running");
    expect(main.nodes.get("n0")).toEqual({ used: 0, shared: PERM_ALL });
  });

  const refused: [options: Record<string, unknown>, message: string][] = [
    [{ iothread: ["io0"] }, "NBD export does not support multi-threading"],
    [{ name: "taken" }, "NBD server already has export named 'taken'"],
    [{ name: "é".repeat(2049) }, `export name '${"é".repeat(2049)}' too long`],
    [{ description: "d".repeat(4097) }, `description '${"d".repeat(4097)}' too long`],
    [{ bitmaps: [{ node: "nx", name: "bm" }] }, "Node 'nx' not found"],
  ];
  for (const [options, message] of refused) {
    test(`is refused: ${message.slice(0, 60)}`, async () => {
      await server.start(ADDRESS, "monitor");
      await add({ id: "other", name: "taken" });
      const before = main.nodes.get("n0");
      expect(await messageOf(add(options))).toBe(message);
      expect(main.nodes.get("n0")).toEqual(before!);
      expect([...main.exports]).toEqual(["other"]);
      await add();
    });
  }

  test("takes the name of its node, and unshares resize", async () => {
    await server.start(ADDRESS, "monitor");
    await add();
    expect(main.nodes.get("n0")!.shared).toBe(PERM_ALL & ~PERM_RESIZE);
    expect(await messageOf(add({ id: "e1", name: "n0" }))).toBe(
      "NBD server already has export named 'n0'",
    );
    await manager.delete("e0");
    await add({ id: "e1", name: "n0" });
  });

  test("lives where its node is, and the listening thread knows it", async () => {
    await server.start(ADDRESS, "monitor");
    await add({ iothread: "io0" });
    expect([...iothreads.get("io0").exports]).toEqual(["e0"]);
    expect([...main.registered]).toEqual(["e0"]);
  });

  for (const failing of ["export-open", "nbd-export-register"] as const) {
    test(`leaves nothing behind when ${failing} fails`, async () => {
      await server.start(ADDRESS, "monitor");
      main.before = (call) => {
        if (call === failing) throw new OutportError("io", "injected");
      };
      expect(await messageOf(add())).toBe("injected");
      main.before = () => {};
      expect(main.exports.size).toBe(0);
      expect(main.registered.size).toBe(0);
      expect(main.nodes.get("n0")).toEqual({ used: 0, shared: PERM_ALL });
      await add();
    });
  }

  for (const moment of ["export-open", "nbd-export-register"] as const) {
    test(`is not made when the server stops at ${moment}`, async () => {
      await server.start(ADDRESS, "monitor");
      let stopped: Promise<void> = Promise.resolve();
      main.before = (call) => {
        if (call === moment) stopped = server.stop();
      };
      expect(await messageOf(add())).toBe("NBD server not running");
      await stopped;
      expect(main.exports.size).toBe(0);
      expect(main.registered.size).toBe(0);
      expect(manager.query()).toEqual([]);
      main.before = () => {};
      await server.start(ADDRESS, "monitor");
      await add();
      expect(deleted).toEqual([]);
    });
  }

  test("ends once when the server stops during a deletion that is refused", async () => {
    await server.start(ADDRESS, "monitor");
    await add();
    main.connectionCount = 1;
    const refused = messageOf(manager.delete("e0", "safe"));
    await server.stop();
    expect(await refused).toBe("export 'e0' still in use");
    expect(deleted).toEqual(["e0"]);
    expect(main.log.filter((call) => call === "export-close")).toHaveLength(1);
    expect(main.registered.size).toBe(0);
  });

  test("ends once when the server stops during its deletion", async () => {
    await server.start(ADDRESS, "monitor");
    await add();
    const gone = manager.delete("e0", "safe");
    const second = messageOf(manager.delete("e0", "hard"));
    await server.stop();
    await gone;
    expect(await second).toBe("Export 'e0' is already shutting down");
    expect(deleted).toEqual(["e0"]);
    expect(main.log.filter((call) => call === "export-close")).toHaveLength(1);
  });

  test("is deleted where it is after a move that has begun", async () => {
    await server.start(ADDRESS, "monitor");
    await add();
    let goOn = (): void => {};
    const held = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    main.before = (call) => (call === "export-suspend" ? held : undefined);
    const moved = graph.setIothread("n0", "io0", true);
    await new Promise((resolve) => setTimeout(resolve, 1));
    const gone = manager.delete("e0", "hard");
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(main.log).not.toContain("export-close");
    goOn();
    await moved;
    await gone;
    expect(iothreads.get("io0").log.slice(-1)).toEqual(["node-permissions"]);
    expect(iothreads.get("io0").exports.size).toBe(0);
    expect(deleted).toEqual(["e0"]);
  });

  test("does not move between its end and its leave from the node", async () => {
    await server.start(ADDRESS, "monitor");
    await add();
    await add({ id: "e1", name: "x" });
    let goOn = (): void => {};
    const held = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    // The newest is asked first: by the time that e0 is, it has been closed.
    main.before = (call) => (call === "export-suspend" ? held : undefined);
    const moved = messageOf(graph.setIothread("n0", "io0", true));
    await new Promise((resolve) => setTimeout(resolve, 1));
    const gone = manager.delete("e0", "hard");
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect([...main.exports]).toEqual(["e1"]);
    goOn();
    expect(await moved).toBe("Cannot change iothread of active block backend");
    await gone;
    expect([...main.exports]).toEqual(["e1"]);
    expect(deleted).toEqual(["e0"]);
  });

  test("does not move any more once its deletion has begun", async () => {
    await server.start(ADDRESS, "monitor");
    await add();
    let goOn = (): void => {};
    main.before = (call) =>
      call === "export-close"
        ? new Promise<void>((resolve) => {
            goOn = resolve;
          })
        : undefined;
    main.connectionCount = 1;
    await manager.delete("e0", "hard");
    const message = "Cannot change iothread of active block backend";
    expect(await messageOf(graph.setIothread("n0", "io0", true))).toBe(message);
    goOn();
    await manager.closeAll();
    await graph.setIothread("n0", "io0", false);
  });

  test("counts clients of all threads for a safe deletion", async () => {
    await server.start(ADDRESS, "monitor");
    await add({ iothread: "io0" });
    main.connectionCount = 1;
    expect(await messageOf(manager.delete("e0", "safe"))).toBe("export 'e0' still in use");
    expect([...iothreads.get("io0").exports]).toEqual(["e0"]);
    await manager.delete("e0", "hard");
    await manager.closeAll();
    expect(iothreads.get("io0").exports.size).toBe(0);
  });
});

describe("a connection of another thread", () => {
  const adopt = { fd: 7, exportId: "e0", session: {}, early: new Uint8Array() };
  const event = { event: "nbd-adopt", adopt } as const;
  const nextRelease = () =>
    new Promise((resolve) => {
      main.before = (call, params) => {
        if (call === "nbd-release") resolve(params);
      };
    });

  test("goes there", async () => {
    await server.start(ADDRESS, "monitor");
    await add({ iothread: "io0" });
    const io0 = iothreads.get("io0");
    io0.log.length = 0;
    iothreads.emit(MAIN_LOOP, event);
    await Promise.resolve();
    expect(io0.log).toEqual(["nbd-adopt"]);
    expect(main.log).not.toContain("nbd-release");
  });

  test("comes back when nobody takes it", async () => {
    await server.start(ADDRESS, "monitor");
    await add({ iothread: "io0" });
    iothreads.get("io0").before = () => {
      throw new OutportError("not-found", "The export is gone");
    };
    const released = nextRelease();
    iothreads.emit(MAIN_LOOP, event);
    expect(await released).toEqual({ exportId: "e0", closeFd: 7 });
  });

  test("comes back when there is no such export", async () => {
    const released = nextRelease();
    iothreads.emit(MAIN_LOOP, event);
    expect(await released).toEqual({ exportId: "e0", closeFd: 7 });
  });

  test("waits while its export moves, and follows it", async () => {
    await server.start(ADDRESS, "monitor");
    await add();
    const [exp] = exportsMade;
    await server.exportType.suspend(exp!);
    main.log.length = 0;
    iothreads.emit(MAIN_LOOP, event);
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(main.log).toEqual([]);
    exp!.node.iothread = iothreads.get("io0");
    await server.exportType.resume(exp!);
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(iothreads.get("io0").log).toEqual(["export-resume", "nbd-adopt"]);
    expect([...iothreads.get("io0").exports]).toEqual(["e0"]);
  });

  test("is released where it entered when it ends", async () => {
    const released = new Promise((resolve) => {
      main.before = (call, params) => {
        if (call === "nbd-release") resolve(params);
      };
    });
    iothreads.emit("io0", { event: "nbd-released", exportId: "e0" });
    expect(await released).toEqual({ exportId: "e0", closeFd: null });
  });
});
