/**
 * Takes a mount of ours away, and none but ours, wherever it is by now. Thread: main.
 */
import { EPERM, strerror } from "../../runtime/errno.ts";
import type { MountIdentity } from "../../runtime/linux-mount.ts";
import type { Mount } from "../../runtime/mountinfo.ts";
import type { Log } from "../../util/log.ts";
import type { FuseMount } from "./mount.ts";
import type { MountSystem } from "./mount-system.ts";

/** Undefined: this process does not see it any more. */
export function findMount(system: MountSystem, wanted: MountIdentity): Mount | undefined {
  return system
    .mounts()
    .find(({ id, dev }) => dev === wanted.dev && (wanted.mountId === 0 || id === wanted.mountId));
}

interface Unmounting {
  readonly system: MountSystem;
  readonly mount: FuseMount;
  readonly log: Log;
}

/**
 * Files that are open stay open, and go on until the descriptor of /dev/fuse is closed; what was
 * written to mappings of them is written back before. The file system must be served meanwhile,
 * and this takes as long as that. Never fails: what can't be done is logged.
 */
export async function unmount(system: MountSystem, mount: FuseMount, log: Log): Promise<void> {
  const place = findMount(system, mount);
  // Somebody else has unmounted it.
  if (place === undefined) return;
  const pathFd = await system.openPath(place.path);
  const failure =
    pathFd < 0 ? strerror(pathFd) : await unmountAt({ system, mount, log }, place.path, pathFd);
  if (pathFd >= 0) await system.closePath(pathFd);
  // Somebody else may have been quicker.
  if (failure === undefined || findMount(system, mount) === undefined) return;
  log("error", `Cannot unmount '${mount.path}': ${failure}`);
}

/** What `pathFd` leads to. Returns why it can't be done, or undefined. */
async function unmountAt(
  { system, mount, log }: Unmounting,
  path: string,
  pathFd: number,
): Promise<string | undefined> {
  const found = system.identify(pathFd);
  if (typeof found === "number") return strerror(found);
  if (found.dev !== mount.dev) return "it is under another mount";
  if (mount.writable) {
    const failure = await system.sync(path);
    if (failure !== undefined) {
      log("warn", `Mappings of '${mount.path}' may not be written back: ${failure.trim()}`);
    }
  }
  const result = await system.unmount(pathFd);
  if (result === 0) return undefined;
  if (result !== -EPERM) return strerror(result);
  return (await system.fusermountUnmount(path))?.stderr.trim();
}

/** The same at once, whatever is lost with it. */
export function abortMount(system: MountSystem, mount: FuseMount): void {
  system.abort(findMount(system, mount)?.path ?? mount.path, mount.dev);
}
