/**
 * Puts an export over a file: looks at what is there, takes a dead mount away, mounts as root or
 * as an ordinary user. Thread: main.
 * Spec: QEMU block/export/fuse.c; libfuse lib/mount.c
 */
import { S_IFMT, S_IFREG } from "../../abi/linux.ts";
import { MS_NOATIME, MS_NODEV, MS_NOSUID, MS_RDONLY } from "../../abi/linux-mount.ts";
import { ECONNABORTED, ENOTCONN, EPERM, strerror } from "../../runtime/errno.ts";
import type { MountIdentity } from "../../runtime/linux-mount.ts";
import { OutportError } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import type { FusermountFailure } from "./fusermount.ts";
import type { MountSystem } from "./mount-system.ts";
import { findMount } from "./unmount.ts";

/** The longest READ that the kernel sends. */
const MAX_READ = 1024 * 1024;
/** Dead mounts above each other. */
const DEAD_MAX = 16;

export type AllowOther = "on" | "off" | "auto";

export interface MountRequest {
  readonly path: string;
  readonly writable: boolean;
  readonly allowOther: AllowOther;
  /** A file of this process's own exports. */
  readonly isOwn: (dev: number) => boolean;
}

/** A mount of ours. */
export interface FuseMount extends MountIdentity {
  /** Of /dev/fuse. Whoever mounted it closes it. */
  readonly fd: number;
  /** As the user named it. */
  readonly path: string;
  readonly allowOther: boolean;
}

/** Throws OutportError in QSD's words; nothing is mounted then. */
export async function mountOver(
  system: MountSystem,
  request: MountRequest,
  log: Log,
): Promise<FuseMount> {
  const { path, allowOther } = request;
  await checkMountpoint(system, request, log);
  const attempts = allowOther === "auto" ? [true, false] : [allowOther === "on"];
  let why = "";
  for (const allowed of attempts) {
    const made = await tryMount(system, request, allowed);
    if ("fd" in made) return made;
    why = made.stderr;
  }
  log("error", `Cannot mount on '${path}': ${why.trim()}`);
  throw new OutportError("io", "Failed to mount FUSE session to export");
}

/** That the path is of a regular file, which is no export of this process. */
async function checkMountpoint(system: MountSystem, request: MountRequest, log: Log) {
  const { path } = request;
  let mode = await modeOf(system, request);
  for (let count = 0; isDead(mode) && count < DEAD_MAX; count++) {
    if (!(await removeDead(system, path, log))) break;
    mode = await modeOf(system, request);
  }
  if (mode < 0) throw new OutportError("io", `Failed to stat '${path}': ${strerror(mode)}`);
  if ((mode & S_IFMT) !== S_IFREG) {
    throw new OutportError("invalid", `'${path}' is not a regular file`);
  }
}

/** Nobody serves it; or who did is dying. */
function isDead(result: number): boolean {
  return result === -ENOTCONN || result === -ECONNABORTED;
}

async function modeOf(system: MountSystem, { path, isOwn }: MountRequest): Promise<number> {
  const pathFd = await system.openPath(path);
  if (pathFd < 0) return pathFd;
  const found = system.identify(pathFd);
  await system.closePath(pathFd);
  // QSD differs: it compares names only, and waits for itself when they differ.
  if (typeof found === "object" && isOwn(found.dev)) throw alreadyExported(path);
  return await system.mode(path);
}

export function alreadyExported(path: string): OutportError {
  return new OutportError("in-use", `There already is a FUSE export on '${path}'`);
}

/**
 * What a daemon that was killed leaves behind: nobody can ever serve it again. Only if it looks
 * like a mount of this user's block exports. False: it stays.
 * QSD differs: it fails with "Transport endpoint is not connected".
 */
async function removeDead(system: MountSystem, path: string, log: Log): Promise<boolean> {
  const pathFd = await system.openPath(path);
  if (pathFd < 0) return false;
  try {
    const found = system.identify(pathFd);
    const mount = typeof found === "object" ? findMount(system, found) : undefined;
    if (mount === undefined || mount.type !== "fuse" || mount.source !== "/dev/fuse") return false;
    if (!mount.options.includes(`user_id=${system.uid}`)) return false;
    const result = await system.unmount(pathFd);
    const isGone =
      result === 0 ||
      (result === -EPERM && (await system.fusermountUnmount(mount.path)) === undefined);
    if (isGone) log("warn", `removed the dead mount of an earlier export from '${path}'`);
    return isGone;
  } finally {
    await system.closePath(pathFd);
  }
}

async function tryMount(
  system: MountSystem,
  { path, writable }: MountRequest,
  allowOther: boolean,
): Promise<FuseMount | FusermountFailure> {
  const options = [
    "default_permissions",
    ...(allowOther ? ["allow_other"] : []),
    `max_read=${MAX_READ}`,
  ];
  const fd = await mountAs(system, { path, writable, options });
  if (typeof fd !== "number") return fd;
  const pathFd = await system.openPath(path);
  const found = pathFd < 0 ? pathFd : system.identify(pathFd);
  if (pathFd >= 0) await system.closePath(pathFd);
  if (typeof found === "number") {
    // It is dead without this; there may not have been enough descriptors for a look at it.
    system.close(fd);
    await removeDead(system, path, () => {});
    return { stderr: `the mount is not there: ${strerror(found)}` };
  }
  return { ...found, fd, path, allowOther };
}

interface Attempt {
  readonly path: string;
  readonly writable: boolean;
  readonly options: readonly string[];
}

/** As root, or else through fusermount3. Returns a descriptor of /dev/fuse. */
async function mountAs(
  system: MountSystem,
  { path, writable, options }: Attempt,
): Promise<number | FusermountFailure> {
  const fd = system.openDevice();
  if (fd < 0) return { stderr: `/dev/fuse: ${strerror(fd)}` };
  const pathFd = await system.openPath(path);
  let result = pathFd;
  if (pathFd >= 0) {
    const own = [`fd=${fd}`, `rootmode=${S_IFREG.toString(8)}`];
    const user = [`user_id=${system.uid}`, `group_id=${system.gid}`];
    const flags = MS_NOSUID | MS_NODEV | MS_NOATIME | (writable ? 0 : MS_RDONLY);
    result = await system.mount(pathFd, flags, [...own, ...user, ...options].join(","));
    await system.closePath(pathFd);
  }
  if (result === 0) return fd;
  system.close(fd);
  if (result !== -EPERM) return { stderr: strerror(result) };
  const flags = [writable ? "rw" : "ro", "nosuid", "nodev", "noatime"];
  return await system.fusermount(path, [...flags, ...options]);
}
