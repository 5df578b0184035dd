import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../../src/block/graph.ts";
import { PERM_ALL, PERM_RESIZE } from "../../../../src/block/node.ts";
import { exportTypes } from "../../../../src/exports/index.ts";
import { ExportManager } from "../../../../src/exports/manager.ts";
import { NbdServer } from "../../../../src/exports/nbd/index.ts";
import { OutportError } from "../../../../src/util/error.ts";
import { type FakeIothread, FakeIothreads, messageOf } from "../../../support/iothread.ts";

let iothreads: FakeIothreads;
let main: FakeIothread;
let graph: BlockGraph;
let server: NbdServer;
let manager: ExportManager;
let deleted: string[];

const ADDRESS = { addr: { type: "unix", path: "/tmp/x.sock" } } as const;

beforeEach(async () => {
  iothreads = new FakeIothreads("io0");
  main = iothreads.get("main-loop");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  server = new NbdServer({
    iothreads,
    resolve: async () => [],
    nodeExists: (name) => graph.find(name) !== undefined,
    closeExports: () => manager.closeAll("nbd"),
  });
  deleted = [];
  manager = new ExportManager({
    graph,
    iothreads,
    types: exportTypes({ nbdServer: server }),
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
    await server.start(ADDRESS);
    expect(params).toEqual({
      addresses: [{ type: "unix", path: "/tmp/x.sock" }],
      label: "/tmp/x.sock",
      connectionsMax: 100,
      handshakeSecondsMax: 10,
    });
    expect(server.running).toBe(true);
    expect(server.port).toBe(10809);
  });

  test("refuses a second one", async () => {
    const first = server.start(ADDRESS);
    expect(await messageOf(server.start(ADDRESS))).toBe("NBD server already running");
    await first;
    expect(await messageOf(server.start(ADDRESS))).toBe("NBD server already running");
  });

  test("is as before when nothing can be listened on", async () => {
    main.before = () => {
      throw new OutportError("io", "Failed to bind socket to /tmp/x.sock: No");
    };
    expect(await messageOf(server.start(ADDRESS))).toBe("Failed to bind socket to /tmp/x.sock: No");
    main.before = () => {};
    expect(server.running).toBe(false);
    await server.start(ADDRESS);
  });

  test("stops again without the credentials that it needs", async () => {
    const options = { ...ADDRESS, "tls-creds": "tls0" };
    expect(await messageOf(server.start(options))).toBe("No TLS credentials with id 'tls0'");
    expect(main.log.slice(-2)).toEqual(["nbd-server-start", "nbd-server-stop"]);
    await server.start(ADDRESS);
  });
});

test("stop() ends the exports first, newest first", async () => {
  await server.start(ADDRESS);
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
    [{ bitmaps: ["bm"] }, "Bitmap 'bm' is not found"],
    [{ bitmaps: [{ node: "n0", name: "bm" }] }, "Dirty bitmap 'bm' not found"],
    [{ bitmaps: [{ node: "nx", name: "bm" }] }, "Node 'nx' not found"],
  ];
  for (const [options, message] of refused) {
    test(`is refused: ${message.slice(0, 60)}`, async () => {
      await server.start(ADDRESS);
      await add({ id: "other", name: "taken" });
      const before = main.nodes.get("n0");
      expect(await messageOf(add(options))).toBe(message);
      expect(main.nodes.get("n0")).toEqual(before!);
      expect([...main.exports]).toEqual(["other"]);
      await add();
    });
  }

  test("takes the name of its node, and unshares resize", async () => {
    await server.start(ADDRESS);
    await add();
    expect(main.nodes.get("n0")!.shared).toBe(PERM_ALL & ~PERM_RESIZE);
    expect(await messageOf(add({ id: "e1", name: "n0" }))).toBe(
      "NBD server already has export named 'n0'",
    );
    await manager.delete("e0");
    await add({ id: "e1", name: "n0" });
  });

  test("lives where its node is, and the listening thread knows it", async () => {
    await server.start(ADDRESS);
    await add({ iothread: "io0" });
    expect([...iothreads.get("io0").exports]).toEqual(["e0"]);
    expect([...main.registered]).toEqual(["e0"]);
  });

  for (const failing of ["export-open", "nbd-export-register"] as const) {
    test(`leaves nothing behind when ${failing} fails`, async () => {
      await server.start(ADDRESS);
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

  test("is not made while the server stops", async () => {
    await server.start(ADDRESS);
    let stopped: Promise<void> = Promise.resolve();
    main.before = (call) => {
      if (call === "export-open") stopped = server.stop();
    };
    expect(await messageOf(add())).toBe("NBD server not running");
    await stopped;
    expect(main.exports.size).toBe(0);
    expect(main.registered.size).toBe(0);
  });

  test("counts clients of all threads for a safe deletion", async () => {
    await server.start(ADDRESS);
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
  const event = { event: "nbd-adopt", iothread: "io0", adopt } as const;

  test("goes there", async () => {
    const io0 = iothreads.get("io0");
    iothreads.emit("main-loop", event);
    await Promise.resolve();
    expect(io0.log).toEqual(["nbd-adopt"]);
    expect(main.log).not.toContain("nbd-release");
  });

  test("comes back when nobody takes it", async () => {
    iothreads.get("io0").before = () => {
      throw new OutportError("not-found", "The export is gone");
    };
    const released = new Promise((resolve) => {
      main.before = (call, params) => {
        if (call === "nbd-release") resolve(params);
      };
    });
    iothreads.emit("main-loop", event);
    expect(await released).toEqual({ exportId: "e0", closeFd: 7 });
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
