/**
 * Starts the program under test and looks at it from outside. The command comes from
 * OUTPORT_COMMAND (words separated by spaces), by default the built executable.
 */

import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { Qmp } from "./qmp.ts";

export { sleep };

export const COMMAND: readonly string[] = (
  process.env.OUTPORT_COMMAND ?? join(import.meta.dirname, "../../dist/outport")
).split(" ");

/** How long a test waits for what must happen: many times what it takes on a busy machine. */
export const PATIENCE_MS = 60_000;

/** How a process ended: its exit code, or the signal that ended it. */
export type Exit = number | string;

export class Daemon {
  readonly exited: Promise<Exit>;
  /** What `await using` demands. */
  expectedExit: Exit = 0;
  readonly #child: ChildProcess;
  #pid: number;
  #exit: Exit | undefined;
  #stdout = "";
  #stderr = "";

  constructor(child: ChildProcess, collectStdout: boolean) {
    this.#child = child;
    this.#pid = child.pid ?? -1;
    if (collectStdout) {
      child.stdout?.setEncoding("utf8").on("data", (text: string) => {
        this.#stdout += text;
      });
    }
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    this.exited = new Promise((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (code, signal) => {
        this.#exit = code ?? signal ?? "unknown";
        resolve(this.#exit);
      });
    });
  }

  /** Undefined while it runs. */
  get exit(): Exit | undefined {
    return this.#exit;
  }
  get pid(): number {
    return this.#pid;
  }
  get stdout(): string {
    return this.#stdout;
  }
  get stderr(): string {
    return this.#stderr;
  }
  /** The daemon's own stdin and stdout, for a monitor on them. */
  get stdio(): { stdin: Writable; stdout: Readable } {
    return { stdin: this.#child.stdin as Writable, stdout: this.#child.stdout as Readable };
  }

  /** Waits until the pid file is there, which is written when everything listens. */
  async ready(pidfile: string): Promise<this> {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      if (this.#exit !== undefined) {
        throw new Error(`the daemon exited with ${this.#exit}: ${this.#stderr}`);
      }
      const pid = Number.parseInt(readText(pidfile), 10);
      if (pid > 0) {
        this.#pid = pid;
        return this;
      }
      if (Date.now() > deadline) throw new Error(`no pid file at ${pidfile}: ${this.#stderr}`);
      await sleep(5);
    }
  }

  signal(name: NodeJS.Signals): void {
    process.kill(this.#pid, name);
  }

  /** Waits until it has said so on stderr, which may come later than the reply to a command. */
  async said(what: RegExp): Promise<RegExpExecArray> {
    for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(5)) {
      const found = what.exec(this.#stderr);
      if (found !== null) return found;
      if (Date.now() > deadline) throw new Error(`it does not say ${what}: ${this.#stderr}`);
    }
  }

  /** SIGTERM, then its exit; SIGKILL when it does not come in time. */
  async stop(): Promise<Exit> {
    if (this.#exit === undefined) this.signal("SIGTERM");
    return await this.exitSoon();
  }

  /** Its exit. */
  exitSoon(): Promise<Exit> {
    return this.exitWithin(PATIENCE_MS);
  }

  /** Its exit. Kills it and throws when that takes longer. */
  async exitWithin(timeoutMs: number): Promise<Exit> {
    const timeout = new AbortController();
    const late = sleep(timeoutMs, "late" as const, { signal: timeout.signal }).catch(
      () => "late" as const,
    );
    const first = await Promise.race([this.exited, late]);
    timeout.abort();
    if (first !== "late") return first;
    this.kill();
    throw new Error(`the daemon did not end within ${timeoutMs} ms: ${this.#stderr}`);
  }

  kill(): void {
    if (this.#exit === undefined) this.signal("SIGKILL");
  }

  /** How many file descriptors it has open. */
  fdCount(): number {
    return readdirSync(`/proc/${this.#pid}/fd`).length;
  }

  residentKiB(): number {
    const line = /^VmRSS:\s+(\d+) kB$/m.exec(readText(`/proc/${this.#pid}/status`));
    return Number(line?.[1]);
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

export interface SpawnDaemon {
  /** Put before the command, as a launcher that hands over file descriptors. */
  readonly prefix?: readonly string[];
  readonly stdin?: "ignore" | "pipe";
  /** Leaves stdout to the reader of `stdio`. */
  readonly rawStdout?: boolean;
  readonly cwd?: string;
  readonly env?: Record<string, string>;
}

/** Starts the daemon and does not wait for anything. */
export function spawnDaemon(args: readonly string[], options: SpawnDaemon = {}): Daemon {
  return startProgram([...(options.prefix ?? []), ...COMMAND, ...args], options);
}

/** The same for a program that is, or ends up as, the daemon. */
export function startProgram(words: readonly string[], options: SpawnDaemon = {}): Daemon {
  const spawnOptions: SpawnOptions = {
    stdio: [options.stdin ?? "ignore", "pipe", "pipe"],
    env: { ...process.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  };
  const child = spawn(words[0] as string, words.slice(1), spawnOptions);
  return new Daemon(child, options.rawStdout !== true);
}

/** Runs the daemon's command to its end, as for --version or options that fail. */
export async function runDaemon(
  args: readonly string[],
  options: SpawnDaemon = {},
): Promise<{ exit: Exit; stdout: string; stderr: string }> {
  const daemon = spawnDaemon(args, options);
  const exit = await daemon.exitSoon();
  return { exit, stdout: daemon.stdout, stderr: daemon.stderr };
}

/** A daemon that serves, with a monitor. `await using` stops it and checks that it ends well. */
export interface RunningDaemon extends AsyncDisposable {
  readonly daemon: Daemon;
  readonly qmp: Qmp;
  readonly pidfile: string;
  readonly monitor: string;
}

/** Starts the daemon with `args` and a monitor in `directory`, and waits until it serves. */
export async function startDaemon(
  directory: string,
  args: readonly string[],
  options: SpawnDaemon = {},
): Promise<RunningDaemon> {
  const monitor = join(directory, "qmp.sock");
  const pidfile = join(directory, "daemon.pid");
  const monitorArgs = ["--chardev", `socket,id=qmp,path=${monitor},server=on,wait=off`];
  const daemon = spawnDaemon(
    [...args, ...monitorArgs, "--monitor", "chardev=qmp", "--pidfile", pidfile],
    options,
  );
  await daemon.ready(pidfile);
  const qmp = await Qmp.connect(monitor).catch((error: Error) => {
    daemon.kill();
    throw error;
  });
  return {
    daemon,
    qmp,
    pidfile,
    monitor,
    [Symbol.asyncDispose]: async () => {
      qmp.close();
      await assertEndsWell(daemon);
    },
  };
}

/** Shows what the daemon said, as a test that failed before hides the error thrown here. */
async function assertEndsWell(daemon: Daemon): Promise<void> {
  const exit = await daemon.stop();
  if (exit === daemon.expectedExit) return;
  console.error(`the daemon exited with ${exit}: ${daemon.stderr}`);
  throw new Error(`the daemon exited with ${exit}: ${daemon.stderr}`);
}
