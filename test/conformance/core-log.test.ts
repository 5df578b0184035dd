/** Diagnostics: what is told at which level, in both forms, and what peers cannot put there. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { createConnection } from "node:net";
import { type TemporaryDirectory, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { runDaemon, startDaemon } from "../support/process.ts";

setDefaultTimeout(180_000);

/** Everything on stderr of a daemon that serves one client and one that is no client. */
async function life(directory: TemporaryDirectory, args: readonly string[]): Promise<string> {
  const socket = directory.file("nbd.sock");
  const running = await startDaemon(directory.path, [
    ...args,
    ...["--object", "iothread,id=io0", "--blockdev", "null-co,node-name=n,size=1048576"],
    ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
    ...["--export", "nbd,id=e,node-name=n,name=disk"],
  ]);
  {
    await using _ = running;
    const client = await NbdClient.open({ path: socket }, { exportName: "disk" });
    await client.disconnect();
    await strangerLeaves(socket);
    await running.qmp.execute("block-export-del", { id: "e", mode: "hard" });
  }
  return running.daemon.stderr;
}

/** Sends what is no option. */
function strangerLeaves(socket: string): Promise<void> {
  return new Promise((resolve) => {
    const stranger = createConnection(socket);
    stranger.on("error", () => {});
    stranger.on("close", () => resolve());
    stranger.on("data", () => {});
    stranger.write(Buffer.from("\x00\x00\x00\x01nonsense\n\x1b[31moutport: fake\n".repeat(4)));
  });
}

describe("--log-level", () => {
  test("is silent by default when nothing is wrong", async () => {
    await using directory = await temporaryDirectory();
    expect(await life(directory, [])).toBe("");
  });

  test("info tells each event once, in order", async () => {
    await using directory = await temporaryDirectory();
    const text = await life(directory, ["--log-level", "info"]);
    const expected = [
      /^outport: info: iothread: I\/O engine chosen .*engine=(io_uring|epoll)$/m,
      /^outport: info: object: object created id=io0 type=iothread$/m,
      /^outport: info: block: node opened node=n driver=null-co$/m,
      /^outport: info: nbd: listening on .*nbd\.sock$/m,
      /^outport: info: export: export added export=e type=nbd node=n$/m,
      /^outport: info: main: ready pid=\d+ version=\S+$/m,
      /^outport: info: nbd: client connected export=e /m,
      /^outport: info: nbd: client disconnected export=e$/m,
      /^outport: info: nbd: option negotiation failed: Bad magic received$/m,
      /^outport: info: export: export gone export=e$/m,
      /^outport: info: main: shutting down: got SIGTERM$/m,
    ];
    for (const line of expected) expect(text).toMatch(line);
    const places = expected.map((line) => text.search(line));
    expect(places).toEqual([...places].sort((a, b) => a - b));
    for (const line of text.trimEnd().split("\n")) expect(line).toStartWith("outport: info: ");
  });

  test("debug says more, and no secret", async () => {
    const { stderr } = await runDaemon([
      ...["--log-level", "debug", "--object", "secret,id=s,data=letmein"],
      ...["--blockdev", "nope"],
    ]);
    expect(stderr).toContain("outport: debug: main: doing --object\n");
    expect(stderr).not.toContain("letmein");
  });

  test("refuses levels and formats that are none", async () => {
    for (const [name, value] of [
      ["log-level", "loud"],
      ["log-format", "xml"],
    ]) {
      const { exit, stderr } = await runDaemon([`--${name}`, value as string]);
      expect(exit).toBe(1);
      const message = `Parameter '${name}' does not accept value '${value}'`;
      expect(stderr).toBe(`outport: --${name} ${value}: ${message}\n`);
    }
  });
});

describe("--log-format json", () => {
  test("writes objects only, traces included", async () => {
    await using directory = await temporaryDirectory();
    const args = ["--log-format=json", "--log-level=debug", "--trace", "nbd_*"];
    const text = await life(directory, args);
    const records = text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    for (const record of records) {
      expect(Object.keys(record).slice(0, 4)).toEqual(["time", "level", "component", "message"]);
      expect(Date.parse(record.time as string)).not.toBeNaN();
    }
    const levels = new Set(records.map(({ level }) => level));
    expect([...levels].sort()).toEqual(["debug", "info", "trace"]);
    const added = records.find(({ message }) => message === "export added");
    expect(added).toMatchObject({ component: "export", export: "e", type: "nbd", node: "n" });
  });

  test("tells a failing option and its reason apart", async () => {
    const { stderr } = await runDaemon(["--log-format", "json", "--object", "iothread,id=1"]);
    expect(JSON.parse(stderr)).toMatchObject({
      level: "error",
      component: "main",
      message: "Parameter 'id' expects an identifier",
      option: "--object iothread,id=1",
      hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    });
  });
});
