/**
 * What FUSE exports ask of the host's mounts. Whatever may wait for a file system, its own ones
 * included, waits beside this thread. Thread: main.
 */
import { O_RDWR, O_WRONLY } from "../../abi/linux.ts";
import { MNT_DETACH, MNT_FORCE, O_PATH } from "../../abi/linux-mount.ts";
import { BlockingCalls } from "../../io/blocking-calls.ts";
import type { Process, ThreadDriver } from "../../runtime/driver.ts";
import { EIO, EPERM } from "../../runtime/errno.ts";
import type { Linux } from "../../runtime/linux.ts";
import * as calls from "../../runtime/linux-mount.ts";
import type { Mount } from "../../runtime/mountinfo.ts";
import { writeText } from "../../runtime/text-file.ts";
import { type FusermountFailure, fusermount, fusermountUnmount } from "./fusermount.ts";

/** How long somebody else's file system may take to say what is at a path. */
const PATH_MS_MAX = 10_000;
/** A file system that takes longer is stuck. */
const SYNC_MS_MAX = 60_000;
/** Device numbers are major × 2^20 + minor. */
const MINORS = 2 ** 20;

/** Results are descriptors or 0, or a negative errno. Tests fake it. */
export interface MountSystem {
  readonly uid: number;
  readonly gid: number;
  /** The mounts that this process sees. */
  mounts(): Mount[];
  /**
   * A descriptor of the place alone: its file system isn't asked. For closePath(): the last one
   * of a mount that is taken away ends its file system, which may take its time.
   */
  openPath(path: string): Promise<number>;
  closePath(pathFd: number): Promise<void>;
  /** Its file system isn't asked. */
  identify(pathFd: number): calls.MountIdentity | number;
  /** st_mode; asks the file system. */
  mode(path: string): Promise<number>;
  openDevice(): number;
  close(fd: number): void;
  /** Over the file of `pathFd`. */
  mount(pathFd: number, flags: number, data: string): Promise<number>;
  /** Takes the top mount of `pathFd` away, now or when its last file is closed. */
  unmount(pathFd: number): Promise<number>;
  /**
   * Opens it, and has it written what the kernel has not written yet. By another process: a thread
   * of this one that waits for a file system of its own keeps it from ending, even if it is killed,
   * and so the file system from being given up. Undefined: done.
   */
  sync(path: string): Promise<string | undefined>;
  fusermount(path: string, options: readonly string[]): Promise<number | FusermountFailure>;
  fusermountUnmount(path: string): Promise<FusermountFailure | undefined>;
  /** At once: ends a mounted file system with all that waits for it, and unmounts it. */
  abort(path: string, dev: number): void;
  closeAll(): void;
}

export interface MountSystemParts {
  readonly linux: Linux;
  readonly driver: Pick<ThreadDriver, "startThread"> & { readonly process: Pick<Process, "run"> };
}

export function makeMountSystem({ linux, driver }: MountSystemParts): MountSystem {
  const blocking = new BlockingCalls(linux, driver);
  const run = async (call: calls.DeferredCall, timeoutMs?: number): Promise<number> =>
    (await blocking.run(call, timeoutMs)).result;
  return {
    uid: calls.getuid(linux),
    gid: calls.getgid(linux),
    mounts: () => calls.listMounts(linux),
    openPath: (path) => run(calls.openPathCall(linux, path), PATH_MS_MAX),
    async closePath(pathFd) {
      await run(calls.closeCall(linux, pathFd));
    },
    identify: (pathFd) => calls.identifyMount(linux, pathFd),
    async mode(path) {
      const { result, output } = await blocking.run(calls.statCall(linux, path), PATH_MS_MAX);
      return result < 0 ? result : calls.modeOf(output);
    },
    openDevice: () => linux.open("/dev/fuse", O_RDWR),
    close: (fd) => void linux.close(fd),
    mount: (pathFd, flags, data) =>
      run(
        calls.mountCall(linux, {
          source: "/dev/fuse",
          target: calls.fdPath(pathFd),
          type: "fuse",
          flags,
          data,
        }),
      ),
    unmount: (pathFd) => run(calls.unmountCall(linux, calls.fdPath(pathFd), MNT_DETACH)),
    async sync(path) {
      const timeoutMs = SYNC_MS_MAX;
      const { code, stderr } = await driver.process.run("sync", ["-f", "--", path], { timeoutMs });
      return code === 0 ? undefined : stderr;
    },
    fusermount: (path, options) => fusermount(linux, driver.process, path, options),
    fusermountUnmount: (path) => fusermountUnmount(driver.process, path),
    abort(path, dev) {
      // Another process, which goes on when this one has ended.
      if (abort(linux, path, dev) === -EPERM) void fusermountUnmount(driver.process, path);
    },
    closeAll: () => blocking.close(),
  };
}

/** Returns what unmounting does. */
function abort(linux: Linux, path: string, dev: number): number {
  const pathFd = linux.open(path, O_PATH);
  const found = pathFd < 0 ? pathFd : calls.identifyMount(linux, pathFd);
  let result = 0;
  // A file that has been taken from programs has no attributes any more: see unmount.ts.
  const isOurs = typeof found === "object" ? found.dev === dev : found === -EIO;
  if (isOurs) {
    result = calls.unmountNow(linux, calls.fdPath(pathFd), MNT_FORCE | MNT_DETACH);
  }
  // An ordinary user may do this, but not that.
  const control = `/sys/fs/fuse/connections/${dev % MINORS}/abort`;
  const controlFd = linux.open(control, O_WRONLY);
  if (controlFd >= 0) {
    writeText(linux, controlFd, "1");
    linux.close(controlFd);
  }
  if (pathFd >= 0) linux.close(pathFd);
  return result;
}
