/** Standard streams, signals and exit, the same on both runtimes. Thread: main; stderr(): any. */
import { spawn } from "node:child_process";
import { readdirSync, readFileSync, readlinkSync, writeSync } from "node:fs";
import process from "node:process";
import type { Process, RunOptions, RunResult, Stream } from "../../src/runtime/driver.ts";
import { OutputFile } from "./output.ts";
import { drained } from "./streams.ts";

const STDOUT_FD = 1;
const STDERR_FD = 2;

/** What a program says at length is no message for people. */
const RUN_STDERR_LENGTH_MAX = 4096;

/** Flag of open(), as the kernel shows it. */
const O_CLOEXEC = 0o2000000;

/** How a runtime starts programs. */
export interface ProgramStart {
  /** What comes between the executable of the process and the program's own arguments. */
  readonly programArgs: readonly string[];
  /** At its own start the runtime sees to it that no descriptor gets to a child by itself. */
  readonly hidesInherited: boolean;
}

export function makeProcess(start: ProgramStart): Process {
  const stdout = new OutputFile(STDOUT_FD);
  return {
    args: process.argv.slice(2),
    pid: process.pid,
    env,
    onSignal: (name, handler) => void process.on(name, handler),
    stdin: () => stdio(stdout),
    stdout: (text) => stdout.write(new TextEncoder().encode(text)),
    stderr,
    exit(code) {
      process.exitCode = code;
      void drained().then(() => process.exit(code));
    },
    exitNow: (code) => process.exit(code),
    standardFds,
    cwd: () => process.cwd(),
    chdir: (path) => process.chdir(path),
    startAgain: (readyVariable) => startAgain(start, readyVariable),
    run,
  };
}

function run(
  program: string,
  args: readonly string[],
  { fd, env: more, timeoutMs }: RunOptions = {},
): Promise<RunResult> {
  const child = spawn(program, [...args], {
    stdio: ["ignore", "ignore", "pipe", ...(fd === undefined ? [] : [fd])],
    env: { ...process.env, ...more },
    ...(timeoutMs === undefined ? {} : { timeout: timeoutMs, killSignal: "SIGKILL" }),
  });
  let stderr = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    if (stderr.length < RUN_STDERR_LENGTH_MAX) stderr += text;
  });
  return new Promise((resolve) => {
    child.on("error", (error) => resolve({ code: null, stderr: error.message }));
    child.on("close", (code) => resolve({ code, stderr }));
  });
}

function startAgain(
  { programArgs, hidesInherited }: ProgramStart,
  readyVariable: string,
): Promise<number | undefined> {
  const inherited = inheritedFds(hidesInherited);
  const readyFd = Math.max(STDERR_FD, ...inherited) + 1;
  const stdio = Array.from({ length: readyFd }, (_, fd) =>
    fd <= STDERR_FD ? "inherit" : inherited.includes(fd) ? fd : "ignore",
  );
  const child = spawn(process.execPath, [...programArgs, ...process.argv.slice(2)], {
    detached: true,
    stdio: [...stdio, "pipe"],
    env: { ...process.env, [readyVariable]: String(readyFd) },
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    // A signal is a failure, too.
    child.on("exit", (code) => resolve(code ?? 1));
    // Its end tells nothing: the runtime of the child may have duplicates.
    child.stdio[readyFd]?.once("data", () => resolve(undefined));
  });
}

function standardFds(): number[] {
  const own = [0, STDOUT_FD, STDERR_FD];
  const targets = own.map(targetOf);
  const isCopy = (fd: number): boolean => {
    const target = targetOf(fd);
    // Files may be open for another reason, too.
    const isStream = /^(pipe:|socket:|\/dev\/(pts|tty))/.test(target ?? "");
    return isStream && targets.includes(target) && closesOnExec(fd);
  };
  const fds = readdirSync("/proc/self/fd").map(Number);
  return [...own, ...fds.filter((fd) => !own.includes(fd) && isCopy(fd))];
}

/** Descriptors beyond the standard ones that whoever started this process gave it. */
function inheritedFds(hidden: boolean): number[] {
  return readdirSync("/proc/self/fd")
    .map(Number)
    .filter((fd) => fd > STDERR_FD && isInherited(fd, hidden));
}

function isInherited(fd: number, hidden: boolean): boolean {
  const target = targetOf(fd);
  // The listing's own is gone, and the runtime has made others for itself.
  if (target === undefined || target.startsWith("anon_inode:")) return false;
  return hidden || !closesOnExec(fd);
}

/** What it is open on, as the kernel names it; undefined when it is not open. */
function targetOf(fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return undefined;
  }
}

function closesOnExec(fd: number): boolean {
  const info = readFileSync(`/proc/self/fdinfo/${fd}`, "utf8");
  const [, flags = ""] = /^flags:\s*([0-7]+)$/m.exec(info) ?? [];
  return (Number.parseInt(flags, 8) & O_CLOEXEC) !== 0;
}

export function env(name: string): string | undefined {
  return process.env[name];
}

/** At once, from any thread: no event loop has to turn. What stderr does not take is lost. */
export function stderr(text: string): void {
  let bytes = new TextEncoder().encode(text);
  try {
    while (bytes.length > 0) bytes = bytes.subarray(writeSync(STDERR_FD, bytes));
  } catch {
    // Closed, or full and not blocking: there is nowhere to say so.
  }
}

/** Standard input and output as one stream. */
function stdio(stdout: OutputFile): Stream {
  let closed = false;
  const close = (): void => {
    if (closed) return;
    closed = true;
    stream.onClose();
  };
  const stream: Stream = {
    onData: () => {},
    onEnd: () => stream.end(),
    onClose: () => {},
    write: (bytes) => stdout.write(bytes),
    get pendingBytes() {
      return stdout.pendingBytes;
    },
    pause: () => void process.stdin.pause(),
    resume: () => void process.stdin.resume(),
    end: () => void process.stdin.destroy(),
    destroy() {
      stdout.fail();
      process.stdin.destroy();
    },
  };
  stdout.onError = close;
  process.stdin.on("data", (chunk: Uint8Array) => stream.onData(new Uint8Array(chunk)));
  let ended = false;
  const end = (): void => {
    if (!ended) stream.onEnd();
    ended = true;
  };
  process.stdin.on("end", end);
  process.stdin.on("close", end);
  process.stdin.on("error", end);
  return stream;
}
