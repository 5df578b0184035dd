/** The command line: its order, its failures and its words. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { run } from "../support/clients.ts";
import { patternImage, temporaryDirectory } from "../support/images.ts";
import { runDaemon, sleep, spawnDaemon } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

const NULL = ["--blockdev", "driver=null-co,node-name=n0,size=1048576"];

/** The message of options that must fail, without the program's name before it. */
async function failure(args: readonly string[]): Promise<string> {
  const { exit, stderr } = await runDaemon(args);
  expect(exit).toBe(1);
  const line = stderr.trimEnd().split("\n").at(-1) ?? "";
  return line.replace(/^\S+: /, "");
}

describe("--version and --help", () => {
  test("print to stdout and exit 0", async () => {
    for (const option of ["--version", "-V"]) {
      const { exit, stdout } = await runDaemon([option]);
      expect(exit).toBe(0);
      expect(stdout).toMatch(/\d+\.\d+\.\d+/);
    }
    for (const option of ["--help", "-h"]) {
      const { exit, stdout } = await runDaemon([option]);
      expect(exit).toBe(0);
      for (const word of ["--blockdev", "--export", "--nbd-server", "--object", "--monitor"]) {
        expect(stdout).toContain(word);
      }
    }
  });

  test("take effect although options after them are wrong", async () => {
    expect((await runDaemon(["--version", "--nonsense"])).exit).toBe(0);
  });
});

describe("a failing option", () => {
  test("is shown with its message, and the exit code is 1", async () => {
    const missing = "driver=file,node-name=f,filename=/nonexistent";
    const said = await failure(["--blockdev", missing]);
    expect(said).toBe(
      `--blockdev ${missing}: Could not open '/nonexistent': No such file or directory`,
    );
  });

  test("keeps the messages of each kind of option", async () => {
    const server = ["--nbd-server", "addr.type=unix,addr.path=/nonexistent/x"];
    const bind = "Failed to bind socket to /nonexistent/x: No such file or directory";
    expect(await failure(server)).toContain(bind);
    const withoutServer = [...NULL, "--export", "type=nbd,id=e0,node-name=n0"];
    expect(await failure(withoutServer)).toContain("NBD server not running");
    const unknownNode = ["--export", "type=nbd,id=e0,node-name=n0"];
    expect(await failure(unknownNode)).toContain("Cannot find device='' nor node-name='n0'");
    expect(await failure(["--monitor", "chardev=nope"])).toContain('chardev "nope" not found');
    expect(await failure(["--object", "nosuch,id=x"])).toContain("nosuch");
    expect(await failure(["stray", "stray"])).toContain("Unexpected argument");
    expect(await failure(["--blockdev", "driver=nosuch,node-name=x"])).toContain("nosuch");
    expect(await failure(["--blockdev", "driver=null-co,size=1"])).toContain("node-name");
  });

  test("leaves no socket and no pid file behind", async () => {
    await using directory = await temporaryDirectory();
    const { exit } = await runDaemon([
      ...["--nbd-server", `addr.type=unix,addr.path=${directory.file("nbd.sock")}`],
      ...["--pidfile", directory.file("pid")],
      ...["--export", "type=nbd,id=e0,node-name=none"],
    ]);
    expect(exit).toBe(1);
    expect(existsSync(directory.file("nbd.sock"))).toBe(false);
    expect(existsSync(directory.file("pid"))).toBe(false);
  });

  test("comes in command-line order: an export before its node fails", async () => {
    await using directory = await temporaryDirectory();
    const server = ["--nbd-server", `addr.type=unix,addr.path=${directory.file("nbd.sock")}`];
    const said = await failure([...server, "--export", "type=nbd,id=e0,node-name=n0", ...NULL]);
    expect(said).toContain("Cannot find device='' nor node-name='n0'");
  });
});

describe("option forms", () => {
  test("JSON, dotted keys and the first key's short form mean the same", async () => {
    await using directory = await temporaryDirectory();
    await patternImage(directory.file("disk.raw"), 65_536);
    const socket = directory.file("nbd.sock");
    const pidfile = directory.file("pid");
    const json = { driver: "raw", "node-name": "a", file: { driver: "file", filename: "" } };
    json.file.filename = directory.file("disk.raw");
    const daemon = spawnDaemon([
      ...["--blockdev", JSON.stringify(json)],
      ...["--blockdev", `raw,node-name=b,file.driver=file,file.filename=${json.file.filename}`],
      ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
      ...["--export", "nbd,id=ea,node-name=a,writable=on"],
      ...["--export", '{"type": "nbd", "id": "eb", "node-name": "b", "writable": true}'],
      ...["--pidfile", pidfile],
    ]);
    await daemon.ready(pidfile);
    await run("qemu-io", ["-f", "raw", "-c", "write -P 7 0 4k", unixUri(socket, "a")]);
    await run("qemu-io", ["-f", "raw", "-c", "read -P 7 0 4k", unixUri(socket, "b")]);
    expect(await daemon.stop()).toBe(0);
  });

  test("a comma in a value is doubled", async () => {
    await using directory = await temporaryDirectory();
    const image = directory.file("a,b.raw");
    await patternImage(image, 65_536);
    const pidfile = directory.file("pid");
    const doubled = image.replaceAll(",", ",,");
    const daemon = spawnDaemon([
      ...["--blockdev", `driver=file,node-name=f,filename=${doubled}`],
      ...["--pidfile", pidfile],
    ]);
    await daemon.ready(pidfile);
    expect(await daemon.stop()).toBe(0);
  });
});

describe("--pidfile", () => {
  test("holds the process id, and refuses a second daemon", async () => {
    await using directory = await temporaryDirectory();
    const pidfile = directory.file("pid");
    const daemon = spawnDaemon(["--pidfile", pidfile]);
    await daemon.ready(pidfile);
    expect(readFileSync(pidfile, "utf8")).toMatch(/^\d+\n$/);
    const said = await failure(["--pidfile", pidfile]);
    expect(said).toContain("cannot create PID file: Cannot lock pid file");
    expect(daemon.exit).toBeUndefined();
    expect(await daemon.stop()).toBe(0);
    expect(existsSync(pidfile)).toBe(false);
  });
});

describe("a monitor over TCP", () => {
  test("takes commands from one client after the other", async () => {
    await using directory = await temporaryDirectory();
    const pidfile = directory.file("pid");
    const port = 20_000 + (process.pid % 20_000);
    const socket = `socket,id=m,host=127.0.0.1,port=${port},server=on,wait=off`;
    const daemon = spawnDaemon([
      ...NULL,
      "--chardev",
      socket,
      "--monitor",
      "m",
      "--pidfile",
      pidfile,
    ]);
    await daemon.ready(pidfile);
    for (let n = 0; n < 3; n++) {
      const qmp = await Qmp.connect({ host: "127.0.0.1", port });
      const nodes = await qmp.execute<{ "node-name": string }[]>("query-named-block-nodes");
      expect(nodes.map((each) => each["node-name"])).toEqual(["n0"]);
      qmp.close();
    }
    expect(await daemon.stop()).toBe(0);
  });
});

describe("a monitor on stdio", () => {
  test("speaks QMP, and the daemon ends on quit with all of its output", async () => {
    const options = { stdin: "pipe", rawStdout: true } as const;
    const monitor = ["--chardev", "stdio,id=m", "--monitor", "chardev=m"];
    const daemon = spawnDaemon([...NULL, ...monitor], options);
    const qmp = new Qmp(daemon.stdio.stdout, daemon.stdio.stdin);
    await qmp.negotiate();
    const nodes = await qmp.execute<{ "node-name": string }[]>("query-named-block-nodes");
    expect(nodes.map((each) => each["node-name"])).toEqual(["n0"]);
    const many = Array.from({ length: 200 }, () => qmp.execute("query-commands"));
    for (const reply of await Promise.all(many)) expect(reply).toBeInstanceOf(Array);
    await qmp.execute("quit");
    expect(await daemon.exitSoon()).toBe(0);
  });

  test("does not end the daemon when its input ends", async () => {
    await using directory = await temporaryDirectory();
    const pidfile = directory.file("pid");
    const monitor = ["--chardev", "stdio,id=m", "--monitor", "chardev=m"];
    const daemon = spawnDaemon([...NULL, ...monitor, "--pidfile", pidfile], { stdin: "pipe" });
    await daemon.ready(pidfile);
    daemon.stdio.stdin.end();
    await sleep(300);
    expect(daemon.exit).toBeUndefined();
    expect(await daemon.stop()).toBe(0);
  });
});
