/** What FUSE tests begin with: one raw image, exported as a file. Needs root. */

import { readFileSync } from "node:fs";
import { chmod, writeFile } from "node:fs/promises";
import { attempt, run } from "../support/clients.ts";
import {
  MiB,
  patternImage,
  sparseImage,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/images.ts";
import { type RunningDaemon, type SpawnDaemon, startDaemon } from "../support/process.ts";

export interface MountOptions extends SpawnDaemon {
  readonly bytes?: number;
  /** The image has no allocated block, instead of a pattern. */
  readonly sparse?: boolean;
  /** See nodeArguments(). */
  readonly filtered?: boolean;
  /** More options of --export; writable=on when absent. */
  readonly export?: string;
  /** More options after the export. */
  readonly after?: readonly string[];
}

export interface MountScene extends RunningDaemon {
  /** Open to other users. */
  readonly directory: TemporaryDirectory;
  readonly image: string;
  readonly bytes: number;
  /** What the image held at the start; empty when it is sparse. */
  readonly content: Buffer;
  readonly mountpoint: string;
}

/**
 * A command's prefix: a mount namespace in which everybody may open /dev/fuse, as on most systems.
 * `device` is a path for the device that it makes.
 */
export function inOpenNamespace(device: string): string[] {
  const script = [
    // Where the root is that of a chroot it is no mount point, and /dev must do.
    "mount --make-rprivate / 2>/dev/null || mount --make-rprivate /dev",
    'mknod -m 666 "$0" c 10 229',
    'mount --bind "$0" /dev/fuse',
    'exec "$@"',
  ];
  const unshare = ["unshare", "--mount", "--propagation", "unchanged"];
  return [...unshare, "sh", "-ec", script.join("; "), device];
}

/** Where /proc says that something is mounted. */
export function mountsUnder(directory: string): string[] {
  const lines = readFileSync("/proc/self/mounts", "utf8").split("\n");
  const paths = lines.map((line) => line.split(" ")[1] ?? "");
  return paths.filter((path) => path.startsWith(directory));
}

/** A temporary directory that goes, too, when a failing test has left mounts in it. */
export async function mountDirectory(): Promise<TemporaryDirectory> {
  const directory = await temporaryDirectory();
  await chmod(directory.path, 0o755);
  return {
    ...directory,
    [Symbol.asyncDispose]: async () => {
      for (const path of mountsUnder(directory.path)) await attempt("umount", ["--lazy", path]);
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** The nodes disk-file and disk; filtered, so that all requests must pass the daemon. */
export function nodeArguments(image: string, filtered = false): string[] {
  const filter = ["--object", "throttle-group,id=no-limits"];
  const layer = filtered ? "throttle,throttle-group=no-limits" : "raw";
  return [
    ...(filtered ? filter : []),
    ...["--blockdev", `driver=file,node-name=disk-file,filename=${image},discard=unmap`],
    ...["--blockdev", `driver=${layer},node-name=disk,file=disk-file,discard=unmap`],
  ];
}

/** Exports a raw image as a file (export f0, node disk over node disk-file). */
export async function mountDisk(options: MountOptions = {}): Promise<MountScene> {
  const bytes = options.bytes ?? 16 * MiB;
  await using made = new AsyncDisposableStack();
  const directory = made.use(await mountDirectory());
  const image = directory.file("disk.raw");
  const mountpoint = directory.file("disk");
  let content: Buffer = Buffer.alloc(0);
  if (options.sparse === true) await sparseImage(image, bytes);
  else content = await patternImage(image, bytes);
  await writeFile(mountpoint, "");
  const more = options.export ?? "writable=on";
  const args = [
    ...nodeArguments(image, options.filtered),
    ...["--export", `type=fuse,id=f0,node-name=disk,mountpoint=${mountpoint},${more}`],
    ...(options.after ?? []),
  ];
  const running = made.use(await startDaemon(directory.path, args, options));
  const all = made.move();
  return {
    ...running,
    directory,
    image,
    bytes,
    content,
    mountpoint,
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Runs a Python script that gets `args`; returns what it printed. */
export function python(script: string, args: readonly string[]): Promise<string> {
  return run("python3", ["-c", script, ...args]);
}

/** The data of the file as [start, end) pairs, as lseek(2) tells them. */
export async function dataMap(path: string): Promise<[number, number][]> {
  const script = `
import json, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
end, found, at = os.fstat(fd).st_size, [], 0
while at < end:
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        break
    at = os.lseek(fd, start, os.SEEK_HOLE)
    found.append([start, at])
print(json.dumps(found))
`;
  return JSON.parse(await python(script, [path])) as [number, number][];
}
