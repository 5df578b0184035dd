/**
 * The examples of qemu-storage-daemon's manual page run as they stand there, but for the name of
 * the program, which a link in PATH gives to the one under test.
 */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmod, writeFile } from "node:fs/promises";
import { run } from "../support/clients.ts";
import { patternImage, temporaryDirectory } from "../support/images.ts";
import { COMMAND, type Daemon, sleep, startProgram } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

const MONITOR = `\
qemu-storage-daemon \\
    --chardev socket,path=qmp.sock,server=on,wait=off,id=char1 \\
    --monitor chardev=char1
`;

const PASSED_SOCKET = `\
import subprocess
import socket

sock_path = 'qmp.sock'

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listen_sock:
    listen_sock.bind(sock_path)
    listen_sock.listen()

    fd = listen_sock.fileno()

    daemon = subprocess.Popen(
        ['qemu-storage-daemon',
         '--chardev', f'socket,fd={fd},server=on,id=char1',
         '--monitor', 'chardev=char1'],
        pass_fds=[fd],
    )

qmp_sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
qmp_sock.connect(sock_path)
`;

/** What the example leaves to the reader: "QMP interaction". */
const INTERACTION = `
import json
lines = qmp_sock.makefile()
assert 'oob' in json.loads(lines.readline())['QMP']['capabilities']
for command in ['qmp_capabilities', 'query-block-exports', 'quit']:
    qmp_sock.sendall(json.dumps({'execute': command}).encode())
    print(lines.readline(), end='')
daemon.wait()
print(daemon.returncode)
`;

const NBD = `\
qemu-storage-daemon \\
    --blockdev driver=file,node-name=disk,filename=disk.img \\
    --nbd-server addr.type=unix,addr.path=nbd.sock \\
    --export type=nbd,id=export,node-name=disk,writable=on
`;

/** A directory with the program under the name of the manual. */
async function workplace() {
  const directory = await temporaryDirectory();
  const program = directory.file("qemu-storage-daemon");
  await writeFile(program, `#!/bin/sh\nexec ${COMMAND.join(" ")} "$@"\n`);
  await chmod(program, 0o755);
  return directory;
}

/** Starts what `words` say in `cwd`, where the program is found first. */
function start(words: readonly string[], cwd: string): Daemon {
  return startProgram(words, { cwd, env: { PATH: `${cwd}:${process.env.PATH}` } });
}

/** Tries until it works or the daemon has ended. */
async function eventually<T>(daemon: Daemon, attempt: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (daemon.exit !== undefined) throw new Error(daemon.stderr, { cause: error });
      await sleep(20);
    }
  }
}

describe("the manual's example", () => {
  test("of a monitor serves QMP", async () => {
    await using directory = await workplace();
    const daemon = start(["sh", "-c", `exec ${MONITOR}`], directory.path);
    const qmp = await eventually(daemon, () => Qmp.connect(directory.file("qmp.sock")));
    expect(await qmp.execute("query-block-exports")).toEqual([]);
    await qmp.execute("quit");
    expect(await daemon.exited).toBe(0);
  });

  test("in Python, of a socket handed over, serves QMP", async () => {
    await using directory = await workplace();
    const script = PASSED_SOCKET + INTERACTION;
    const daemon = start(["/usr/bin/python3", "-c", script], directory.path);
    expect(await daemon.exitSoon()).toBe(0);
    expect(daemon.stdout).toBe('{"return": {}}\n{"return": []}\n{"return": {}}\n0\n');
  });

  test("of an NBD export serves the disk", async () => {
    await using directory = await workplace();
    const content = await patternImage(directory.file("disk.img"), 65_536);
    const daemon = start(["sh", "-c", `exec ${NBD}`], directory.path);
    const uri = unixUri(directory.file("nbd.sock"), "disk");
    const size = await eventually(daemon, () => run("nbdinfo", ["--size", uri]));
    expect(Number(size)).toBe(content.length);
    expect(await daemon.stop()).toBe(0);
  });
});
