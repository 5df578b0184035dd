import { describe, expect, test } from "bun:test";
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { driver } from "../../support/driver.ts";

const FIXTURE = fileURLToPath(new URL("./fixtures/process.ts", import.meta.url));
const RUN = "Bun" in globalThis ? [] : ["run", "-A", "--no-check"];

function start(...args: string[]): ChildProcess {
  return spawn(process.execPath, [...RUN, FIXTURE, ...args], { stdio: "pipe" });
}

function exitCode(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve) => child.on("close", resolve));
}

/** Everything that came out, when it has closed. */
function output(stream: NodeJS.ReadableStream): Promise<string> {
  return new Promise((resolve) => {
    const chunks: Uint8Array[] = [];
    stream.on("data", (chunk: Uint8Array) => chunks.push(chunk));
    stream.on("end", () => resolve(Buffer.concat(chunks).toString()));
  });
}

function firstOutput(stream: NodeJS.ReadableStream): Promise<string> {
  return new Promise((resolve) => stream.once("data", (chunk) => resolve(String(chunk))));
}

describe("process", () => {
  test("exit() waits for a slow reader of standard output", async () => {
    const child = start("flood");
    await new Promise((resolve) => setTimeout(resolve, 200));
    const [code, text] = await Promise.all([exitCode(child), output(child.stdout!)]);
    const lines = text.trimEnd().split("\n");
    expect(lines.length).toBe(20_000);
    expect(lines.at(-1)).toBe(`line 19999 ${"x".repeat(50)}`);
    expect(code).toBe(5);
  });

  test("stdin() is a stream whose writes are standard output", async () => {
    const child = start("echo");
    child.stdin!.end("x".repeat(300_000));
    const [code, text] = await Promise.all([exitCode(child), output(child.stdout!)]);
    expect(text).toBe("x".repeat(300_000));
    expect(code).toBe(0);
  });

  test("onSignal() replaces the end by a signal", async () => {
    const child = start("signal");
    expect(await firstOutput(child.stdout!)).toBe("ready\n");
    const rest = firstOutput(child.stdout!);
    // Not child.kill(): one runtime then says that the signal ended the process, whatever did.
    process.kill(child.pid!, "SIGTERM");
    expect(await rest).toBe("terminated\n");
    expect(await exitCode(child)).toBe(6);
  });

  test("exit() waits until a socket's peer has taken what was written", async () => {
    const path = join(tmpdir(), `process-${process.pid}.sock`);
    const child = start("answer", path);
    expect(await firstOutput(child.stdout!)).toBe("ready\n");
    const stream = await driver.sockets.connect({ type: "unix", path });
    let received = 0;
    const closed = new Promise<void>((resolve) => {
      stream.onClose = resolve;
    });
    stream.onData = (bytes) => {
      received += bytes.length;
      stream.pause();
      setTimeout(() => stream.resume(), 1);
    };
    const code = exitCode(child);
    await closed;
    expect(received).toBe(8 << 20);
    expect(await code).toBe(7);
    rmSync(path, { force: true });
  });

  test("stderr() is written at once, and exitNow() ends the process", async () => {
    const child = start("now");
    const [code, text] = await Promise.all([exitCode(child), output(child.stderr!)]);
    expect(text).toBe("first\n");
    expect(code).toBe(8);
  });

  test("run() runs a program with a descriptor, variables and arguments", async () => {
    const { run } = driver.process;
    const fd = openSync("/proc/self/status", "r");
    const script = 'read -r line <&3; echo "$line $1 $SAID" >&2; exit 5';
    const { code, stderr } = await run("sh", ["-c", script, "sh", "a b"], {
      fd,
      env: { SAID: "so" },
    });
    closeSync(fd);
    expect(code).toBe(5);
    expect(stderr).toMatch(/^Name:\s.* a b so\n$/);
  });

  test("run() tells of programs that can not be started, and ends slow ones", async () => {
    const { run } = driver.process;
    const missing = await run("no-such-program", []);
    expect(missing.code).toBe(null);
    expect(missing.stderr).toContain("no-such-program");
    expect(await run("sleep", ["60"], { timeoutMs: 20 })).toEqual({ code: null, stderr: "" });
  });
});
