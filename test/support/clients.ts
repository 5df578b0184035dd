/**
 * The programs that tests drive outport with: one list, from which the test runner installs and
 * tests run. A test that needs a missing one fails and says which package to install.
 */

import { spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";

/** Each program with the Debian package that has it. */
const CLIENTS = {
  blkdiscard: "util-linux",
  busybox: "busybox-static",
  cp: "coreutils",
  dd: "coreutils",
  debugfs: "e2fsprogs",
  e2fsck: "e2fsprogs",
  fallocate: "util-linux",
  fio: "fio",
  fstrim: "util-linux",
  fusermount3: "fuse3",
  losetup: "mount",
  mke2fs: "e2fsprogs",
  "mkfs.xfs": "xfsprogs",
  mount: "mount",
  "nbd-client": "nbd-client",
  nbdcopy: "libnbd-bin",
  nbdinfo: "libnbd-bin",
  nbdsh: "python3-libnbd",
  nsenter: "util-linux",
  python3: "python3",
  "qemu-img": "qemu-utils",
  "qemu-io": "qemu-utils",
  "qemu-nbd": "qemu-utils",
  "qemu-storage-daemon": "qemu-system-common",
  "qemu-system-x86_64": "qemu-system-x86",
  resize2fs: "e2fsprogs",
  setpriv: "util-linux",
  sync: "coreutils",
  truncate: "coreutils",
  umount: "mount",
  unshare: "util-linux",
  xfs_repair: "xfsprogs",
} as const;

type ClientName = keyof typeof CLIENTS;

/** The Debian packages that hold all of `CLIENTS`. */
export const CLIENT_PACKAGES: readonly string[] = [...new Set(Object.values(CLIENTS))].sort();

/** The distribution's programs first: another python3 on PATH does not have the nbd module. */
const SEARCH_PATH = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", process.env.PATH ?? ""].join(
  delimiter,
);

function findClient(name: ClientName): string | undefined {
  for (const directory of SEARCH_PATH.split(delimiter)) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // Not in this directory.
    }
  }
  return undefined;
}

/** The programs of `CLIENTS` that this machine lacks. */
export function missingClients(): ClientName[] {
  const names = Object.keys(CLIENTS) as ClientName[];
  return names.filter((name) => findClient(name) === undefined);
}

/** The program's path. Throws with the package's name when it is not installed. */
export function requireClient(name: ClientName): string {
  const path = findClient(name);
  if (path === undefined) {
    throw new Error(`'${name}' is missing: apt-get install ${CLIENTS[name]}`);
  }
  return path;
}

export interface Outcome {
  /** The exit code, or 128 + the signal's effect when a signal ended it. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly input?: string;
  readonly timeoutMs?: number;
}

const PROGRAM_MS_MAX = 150_000;

/** Runs a program to its end, whatever that end is. */
export function attempt(
  name: ClientName,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Outcome> {
  const path = requireClient(name);
  return new Promise((resolve, reject) => {
    const child = spawn(path, args, {
      env: { ...process.env, PATH: SEARCH_PATH, LC_ALL: "C.UTF-8" },
      stdio: ["pipe", "pipe", "pipe"],
    });
    const timeoutMs = options.timeoutMs ?? PROGRAM_MS_MAX;
    const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.on("error", reject);
    child.on("close", (code) => {
      clearTimeout(timer);
      if (code === null) stderr += `\n(ended by a signal; limit ${timeoutMs} ms)`;
      resolve({ code: code ?? 128, stdout, stderr });
    });
    child.stdin.on("error", () => {}); // The program may end without reading its input.
    child.stdin.end(options.input ?? "");
  });
}

/** Runs a program that must succeed; returns what it printed. */
export async function run(
  name: ClientName,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const outcome = await attempt(name, args, options);
  if (outcome.code !== 0) {
    const said = `${outcome.stdout}${outcome.stderr}`.trim();
    throw new Error(`'${name} ${args.join(" ")}' exited with ${outcome.code}: ${said}`);
  }
  return outcome.stdout;
}

const NBDSH_PRELUDE = `
import json, os, errno
def outcome(call, *args, **options):
    try:
        result = call(*args, **options)
    except nbd.Error as error:
        return error.errno or "failed"
    return "ok"
def show(value):
    print(json.dumps(value))
`;

/**
 * Runs a Python script in nbdsh, with `h` an unconnected libnbd handle, `outcome(call, ...)` for
 * "ok" or the errno's name, and `show(value)` for what the test gets back (its last line).
 */
export async function nbdsh<T = unknown>(script: string, options: RunOptions = {}): Promise<T> {
  const shown = await run("nbdsh", ["-c", "-"], {
    ...options,
    input: `${NBDSH_PRELUDE}\n${script}\n`,
  });
  const last = shown.trimEnd().split("\n").at(-1) ?? "";
  if (last === "") throw new Error("the nbdsh script shows nothing");
  return JSON.parse(last) as T;
}
