import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { runCommand } from "../../support/command.ts";

const options = { cwd: "/", env: { PATH: process.env.PATH }, timeoutMs: 60_000 };

/** Who has ended may stay as a zombie. */
function runs(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

test("runCommand() gives the output in its order, and how the command ended", async () => {
  const seen: string[] = [];
  const onOutput = (text: string) => seen.push(text);
  const command = "sh -c 'echo one; echo two >&2; exit 3'";
  const result = await runCommand(command, { ...options, onOutput });
  expect(result).toMatchObject({ output: "one\ntwo\n", exitCode: 3, end: undefined });
  expect(seen.join("")).toBe(result.output);
});

test("runCommand() tells of a signal", async () => {
  const { exitCode, end } = await runCommand("sh -c 'kill -SEGV $$'", options);
  expect([exitCode, end]).toEqual([1, "ended by SIGSEGV"]);
});

test("runCommand() ends what takes too long, with all that it has started", async () => {
  const command = "sh -c 'sleep 1000 & echo $!; wait'";
  const { output, exitCode, end } = await runCommand(command, { ...options, timeoutMs: 300 });
  expect([exitCode, end]).toEqual([1, "ended after 0.005 minutes"]);
  while (runs(Number(output))) await new Promise((resolve) => setTimeout(resolve, 5));
});

test("runCommand() does not wait for who is left behind with the pipe", async () => {
  const { output, exitCode } = await runCommand(
    "sh -c 'setsid sleep 5 & sleep 0.2; echo done'",
    options,
  );
  expect([output, exitCode]).toEqual(["done\n", 0]);
});
