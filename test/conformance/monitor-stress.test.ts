/** Monitors under bad clients, many clients and racing clients: the daemon lives, nothing leaks. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { connect, type Socket } from "node:net";
import { temporaryDirectory } from "../support/images.ts";
import { type RunningDaemon, sleep, startDaemon } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";
import { Random, randomSeed } from "../support/random.ts";

setDefaultTimeout(180_000);

const MANY = 200;
const NEGOTIATE = '{"execute":"qmp_capabilities"}';

function rawSocket(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path });
    socket.on("error", reject);
    socket.once("connect", () => resolve(socket));
  });
}

async function addMonitors(running: RunningDaemon, file: (name: string) => string, count: number) {
  const paths: string[] = [];
  for (let n = 0; n < count; n++) {
    const path = file(`m${n}`);
    const addr = { type: "unix", data: { path } };
    const backend = { type: "socket", data: { addr } };
    await running.qmp.execute("chardev-add", { id: `c${n}`, backend });
    const monitor = { "qom-type": "monitor-qmp", id: `m${n}`, chardev: `c${n}` };
    await running.qmp.execute("object-add", monitor);
    paths.push(path);
  }
  return paths;
}

describe("monitors", () => {
  test(`serve ${MANY} clients at once, each with every event, and give all back`, async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, [
      ...["--blockdev", "null-co,node-name=n"],
      ...["--nbd-server", `addr.type=unix,addr.path=${directory.file("nbd")}`],
    ]);
    const { qmp, daemon } = running;
    const fds = daemon.fdCount();
    const paths = await addMonitors(running, (name) => directory.file(name), MANY);
    const clients = await Promise.all(paths.map((path) => Qmp.connect(path)));
    const versions = await Promise.all(clients.map((client) => client.execute("query-version")));
    expect(versions).toHaveLength(MANY);
    await qmp.execute("block-export-add", { type: "nbd", id: "e", "node-name": "n" });
    const events = clients.map((client) => client.event("BLOCK_EXPORT_DELETED"));
    await qmp.execute("block-export-del", { id: "e" });
    for (const { data } of await Promise.all(events)) expect(data).toEqual({ id: "e" });
    for (const client of clients) client.close();
    for (let n = 0; n < MANY; n++) {
      await qmp.execute("object-del", { id: `m${n}` });
      await qmp.execute("chardev-remove", { id: `c${n}` });
    }
    for (let round = 0; daemon.fdCount() > fds && round < 3000; round++) await sleep(10);
    expect(daemon.fdCount()).toBeLessThanOrEqual(fds);
  });

  test("serve those who wait for one socket, one after the other", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    running.qmp.close();
    const clients = await Promise.all(
      Array.from({ length: MANY }, () => Qmp.connectRaw(running.monitor)),
    );
    // The order in which they were accepted is the daemon's.
    await Promise.all(
      clients.map(async (client) => {
        await client.negotiate();
        expect(await client.execute("query-block-exports")).toEqual([]);
        client.close();
      }),
    );
  });

  test("live with clients that leave at any moment", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const [path = ""] = await addMonitors(running, (name) => directory.file(name), 1);
    const fds = running.daemon.fdCount();
    const random = new Random(randomSeed());
    const text = `${NEGOTIATE}${'{"execute":"query-block-exports"}'.repeat(20)}`;
    for (let round = 0; round < 150; round++) {
      const socket = await rawSocket(path);
      socket.on("error", () => {});
      socket.write(text.slice(0, random.below(text.length)));
      if (random.chance(0.5)) await sleep(random.below(3));
      if (random.chance(0.5)) socket.destroy();
      else socket.resetAndDestroy();
    }
    const client = await Qmp.connect(path);
    expect(await client.execute("query-block-exports")).toEqual([]);
    client.close();
    for (let round = 0; running.daemon.fdCount() > fds && round < 3000; round++) await sleep(10);
    expect(running.daemon.fdCount()).toBeLessThanOrEqual(fds);
  });

  test("answer all of a client that sends no more, then end its connection", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const [path = ""] = await addMonitors(running, (name) => directory.file(name), 1);
    const socket = await rawSocket(path);
    let text = "";
    socket.setEncoding("utf8").on("data", (more: string) => {
      text += more;
    });
    const ended = new Promise((resolve) => socket.once("end", resolve));
    socket.end(NEGOTIATE + '{"execute":"query-block-exports"}'.repeat(1000));
    await ended;
    expect(text.split("\r\n")).toHaveLength(1 + 1 + 1000 + 1);
  });

  test("do not grow for a client that never reads, and serve the others", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, [
      ...["--blockdev", "null-co,node-name=n"],
      ...["--nbd-server", `addr.type=unix,addr.path=${directory.file("nbd")}`],
    ]);
    const { qmp, daemon } = running;
    const [path = ""] = await addMonitors(running, (name) => directory.file(name), 1);
    const socket = await rawSocket(path);
    socket.on("error", () => {});
    socket.pause();
    const before = daemon.residentKiB();
    socket.write(NEGOTIATE + '{"execute":"query-commands"}'.repeat(100_000));
    await sleep(500);
    expect(daemon.residentKiB() - before).toBeLessThan(64 * 1024);
    // Others are served as ever.
    await qmp.execute("block-export-add", { type: "nbd", id: "e", "node-name": "n" });
    await qmp.execute("block-export-del", { id: "e" });
    await qmp.event("BLOCK_EXPORT_DELETED");
    socket.destroy();
    const next = await Qmp.connect(path);
    expect(await next.execute("query-block-exports")).toEqual([]);
    next.close();
  });

  test("answer garbage of every kind with errors, and live on", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const [path = ""] = await addMonitors(running, (name) => directory.file(name), 1);
    const random = new Random(randomSeed());
    const pieces = ["{", "}", "[", "]", '"', "'", "\\u0000", ":", ",", "1e999", "-", "nul", "\0"];
    pieces.push('{"execute":', '"quit"', '"arguments":', '"exec-oob":', '"id":', "\xff", " ", "\n");
    for (let round = 0; round < 40; round++) {
      const socket = await rawSocket(path);
      socket.on("error", () => {});
      socket.resume();
      let text = random.chance(0.5) ? NEGOTIATE : "";
      for (let count = 0; count < 300; count++) text += random.pick(pieces);
      // It must not really quit.
      text = text.replaceAll('"execute":"quit"', '"execute":"query-version"');
      socket.end(Buffer.from(text.replaceAll(/"execute":\s*"quit"/g, ""), "latin1"));
      await new Promise((resolve) => socket.once("close", resolve));
    }
    expect(await running.qmp.execute("query-block-exports")).toEqual([]);
  });

  test("run commands that race from several clients one after the other", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const paths = await addMonitors(running, (name) => directory.file(name), 8);
    const clients = await Promise.all(paths.map((path) => Qmp.connect(path)));
    for (let round = 0; round < 20; round++) {
      const node = { driver: "null-co", "node-name": `n${round}` };
      const added = await Promise.allSettled(
        clients.map((client) => client.execute("blockdev-add", node)),
      );
      expect(added.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      const deleted = await Promise.allSettled(
        clients.map((client) => client.execute("blockdev-del", { "node-name": `n${round}` })),
      );
      expect(deleted.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    }
    expect(await running.qmp.execute("query-named-block-nodes")).toEqual([]);
    for (const client of clients) client.close();
  });
});
