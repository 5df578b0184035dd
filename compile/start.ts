/**
 * `npm start`: builds outport when it is missing or older than its source, and runs it on a scratch
 * disk that is gone when it stops. `npm start -- OPTIONS` runs it with these options instead.
 */

import { type ChildProcess, spawn } from "node:child_process";
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { buildExecutable, EXECUTABLE, ROOT } from "./bun.ts";

const SCRATCH_BYTES = 1024 ** 3;
const NBD_PORT = 10809;

function isBuilt(): boolean {
  if (!existsSync(EXECUTABLE)) return false;
  const folders = ["src", "drivers", "compile"].flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" }).map((path) =>
      join(ROOT, folder, path),
    ),
  );
  const sources = [...folders, join(ROOT, "package.json"), join(ROOT, "package-lock.json")];
  const builtAt = statSync(EXECUTABLE).mtimeMs;
  return sources.every((path) => statSync(path).mtimeMs <= builtAt);
}

/** NBD's own port, or any free one when that is taken. */
function freePort(wanted: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", (error) => (wanted === 0 ? reject(error) : resolve(freePort(0))));
    server.listen(wanted, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" ? (address?.port ?? 0) : 0));
    });
  });
}

/** The scratch disk's files, and how it is served. */
interface Scratch {
  readonly folder: string;
  readonly disk: string;
  readonly nbdSocket: string;
  readonly nbdPort: number;
  readonly qmpSocket: string;
  readonly pidfile: string;
}

async function makeScratch(): Promise<Scratch> {
  const folder = mkdtempSync(join(tmpdir(), "outport-"));
  const disk = join(folder, "disk.raw");
  writeFileSync(disk, "");
  truncateSync(disk, SCRATCH_BYTES);
  return {
    folder,
    disk,
    nbdSocket: join(folder, "nbd.sock"),
    nbdPort: await freePort(NBD_PORT),
    qmpSocket: join(folder, "qmp.sock"),
    pidfile: join(folder, "outport.pid"),
  };
}

/** Options separate at commas; a comma inside a value is written twice. */
const value = (text: string) => text.replaceAll(",", ",,");

const scratchOptions = (scratch: Scratch): string[] => [
  ...["--blockdev", `driver=file,node-name=disk,discard=unmap,filename=${value(scratch.disk)}`],
  ...["--nbd-server", `addr.type=unix,addr.path=${value(scratch.nbdSocket)}`],
  ...["--nbd-server", `addr.type=inet,addr.host=127.0.0.1,addr.port=${scratch.nbdPort}`],
  ...["--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on"],
  ...["--chardev", `socket,id=qmp,server=on,wait=off,path=${value(scratch.qmpSocket)}`],
  ...["--monitor", "chardev=qmp", "--pidfile", scratch.pidfile],
];

function connectLines(scratch: Scratch): string {
  const unix = `'nbd+unix:///disk?socket=${scratch.nbdSocket}'`;
  const tcp = `nbd://localhost${scratch.nbdPort === NBD_PORT ? "" : `:${scratch.nbdPort}`}/disk`;
  return `
outport serves "disk": a scratch disk of ${SCRATCH_BYTES / 1024 ** 3} GiB, empty and writable.

What it offers, over the unix socket and over TCP:
  nbdinfo ${unix}
  qemu-img info ${tcp}

Fill it from an image of yours, of any format:
  qemu-img convert -n -O raw IMAGE ${tcp}

Copy it to a file, as fast as it goes:
  nbdcopy ${unix} copy.raw

Manage it while it runs (QMP; say {"execute":"qmp_capabilities"} first):
  socat - UNIX-CONNECT:${scratch.qmpSocket}

Serve your own disk instead:
  npm start -- --help

Ctrl-C stops it; the scratch disk is removed then.
`;
}

/** Runs the daemon until it ends. Signals that come here are for it. */
function run(options: readonly string[]): { child: ChildProcess; ended: Promise<number> } {
  const child = spawn(EXECUTABLE, options, { stdio: "inherit" });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => {
      // A terminal sends its Ctrl-C to both.
      if (signal !== "SIGINT" || !process.stdin.isTTY) child.kill(signal);
    });
  }
  const ended = new Promise<number>((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code, signal) => {
      resolve(code ?? 128 + constants.signals[signal as NodeJS.Signals]);
    });
  });
  return { child, ended };
}

/** Runs the daemon on a scratch disk, and says how to use it when it serves. */
async function runOnScratch(): Promise<number> {
  const scratch = await makeScratch();
  try {
    const { child, ended } = run(scratchOptions(scratch));
    const waiting = setInterval(() => {
      if (!existsSync(scratch.pidfile)) return;
      clearInterval(waiting);
      if (child.exitCode === null) console.log(connectLines(scratch));
    }, 5);
    return await ended.finally(() => clearInterval(waiting));
  } finally {
    rmSync(scratch.folder, { recursive: true, force: true });
  }
}

if (!isBuilt()) await buildExecutable();
const options = process.argv.slice(2);
process.exitCode = options.length > 0 ? await run(options).ended : await runOnScratch();
