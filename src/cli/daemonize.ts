/**
 * --daemonize: a process cannot be forked when a runtime's threads are in it, so the same program
 * is started again in a session of its own. It does the options, and says that it is ready by a
 * line on a pipe; until then its standard streams are those of the one that waits for it.
 * Thread: main. Spec: QEMU os-posix.c os_daemonize(), os_setup_post()
 */
import { O_RDWR } from "../abi/linux.ts";
import type { Process, RuntimeDriver } from "../runtime/driver.ts";
import type { Linux } from "../runtime/linux.ts";
import { writeText } from "../runtime/text-file.ts";

/** Set in the one started again: the pipe's descriptor. Nobody else sets it. */
export const READY_FD_VARIABLE = "OUTPORT_DAEMON_READY_FD";

const STDERR_FD = 2;
/** Files that a daemon makes are not everybody's. */
const UMASK = 0o027;

/** Whether this process is to start another one rather than to serve. */
export function isLauncher(driver: RuntimeDriver, daemonize: boolean): boolean {
  return daemonize && driver.env(READY_FD_VARIABLE) === undefined;
}

/** Starts the daemon and waits for it. Resolves with this process's exit code. */
export async function launch(process: Process): Promise<number> {
  const exitCode = await process.startAgain(READY_FD_VARIABLE);
  // One that ended well without serving did not become a daemon, either.
  return exitCode === undefined ? 0 : exitCode || 1;
}

/** The daemon's way into the background, and back. */
export class Background {
  #linux: Linux;
  #process: Process;
  #readyFd: number;
  #startFolder: string;

  /** At once, before any file is made. */
  constructor(driver: RuntimeDriver, linux: Linux) {
    this.#linux = linux;
    this.#process = driver.process;
    this.#readyFd = Number(driver.env(READY_FD_VARIABLE));
    this.#startFolder = driver.process.cwd();
    linux.umask(UMASK);
  }

  /** Everything serves. Later errors go to `logFd` where there is one. */
  enter(logFd: number | null): void {
    const linux = this.#linux;
    this.#process.chdir("/");
    const nullFd = linux.open("/dev/null", O_RDWR);
    for (const fd of this.#process.standardFds()) {
      linux.dup3(fd === STDERR_FD && logFd !== null ? logFd : nullFd, fd);
    }
    linux.close(nullFd);
    writeText(linux, this.#readyFd, "\n");
    linux.close(this.#readyFd);
  }

  /** What was made by a relative name is removed by it. */
  leave(): void {
    try {
      this.#process.chdir(this.#startFolder);
    } catch {
      // The folder is gone, and with it what was made there.
    }
  }
}
