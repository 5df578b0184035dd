/** Runs one command of the test run, with everything that it starts. */

import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";

export interface CommandOptions {
  readonly cwd: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly timeoutMs: number;
  /** Gets the output as it comes. */
  readonly onOutput?: (text: string) => void;
}

export interface CommandResult {
  /** What it wrote to stdout and stderr, in that order in time. */
  readonly output: string;
  readonly exitCode: number;
  readonly seconds: number;
  /** Why it ended, when that was not by its own decision. */
  readonly end: string | undefined;
}

/** A daemon that a failing test has left behind may keep the pipe open. */
const PIPE_MS_MAX = 500;

/** Those under way, by the process that leads the session of each. */
const leaders = new Set<number>();

/** Members of the session and of its leader's group; runners put what they start in others. */
function membersOf(leader: number): number[] {
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => {
    try {
      const [state, , group, session] = readFileSync(`/proc/${pid}/stat`, "utf8")
        .replace(/^.*\) /s, "")
        .split(" ");
      return state !== "Z" && [group, session].map(Number).includes(leader);
    } catch {
      return false; // It has ended.
    }
  });
}

function endSession(leader: number): void {
  // What forks meanwhile is found the next time.
  for (let round = 0; round < 5; round++) {
    const members = membersOf(leader);
    if (members.length === 0) return;
    for (const pid of members) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended.
      }
    }
  }
}

/** What ends this process from now on ends the commands under way, too. */
export function endCommandsOnSignal(): void {
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.once(signal, () => {
      for (const pid of leaders) endSession(pid);
      process.exit(1);
    });
  }
}

/** Resolves when the command has ended, or was ended as it took too long. Never rejects. */
export function runCommand(command: string, options: CommandOptions): Promise<CommandResult> {
  const begin = performance.now();
  return new Promise((resolve) => {
    const child = spawn("/bin/sh", ["-c", `exec ${command} 2>&1`], {
      cwd: options.cwd,
      stdio: ["ignore", "pipe", "inherit"],
      env: options.env,
      detached: true, // A session of its own.
    });
    const pid = child.pid as number;
    leaders.add(pid);
    let output = "";
    let late = false;
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      options.onOutput?.(text);
    });
    const timer = setTimeout(() => {
      late = true;
      endSession(pid);
    }, options.timeoutMs);
    const finish = (exitCode: number, signal: string | null): void => {
      if (!leaders.delete(pid)) return;
      const seconds = (performance.now() - begin) / 1000;
      let end = signal === null ? undefined : `ended by ${signal}`;
      if (late) end = `ended after ${options.timeoutMs / 60_000} minutes`;
      resolve({ output, exitCode, seconds, end });
    };
    child.on("exit", (code, signal) => {
      clearTimeout(timer);
      endSession(pid); // Nothing of one step is in the way of the next one.
      const finishNow = () => finish(code ?? 1, signal);
      child.on("close", finishNow);
      setTimeout(finishNow, PIPE_MS_MAX);
    });
  });
}
