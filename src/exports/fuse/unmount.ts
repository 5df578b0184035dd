/**
 * Takes a mount of ours away, and none but ours, wherever it is by now. Thread: main.
 */
import { EIO, EPERM, strerror } from "../../runtime/errno.ts";
import type { MountIdentity } from "../../runtime/linux-mount.ts";
import type { Mount } from "../../runtime/mountinfo.ts";
import type { Log } from "../../util/log.ts";
import type { FuseMount } from "./mount.ts";
import type { MountSystem } from "./mount-system.ts";
import type { StillOpen } from "./service.ts";

/** Undefined: this process does not see it any more. */
export function findMount(system: MountSystem, wanted: MountIdentity): Mount | undefined {
  return system
    .mounts()
    .find(({ id, dev }) => dev === wanted.dev && (wanted.mountId === 0 || id === wanted.mountId));
}

/** Where a mount of ours is by now. */
interface Place {
  readonly path: string;
  readonly pathFd: number;
}

/** Missing: somebody else has unmounted it; or why it can't be reached. */
export type Found = Place | string | undefined;

/** For unmount() or leave(); while it can still be asked for its attributes. */
export async function find(system: MountSystem, mount: FuseMount): Promise<Found> {
  const path = findMount(system, mount)?.path;
  if (path === undefined) return undefined;
  const pathFd = await system.openPath(path);
  if (pathFd < 0) return strerror(pathFd);
  const found = system.identify(pathFd);
  if (typeof found === "object" && found.dev === mount.dev) return { path, pathFd };
  await system.closePath(pathFd);
  return typeof found === "object" ? "it is under another mount" : strerror(found);
}

/** It stays. */
export async function leave(system: MountSystem, found: Found): Promise<void> {
  if (typeof found === "object") await system.closePath(found.pathFd);
}

interface Unmounting {
  readonly system: MountSystem;
  readonly mount: FuseMount;
  readonly found: Found;
  readonly stillOpen: StillOpen;
  readonly log: Log;
}

/**
 * Files that are open stay open, and go on until the descriptor of /dev/fuse is closed, unless the
 * kernel reads and writes the image for them: that ends here. The file system must be served
 * meanwhile, and this takes as long as that. Never fails: what can't be done is logged.
 */
export async function unmount(unmounting: Unmounting): Promise<void> {
  const { system, mount, found, log } = unmounting;
  let failure: string | undefined;
  if (typeof found === "object") {
    await settle(unmounting, found);
    failure = await unmountAt(system, found);
    await system.closePath(found.pathFd);
  } else {
    failure = found;
    if (unmounting.stillOpen === "direct") log("warn", goesOn(mount));
  }
  // Somebody else may have been quicker.
  if (failure === undefined || findMount(system, mount) === undefined) return;
  log("error", `Cannot unmount '${mount.path}': ${failure}`);
}

/** Has mappings written back, or takes the image away from who writes it directly. */
async function settle(unmounting: Unmounting, { path, pathFd }: Place): Promise<void> {
  const { system, mount, stillOpen, log } = unmounting;
  if (stillOpen === "nothing") return;
  // Its open() already makes the kernel look at the attributes.
  const failure = await system.sync(path);
  if (stillOpen === "direct") {
    if (system.identify(pathFd) !== -EIO) log("warn", goesOn(mount));
  } else if (failure !== undefined) {
    log("warn", `Mappings of '${mount.path}' may not be written back: ${failure.trim()}`);
  }
}

/** Without its attributes: there may be none any more. Returns why it can't be done. */
async function unmountAt(system: MountSystem, place: Place): Promise<string | undefined> {
  const result = await system.unmount(place.pathFd);
  if (result === 0) return undefined;
  if (result !== -EPERM) return strerror(result);
  return (await system.fusermountUnmount(place.path))?.stderr.trim();
}

function goesOn({ path }: FuseMount): string {
  return `Programs that have '${path}' open may go on reading and writing the image itself`;
}

/** The same at once, whatever is lost with it. */
export function abortMount(system: MountSystem, mount: FuseMount): void {
  system.abort(findMount(system, mount)?.path ?? mount.path, mount.dev);
}
