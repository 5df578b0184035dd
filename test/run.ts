/**
 * `npm test`: everything, on both runtimes, with the built executable and with both I/O engines.
 * `npm test -- NAME ...` runs only the steps whose names begin so. The last line has the sums.
 */

import { spawn, spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { resolve } from "node:path";
import { makeFfi } from "../drivers/bun/ffi.ts";
import { CLIENT_PACKAGES, missingClients } from "./support/clients.ts";
import { type Counts, judge, sentence } from "./support/counts.ts";

const ROOT = resolve(import.meta.dirname, "..");
const BIN = `${ROOT}/node_modules/.bin`;
const EXECUTABLE = `${ROOT}/dist/outport`;
const STEP_MS_MAX = 8 * 60_000;

const DENO_TEST = "deno test -A --no-check --quiet";
const SOURCE_ON_BUN = `${BIN}/bun ${ROOT}/drivers/bun/main.ts`;
const SOURCE_ON_DENO = `${BIN}/deno run -A --no-check --quiet ${ROOT}/drivers/deno/main.ts`;
const BUNDLE_ON_DENO = `${BIN}/deno run -A --quiet ${ROOT}/dist/outport-deno/main.js`;
const CONFORMANCE = "bun test --timeout 60000";

interface Step {
  readonly name: string;
  readonly command: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Prints no counts of its own: as a whole it passes or fails. */
  readonly whole?: true;
  /** A step without which this one makes no sense. */
  readonly after?: string;
  /** Why this machine cannot run it; then it counts as skipped. */
  readonly impossible?: string | undefined;
}

/** Tries io_uring_setup(2) with a bad address: EFAULT where it is there and allowed. */
function ioUringMissing(): string | undefined {
  const EFAULT = 14;
  const IO_URING_SETUP = 425;
  const result = makeFfi().syscall(IO_URING_SETUP, 1, 0);
  return result === -EFAULT ? undefined : `this kernel refuses io_uring (errno ${-result})`;
}

const without = (...names: string[]) =>
  names.map((name) => `--path-ignore-patterns="**/${name}.test.ts"`).join(" ");

/** The conformance tests that concern every way of running outport. */
function coreConformance(): string {
  const names = readdirSync(`${ROOT}/test/conformance`).filter((name) => name.startsWith("core-"));
  return names.map((name) => `./test/conformance/${name}`).join(" ");
}

const daemon = (command: string, engine?: "io_uring" | "epoll") => ({
  OUTPORT_COMMAND: command,
  ...(engine === undefined ? {} : { OUTPORT_IO_ENGINE: engine }),
});

function steps(): Step[] {
  const built = { after: "build" };
  return [
    { name: "lint", command: "biome check --error-on-warnings .", whole: true },
    { name: "types", command: "tsc --noEmit", whole: true },
    { name: "build", command: "bun compile/bun.ts", whole: true },
    { name: "build-deno", command: "bun compile/deno.ts", whole: true },
    { name: "unit on Bun", command: "npm run --silent unit" },
    { name: "unit on Deno", command: `${DENO_TEST} test/unit test/tidy.test.ts` },
    { name: "fuzz", command: "bun test --timeout 60000 ./test/fuzz" },
    { name: "sim", command: "bun test --timeout 60000 ./test/sim" },
    {
      name: "smoke, executable",
      command: "bun test ./compile/smoke.ts",
      env: daemon(EXECUTABLE),
      ...built,
    },
    {
      name: "smoke, bundle on Deno",
      command: "bun test ./compile/smoke.ts",
      env: daemon(BUNDLE_ON_DENO),
      after: "build-deno",
    },
    {
      name: "conformance, executable, io_uring",
      command: `${CONFORMANCE} ./test/conformance`,
      env: daemon(EXECUTABLE, "io_uring"),
      impossible: ioUringMissing(),
      ...built,
    },
    {
      name: "conformance, executable, epoll",
      // A guest takes minutes, and core-vhost-user serves as many rings with this engine.
      command: `${CONFORMANCE} ${without("guest", "qcow2-reader")} ./test/conformance`,
      env: daemon(EXECUTABLE, "epoll"),
      ...built,
    },
    {
      name: "core conformance, source on Bun",
      command: `${CONFORMANCE} ${coreConformance()}`,
      env: daemon(SOURCE_ON_BUN),
    },
    {
      name: "core conformance, source on Deno",
      command: `${CONFORMANCE} ${coreConformance()}`,
      env: daemon(SOURCE_ON_DENO),
    },
  ];
}

/** Runs the command, showing its output as it comes. */
function stream(command: string, env: Readonly<Record<string, string>>) {
  return new Promise<{ output: string; exitCode: number }>((resolve) => {
    const child = spawn("/bin/sh", ["-c", `exec ${command}`], {
      cwd: ROOT,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, PATH: `${BIN}:${process.env.PATH}`, NO_COLOR: "1", ...env },
    });
    let output = "";
    const timer = setTimeout(() => {
      console.log(`\nended after ${STEP_MS_MAX / 60_000} minutes`);
      child.kill("SIGKILL");
    }, STEP_MS_MAX);
    for (const pipe of [child.stdout, child.stderr]) {
      pipe.setEncoding("utf8").on("data", (text: string) => {
        output += text;
        process.stdout.write(text);
      });
    }
    child.on("exit", (code) => {
      clearTimeout(timer);
      // A daemon left over by a failing test may keep the pipes open.
      setTimeout(() => resolve({ output, exitCode: code ?? 1 }), 50);
    });
  });
}

/** Installs the real clients where that is possible; tests that lack one fail and name it. */
function installClients(): void {
  if (missingClients().length === 0) return;
  console.log(`== clients: ${missingClients().join(" ")} missing`);
  if (process.getuid?.() !== 0) {
    console.log(`install them as root: apt-get install ${CLIENT_PACKAGES.join(" ")}`);
    return;
  }
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const options = {
    env,
    stdio: ["ignore", "inherit", "inherit"] as ["ignore", "inherit", "inherit"],
  };
  spawnSync("apt-get", ["-qq", "update"], options);
  spawnSync(
    "apt-get",
    ["-qq", "install", "-y", "--no-install-recommends", ...CLIENT_PACKAGES],
    options,
  );
}

/** The counts of a step; `failed` names the steps that failed before it. */
async function runStep(step: Step, failed: ReadonlySet<string>): Promise<Counts> {
  if (step.impossible !== undefined) {
    console.log(step.impossible);
    return { passed: 0, failed: 0, skipped: 1 };
  }
  if (step.after !== undefined && failed.has(step.after)) {
    console.log(`not run, as "${step.after}" failed`);
    return { passed: 0, failed: 1, skipped: 0 };
  }
  const { output, exitCode } = await stream(step.command, step.env ?? {});
  return judge(output, exitCode, step.whole === true);
}

async function main(chosen: readonly string[]): Promise<void> {
  const sums = { passed: 0, failed: 0, skipped: 0 };
  const report: string[] = [];
  const failed = new Set<string>();
  installClients();
  for (const step of steps()) {
    if (chosen.length > 0 && !chosen.some((name) => step.name.startsWith(name))) continue;
    const begin = performance.now();
    console.log(`\n== ${step.name}`);
    const counts = await runStep(step, failed);
    const seconds = ((performance.now() - begin) / 1000).toFixed(1).padStart(6);
    report.push(`${seconds} s  ${step.name}: ${sentence(counts)}`);
    if (counts.failed > 0) failed.add(step.name);
    sums.passed += counts.passed;
    sums.failed += counts.failed;
    sums.skipped += counts.skipped;
  }
  console.log(`\n${report.join("\n")}\n`);
  console.log(sentence(sums));
  process.exitCode = sums.failed > 0 || sums.passed === 0 ? 1 : 0;
}

if (import.meta.main) await main(process.argv.slice(2));
