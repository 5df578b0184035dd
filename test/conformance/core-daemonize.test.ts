/** --daemonize: who waits for whom, what is told to whom, and what the daemon holds on to. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { requireClient } from "../support/clients.ts";
import { patternImage, type TemporaryDirectory, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { runDaemon, sleep } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";

setDefaultTimeout(180_000);

/** Runs its further arguments with a listening unix socket as descriptor 7. */
const LISTEN_ON_7 = `
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 7)
os.execvp(sys.argv[2], sys.argv[2:])`;

/** Its pid. Fails when the launcher does. */
async function daemonize(
  directory: TemporaryDirectory,
  args: readonly string[],
  prefix: readonly string[] = [],
): Promise<number> {
  const { exit, stderr } = await runDaemon(["--daemonize", "--pidfile", "daemon.pid", ...args], {
    cwd: directory.path,
    prefix,
  });
  expect([exit, stderr]).toEqual([0, ""]);
  return Number(readFileSync(directory.file("daemon.pid"), "utf8"));
}

/** The fields of the process behind its name; empty when there is none. */
function statusOf(pid: number): string[] {
  const path = `/proc/${pid}/stat`;
  return existsSync(path) ? (readFileSync(path, "utf8").split(") ")[1] ?? "").split(" ") : [];
}

/** Resolves when the process has ended, whether anybody has looked at its exit code or not. */
async function ended(pid: number): Promise<void> {
  while (!["Z", undefined].includes(statusOf(pid)[0])) await sleep(5);
}

async function stop(pid: number): Promise<void> {
  process.kill(pid, "SIGTERM");
  await ended(pid);
}

describe("--daemonize", () => {
  test("returns when everything serves, and relative names are those of the caller", async () => {
    await using directory = await temporaryDirectory();
    const image = await patternImage(directory.file("disk.raw"), 65_536);
    const pid = await daemonize(directory, [
      ...["--blockdev", "file,node-name=f,filename=disk.raw"],
      ...["--nbd-server", "addr.type=unix,addr.path=nbd.sock"],
      ...["--export", "nbd,id=e,node-name=f,name=disk"],
      ...["--chardev", "socket,id=m,path=qmp.sock,server=on,wait=off", "--monitor", "m"],
    ]);
    const client = await NbdClient.open(
      { path: directory.file("nbd.sock") },
      { exportName: "disk" },
    );
    expect(image.compare(await client.read(0, 4096), 0, 4096, 0, 4096)).toBe(0);
    await client.disconnect();
    const qmp = await Qmp.connect(directory.file("qmp.sock"));
    await qmp.execute("quit");
    qmp.close();
    await ended(pid);
    for (const name of ["nbd.sock", "qmp.sock", "daemon.pid"]) {
      expect([name, existsSync(directory.file(name))]).toEqual([name, false]);
    }
  });

  test("leaves the caller's session, folder and streams", async () => {
    await using directory = await temporaryDirectory();
    const pid = await daemonize(directory, [
      ...["--chardev", "socket,id=m,path=qmp.sock,server=on,wait=off", "--monitor", "m"],
    ]);
    expect(readlinkSync(`/proc/${pid}/cwd`)).toBe("/");
    for (const fd of [0, 1, 2]) expect(readlinkSync(`/proc/${pid}/fd/${fd}`)).toBe("/dev/null");
    const [, , , session] = statusOf(pid);
    expect(Number(session)).toBe(pid);
    expect((statSync(directory.file("qmp.sock")).mode & 0o777).toString(8)).toBe("750");
    await stop(pid);
  });

  test("has the sockets that the caller inherited", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("inherited.sock");
    const pid = await daemonize(
      directory,
      [
        ...["--blockdev", "null-co,node-name=n,size=65536,read-zeroes=on"],
        ...["--nbd-server", "addr.type=fd,addr.str=7", "--export", "nbd,id=e,node-name=n"],
      ],
      [requireClient("python3"), "-c", LISTEN_ON_7, path],
    );
    const client = await NbdClient.open({ path }, { exportName: "n" });
    expect(client.facts.bytes).toBe(65_536);
    await client.disconnect();
    await stop(pid);
  });

  test("keeps what is traced, and errors, in the trace's file", async () => {
    await using directory = await temporaryDirectory();
    const pid = await daemonize(directory, [
      ...["--trace", "object_*,file=trace", "--object", "iothread,id=a"],
    ]);
    expect(readlinkSync(`/proc/${pid}/fd/2`)).toBe(directory.file("trace"));
    expect(readFileSync(directory.file("trace"), "utf8")).toBe("object_new id=a type=iothread\n");
    await stop(pid);
  });
});

describe("--daemonize that fails", () => {
  test("says why, and leaves nothing", async () => {
    await using directory = await temporaryDirectory();
    const cases: [string[], string][] = [
      [
        ["--blockdev", "file,node-name=f,filename=none"],
        "--blockdev file,node-name=f,filename=none: " +
          "Could not open 'none': No such file or directory",
      ],
      [["--chardev", "stdio,id=m"], "--chardev stdio,id=m: cannot use stdio with -daemonize"],
      [
        ["--pidfile", "none/pid"],
        "cannot create PID file: Could not create 'none/pid': No such file or directory",
      ],
      [["stray"], "stray: Unexpected argument"],
      [["--nope"], "unrecognized option '--nope'"],
    ];
    for (const [args, message] of cases) {
      const server = ["--nbd-server", "addr.type=unix,addr.path=nbd.sock"];
      const outcome = await runDaemon(["--daemonize", ...server, ...args], { cwd: directory.path });
      expect(outcome).toEqual({ exit: 1, stdout: "", stderr: `outport: ${message}\n` });
      expect(existsSync(directory.file("nbd.sock"))).toBe(false);
    }
  });

  test("refuses a second daemon of the same pid file", async () => {
    await using directory = await temporaryDirectory();
    const pid = await daemonize(directory, []);
    const outcome = await runDaemon(["--daemonize", "--pidfile", "daemon.pid"], {
      cwd: directory.path,
    });
    const reason = "Cannot lock pid file: Resource temporarily unavailable";
    expect(outcome).toEqual({
      exit: 1,
      stdout: "",
      stderr: `outport: cannot create PID file: ${reason}\n`,
    });
    expect(Number(readFileSync(directory.file("daemon.pid"), "utf8"))).toBe(pid);
    await stop(pid);
  });

  test("is no success when a question is answered instead", async () => {
    const { exit, stdout } = await runDaemon(["--daemonize", "--object", "iothread,help"]);
    expect(exit).toBe(1);
    expect(stdout).toStartWith("iothread options:\n");
    expect((await runDaemon(["--daemonize", "--help"])).exit).toBe(0);
  });
});
