import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { blockDrivers } from "../../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../../src/block/graph.ts";
import { ExportManager } from "../../../../src/exports/manager.ts";
import { NbdServer } from "../../../../src/exports/nbd/index.ts";
import { IothreadPool, MAIN_LOOP } from "../../../../src/iothread/pool.ts";
import { Linux } from "../../../../src/runtime/linux.ts";
import { Logger } from "../../../../src/util/log.ts";
import { driver } from "../../../support/driver.ts";
import { messageOf } from "../../../support/iothread.ts";
import { NbdClient } from "../../../support/nbd-client.ts";

// Real threads, real sockets: "here" lives on the listening thread, "there" on another one.
const BYTES = 1024 * 1024;
const linux = new Linux(driver.ffi, driver.arch);
let folder: string;
let path: string;
let pool: IothreadPool;
let graph: BlockGraph;
let server: NbdServer;
let manager: ExportManager;
let crashes: string[];
let deleted: string[];
let clients: NbdClient[];

async function setUp(engine: string): Promise<void> {
  pool = new IothreadPool({
    driver,
    linux,
    engine,
    onCrash: (id, error) => void crashes.push(`${id}: ${error.stack}`),
    logger: new Logger({ write: () => {}, realTimeUs: driver.clock.realTimeUs }),
  });
  await Promise.all([pool.start(MAIN_LOOP), pool.start("io0")]);
  graph = new BlockGraph({ drivers: blockDrivers, iothreads: pool });
  server = new NbdServer({
    iothreads: pool,
    resolve: driver.sockets.resolve,
    graph,
    objectExists: () => false,
    closeExports: () => manager.closeAll("nbd"),
  });
  manager = new ExportManager({
    graph,
    iothreads: pool,
    types: [server.exportType],
    emit: (_event, { id }) => void deleted.push(id),
  });
  for (const name of ["here", "there"]) {
    const filename = join(folder, name);
    writeFileSync(filename, "");
    truncateSync(filename, BYTES);
    await graph.blockdevAdd({
      driver: "raw",
      "node-name": name,
      file: { driver: "file", filename },
    });
  }
}

async function serve(more = {}): Promise<void> {
  await server.start({ addr: { type: "unix", path }, ...more }, "monitor");
  const common = { type: "nbd", writable: true };
  await manager.add({ ...common, id: "here", "node-name": "here" });
  await manager.add({ ...common, id: "there", "node-name": "there", iothread: "io0" });
}

async function connect(exportName: string): Promise<NbdClient> {
  const client = await NbdClient.open({ path }, { exportName });
  clients.push(client);
  return client;
}

/** Until `check` no longer throws; what it threw last after a while. */
async function eventually(check: () => Promise<unknown>): Promise<void> {
  const endMs = Date.now() + 30_000;
  for (;;) {
    try {
      await check();
      return;
    } catch (error) {
      if (Date.now() > endMs) throw error;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}

/** What the descriptors of this process name; sockets of clients and servers are not counted. */
function readlinks(): string[] {
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      return [];
    }
  });
}

const openFds = () => readdirSync("/proc/self/fd").length;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "outport-"));
  path = join(folder, "nbd.sock");
  crashes = [];
  deleted = [];
  clients = [];
});

afterEach(async () => {
  for (const client of clients) client.close();
  expect(crashes).toEqual([]);
  await manager.closeAll();
  if (server.running) await server.stop();
  await graph.closeAll();
  expect(await pool.stopAll()).toBe(true);
  rmSync(folder, { recursive: true });
});

for (const engine of ["io_uring", "epoll"]) {
  describe(`NbdService with ${engine}`, () => {
    for (const name of ["here", "there"]) {
      test(`serves a client whose export lives ${name}`, async () => {
        await setUp(engine);
        await serve();
        const client = await connect(name);
        const data = new Uint8Array(100_000).map((_, index) => index % 251);
        await client.write(4096, data);
        await client.flush();
        expect(Buffer.compare(await client.read(4096, data.length), data)).toBe(0);
        const file = readFileSync(join(folder, name)).subarray(4096, 4096 + data.length);
        expect(Buffer.compare(file, data)).toBe(0);
      });

      test(`deletes safely only without a client ${name}`, async () => {
        await setUp(engine);
        await serve();
        const client = await connect(name);
        await client.read(0, 512);
        expect(await messageOf(manager.delete(name, "safe"))).toBe(`export '${name}' still in use`);
        await client.read(0, 512);
        await client.disconnect();
        await eventually(() => manager.delete(name, "safe"));
        expect(deleted).toEqual([name]);
        await graph.blockdevDel(name);
      });

      test(`drops the clients ${name} of a hard deletion`, async () => {
        await setUp(engine);
        await serve();
        const [one, other] = [await connect(name), await connect(name)];
        await manager.delete(name, "hard");
        expect(await NbdClient.list({ path })).not.toContain(name);
        await eventually(async () => expect([deleted, one.stream.ended]).toEqual([[name], true]));
        await expect(other.read(0, 512)).rejects.toThrow();
        await manager.add({ type: "nbd", id: name, "node-name": name });
        expect((await (await connect(name)).read(0, 512)).length).toBe(512);
      });
    }

    test("lets the next client in when one of another thread leaves", async () => {
      await setUp(engine);
      await serve({ "max-connections": 2 });
      const one = await connect("there");
      await connect("here");
      let entered = false;
      const third = connect("here").then((client) => {
        entered = true;
        return client.read(0, 512);
      });
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(entered).toBe(false);
      await one.disconnect();
      expect((await third).length).toBe(512);
    });

    test("stops with clients on both threads, and its socket is gone", async () => {
      await setUp(engine);
      await serve();
      await connect("here");
      await connect("there");
      await server.stop();
      expect(deleted).toEqual(["there", "here"]);
      expect(readdirSync(folder).sort()).toEqual(["here", "there"]);
    });

    test("listens on further addresses of one server", async () => {
      await setUp(engine);
      await serve();
      await server.listenAlso({ addr: { type: "inet", host: "127.0.0.1", port: "0" } });
      await server.listenAlso({ addr: { type: "unix", path: `${path}2` } });
      expect(await NbdClient.list({ path: `${path}2` })).toEqual(["here", "there"]);
      await server.stop();
      expect(readdirSync(folder).sort()).toEqual(["here", "there"]);
    });

    test("counts what its exports do", async () => {
      await setUp(engine);
      await serve();
      const client = await connect("there");
      await client.write(0, new Uint8Array(8192));
      await client.read(0, 4096);
      await client.flush();
      const nodeNames = ["there"];
      const [there] = await pool.get("io0").call("nodes-statistics", { nodeNames });
      expect(there?.stats).toMatchObject({
        wr_operations: 1,
        wr_bytes: 8192,
        rd_bytes: 4096,
        flush_operations: 1,
        wr_highest_offset: 8192,
      });
    });

    test("keeps its clients and their requests while it moves", async () => {
      await setUp(engine);
      await serve();
      const tryMove = (id: string) =>
        messageOf(graph.exclusive(() => graph.move(graph.find("here")!, pool.get(id))));
      // A client that is slow to take its reply, as on a busy machine, keeps it where it is.
      const move = async (id: string) => {
        const inUse = "Cannot change iothread of active block backend";
        let message = await tryMove(id);
        for (let i = 0; i < 20 && message === inUse; i++) message = await tryMove(id);
        expect(message).toBe("no error");
      };
      const clients = [await connect("here"), await connect("here")];
      const mapped = readlinks().filter((target) => target.includes(folder)).length;
      let moving = true;
      const work = clients.map(async (client, index) => {
        let count = 0;
        for (; moving; count++) {
          const data = new Uint8Array(1 + ((count * 7919) % 100_000)).fill(count % 256);
          await client.write(index * 200_000, data);
          expect(Buffer.compare(await client.read(index * 200_000, data.length), data)).toBe(0);
        }
        return count;
      });
      for (let i = 0; i < 20; i++) await move(i % 2 === 0 ? "io0" : MAIN_LOOP);
      moving = false;
      const counts = await Promise.all(work);
      for (const count of counts) expect(count).toBeGreaterThan(0);
      await move("io0");
      const late = await connect("here");
      expect((await late.read(0, 512)).length).toBe(512);
      expect(await messageOf(manager.delete("here", "safe"))).toBe("export 'here' still in use");
      for (const client of [...clients, late]) await client.disconnect();
      await eventually(() => manager.delete("here", "safe"));
      const files = readlinks().filter((target) => target.includes(folder));
      expect(files.length).toBeLessThanOrEqual(mapped);
    });

    test("leaves no descriptor behind", async () => {
      await setUp(engine);
      await serve();
      await (await connect("there")).disconnect();
      await (await connect("here")).disconnect();
      await eventually(() => manager.delete("there", "safe"));
      await manager.add({ type: "nbd", id: "there", "node-name": "there" });
      const before = openFds();
      for (let i = 0; i < 20; i++) {
        const client = await connect(i % 2 === 0 ? "there" : "here");
        await client.read(0, 4096);
        client.close();
      }
      await eventually(() => manager.delete("there", "safe"));
      await eventually(() => manager.delete("here", "safe"));
      await eventually(async () => expect(openFds()).toBeLessThanOrEqual(before));
    });
  });
}
