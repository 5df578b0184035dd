/** Character devices and the monitors on them, added and removed while the daemon runs. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFile, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { temporaryDirectory } from "../support/images.ts";
import { PATIENCE_MS, type RunningDaemon, sleep, startDaemon } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";

setDefaultTimeout(180_000);

const unix = (path: string) => ({ type: "unix", data: { path } });

interface ChardevInfo {
  readonly label: string;
  readonly filename: string;
  readonly "frontend-open": boolean;
}

const add = ({ qmp }: RunningDaemon, id: string, type: string, data: object) =>
  qmp.execute("chardev-add", { id, backend: { type, data } });

const monitorOn = ({ qmp }: RunningDaemon, chardev: string, options: object = {}) =>
  qmp.execute("object-add", {
    "qom-type": "monitor-qmp",
    id: `${chardev}-mon`,
    chardev,
    ...options,
  });

async function filenameOf({ qmp }: RunningDaemon, id: string): Promise<string | undefined> {
  const all = await qmp.execute<ChardevInfo[]>("query-chardev");
  return all.find(({ label }) => label === id)?.filename;
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  for (const deadline = Date.now() + PATIENCE_MS; !(await condition()); await sleep(5)) {
    if (Date.now() > deadline) throw new Error("it does not come true");
  }
}

describe("chardev-add", () => {
  test("gives a socket, and object-add a monitor on it", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const path = directory.file("new.sock");
    expect(await add(running, "c", "socket", { addr: unix(path) })).toEqual({});
    expect(await filenameOf(running, "c")).toBe(`disconnected:unix:${path},server=on`);
    await monitorOn(running, "c");
    const other = await Qmp.connect(path);
    expect(await other.execute("query-version")).toHaveProperty("qemu.major", 11);
    expect(await filenameOf(running, "c")).toBe(`unix:${path},server=on`);
    await expect(other.execute("object-del", { id: "c-mon" })).rejects.toThrow(
      "Cannot delete the current QMP monitor",
    );
    await expect(running.qmp.execute("chardev-remove", { id: "c" })).rejects.toThrow(
      "Chardev 'c' is busy",
    );
    await running.qmp.execute("object-del", { id: "c-mon" });
    // The connection stays, and nobody answers until there is a monitor again.
    other.send({ execute: "query-version" });
    await monitorOn(running, "c");
    await other.take((message) => "QMP" in message);
    await running.qmp.execute("object-del", { id: "c-mon" });
    await running.qmp.execute("chardev-remove", { id: "c" });
    await expect(Qmp.connect(path)).rejects.toThrow();
    other.close();
  });

  test("listens on a port of the kernel's choice and says which", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const addr = { type: "inet", data: { host: "127.0.0.1", port: "0" } };
    await add(running, "c", "socket", { addr });
    await monitorOn(running, "c");
    const filename = (await filenameOf(running, "c")) ?? "";
    const port = Number(/^disconnected:tcp:127\.0\.0\.1:(\d+),server=on$/.exec(filename)?.[1]);
    const other = await Qmp.connect({ host: "127.0.0.1", port });
    expect(await filenameOf(running, "c")).toMatch(
      /^tcp:127\.0\.0\.1:\d+,server=on <-> 127\.0\.0\.1:\d+$/,
    );
    other.close();
    await until(async () => (await filenameOf(running, "c")) === filename);
  });

  test("takes abstract names, tight or not, and gives everything back", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const fds = running.daemon.fdCount();
    for (const tight of [true, false]) {
      const addr = { type: "unix", data: { path: directory.path, abstract: true, tight } };
      await add(running, "c", "socket", { addr });
      await monitorOn(running, "c");
      const shown = `unix:${directory.path},abstract=on${tight ? ",tight=on" : ""}`;
      expect(await filenameOf(running, "c")).toBe(`disconnected:${shown},server=on`);
      await add(running, "d", "socket", { addr, server: false });
      expect(await filenameOf(running, "d")).toBe(shown);
      await running.qmp.execute("chardev-remove", { id: "d" });
      await until(async () => (await filenameOf(running, "c"))?.startsWith("dis") === true);
      await running.qmp.execute("object-del", { id: "c-mon" });
      await running.qmp.execute("chardev-remove", { id: "c" });
    }
    await until(async () => running.daemon.fdCount() <= fds);
  });

  test("connects, and connects again when the connection is lost", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const sockets: Socket[] = [];
    const server: Server = createServer((socket) => sockets.push(socket));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    const addr = { type: "inet", data: { host: "127.0.0.1", port: `${port}` } };
    await add(running, "c", "socket", { addr, server: false, "reconnect-ms": 10 });
    await monitorOn(running, "c");
    for (let n = 0; n < 3; n++) {
      await until(async () => sockets.length > n);
      const socket = sockets[n] as Socket;
      const qmp = new Qmp(socket, socket);
      await qmp.negotiate();
      expect(await qmp.execute("query-block-exports")).toEqual([]);
      socket.destroy();
    }
    server.close();
  });

  test("reads commands from a file and writes replies to another", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const [input, output] = [directory.file("in"), directory.file("out")];
    await writeFile(input, '{"execute":"qmp_capabilities"}{"execute":"query-block-exports"}');
    await writeFile(output, "before\n");
    await add(running, "f", "file", { in: input, out: output, append: true });
    await monitorOn(running, "f");
    const lines = async () => (await readFile(output, "utf8")).split(/\r?\n/);
    await until(async () => (await lines()).length === 5);
    expect((await lines()).slice(2)).toEqual(['{"return": {}}', '{"return": []}', ""]);
    expect((await lines())[0]).toBe("before");
  });

  test("copies output to a log file", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const [path, log] = [directory.file("s"), directory.file("log")];
    await writeFile(log, "before\n");
    const data = { addr: unix(path), logfile: log, logappend: true };
    await add(running, "c", "socket", data);
    await monitorOn(running, "c");
    const other = await Qmp.connect(path);
    await other.execute("query-block-exports");
    await until(async () => (await readFile(log, "utf8")).split("\n").length === 5);
    expect((await readFile(log, "utf8")).split(/\r?\n/)).toEqual([
      "before",
      expect.stringContaining('{"QMP": '),
      '{"return": {}, "id": 0}',
      '{"return": [], "id": 1}',
      "",
    ]);
    await expect(add(running, "d", "null", { logfile: "/nonexist/l" })).rejects.toThrow(
      "Could not create '/nonexist/l': No such file or directory",
    );
    other.close();
  });

  test("fails without leaving anything", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const fds = running.daemon.fdCount();
    const before = await running.qmp.execute("query-chardev");
    const path = directory.file("x");
    const cases: [string, object, string][] = [
      ["file", { out: "/nonexist/f" }, "Could not open '/nonexist/f': No such file or directory"],
      [
        "file",
        { out: path, in: "/nonexist/i" },
        "Could not open '/nonexist/i': No such file or directory",
      ],
      [
        "pipe",
        { device: "/nonexist/p" },
        "Could not open '/nonexist/p': No such file or directory",
      ],
      [
        "socket",
        { addr: unix("/nonexist/x") },
        "Failed to bind socket to /nonexist/x: No such file or directory",
      ],
      [
        "socket",
        { addr: unix(path), server: false },
        `Failed to connect to '${path}': Connection refused`,
      ],
      [
        "socket",
        { addr: unix("x".repeat(120)) },
        `UNIX socket path '${"x".repeat(120)}' is too long`,
      ],
      [
        "socket",
        { addr: { type: "fd", data: { str: "9" } } },
        "only QEMU supports file descriptor passing",
      ],
    ];
    for (const [type, data, message] of cases) {
      await expect(add(running, "a", type, data)).rejects.toThrow(
        `Failed to add chardev 'a': ${message}`,
      );
    }
    await expect(add(running, "qmp", "null", {})).rejects.toThrow(
      "Chardev with id 'qmp' already exists",
    );
    await expect(add(running, "a", "foo", {})).rejects.toThrow(
      "Parameter 'type' does not accept value 'foo'",
    );
    expect(await running.qmp.execute("query-chardev")).toEqual(before);
    await until(async () => running.daemon.fdCount() <= fds);
  });
});

describe("chardev-change", () => {
  test("swaps a device that nobody uses; a failure changes nothing", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const change = (id: string, type: string, data: object) =>
      running.qmp.execute("chardev-change", { id, backend: { type, data } });
    await add(running, "c", "socket", { addr: unix(directory.file("s")) });
    await expect(change("zz", "null", {})).rejects.toThrow("Chardev 'zz' does not exist");
    await expect(change("qmp", "null", {})).rejects.toThrow(
      "Chardev user does not support chardev hotswap",
    );
    await expect(change("c", "file", { out: "/nonexist/f" })).rejects.toThrow(
      "Failed to add chardev 'c': Could not open '/nonexist/f': No such file or directory",
    );
    expect(await filenameOf(running, "c")).toBe(
      `disconnected:unix:${directory.file("s")},server=on`,
    );
    await change("c", "null", {});
    expect(await filenameOf(running, "c")).toBe("null");
  });
});

describe("monitor-qmp", () => {
  test("refuses devices that are not there or in use", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    await expect(monitorOn(running, "zz")).rejects.toThrow('chardev "zz" not found');
    await expect(monitorOn(running, "qmp")).rejects.toThrow("chardev 'qmp' is already in use");
    await expect(
      running.qmp.execute("object-add", { "qom-type": "monitor-qmp", id: "x" }),
    ).rejects.toThrow("Parameter 'chardev' is missing");
    await expect(running.qmp.execute("object-del", { id: "compat_monitor0" })).rejects.toThrow(
      "Cannot delete the current QMP monitor",
    );
  });

  test("is deleted with its client when close-action says so", async () => {
    await using directory = await temporaryDirectory();
    await using running = await startDaemon(directory.path, []);
    const path = directory.file("once.sock");
    await add(running, "c", "socket", { addr: unix(path) });
    await monitorOn(running, "c", { "close-action": "delete" });
    const other = await Qmp.connect(path);
    other.close();
    await until(async () => {
      const all = await running.qmp.execute<ChardevInfo[]>("query-chardev");
      return all.find(({ label }) => label === "c")?.["frontend-open"] === false;
    });
    await running.qmp.execute("chardev-remove", { id: "c" });
  });
});
