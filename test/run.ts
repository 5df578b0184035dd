/**
 * `npm test`: everything, on both runtimes, with the built executable and with both I/O engines.
 * `npm test -- NAME ...` runs only the steps whose names begin so; `--verbose` shows all that they
 * print. Otherwise a step is one line, and each failed test is shown with its error. The whole
 * output of each step is in dist/test. The last line has the sums.
 */

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { BIN, OUTPUTS, outputOf, ROOT, type Step, steps, writeTimings } from "./steps.ts";
import { CLIENT_PACKAGES, missingClients } from "./support/clients.ts";
import { type CommandResult, endCommandsOnSignal, runCommand } from "./support/command.ts";
import { type Counts, judge, plain, sentence, sumOf } from "./support/counts.ts";
import { errorOf, type Failure, failuresIn, titleOf } from "./support/failures.ts";

/** Several times what the longest one takes. */
const STEP_MS_MAX = 25 * 60_000;

const APT_ATTEMPTS = 4;
const APT_PAUSE_MS = 10_000;
const APT_GET = ["-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"];

/** Installs the real clients where that is possible; tests that lack one fail and name it. */
function installClients(): void {
  const missing = missingClients();
  if (missing.length === 0) return;
  if (process.getuid?.() !== 0) {
    console.log(`clients missing: ${missing.join(" ")}`);
    console.log(`install them as root: apt-get install ${CLIENT_PACKAGES.join(" ")}`);
    return;
  }
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const packages = ["install", "-y", "--no-install-recommends", ...CLIENT_PACKAGES];
  for (let attempt = 1; missingClients().length > 0 && attempt <= APT_ATTEMPTS; attempt++) {
    if (attempt > 1) Bun.sleepSync(APT_PAUSE_MS);
    for (const args of [["update"], packages]) {
      const done = spawnSync("apt-get", [...APT_GET, ...args], { env, encoding: "utf8" });
      if (done.status === 0) continue;
      const said = `${done.stdout}${done.stderr}`.trim().split("\n").slice(-5).join("\n");
      console.log(`apt-get ${args[0]}, attempt ${attempt}: exit code ${done.status}\n${said}`);
    }
  }
  console.log(`installed clients; missing: ${missingClients().join(" ") || "none"}`);
}

/** fusermount3 cannot unmount without it; a system that was made by hand may have none. */
function provideMtab(): void {
  const path = "/etc/mtab";
  if (process.getuid?.() !== 0 || existsSync(path)) return;
  symlinkSync("../proc/self/mounts", path);
}

const DETAIL_LINES_MAX = 60;
const ERROR_LINES_MAX = 8;
/** Failures of a step of which more than the name is shown. */
const SHOWN_MAX = 25;

interface Outcome {
  readonly step: Step;
  readonly counts: Counts;
  readonly seconds: number;
  readonly failures: readonly Failure[];
}

/** The first and the last of many lines. */
function shortened(lines: readonly string[], linesMax: number): readonly string[] {
  if (lines.length <= linesMax) return lines;
  const half = Math.floor(linesMax / 2);
  const left = `... ${lines.length - 2 * half} lines ...`;
  return [...lines.slice(0, half), left, ...lines.slice(-half)];
}

function errorsOf({ xml }: Step): string {
  return xml !== undefined && existsSync(xml) ? readFileSync(xml, "utf8") : "";
}

/** The tests that failed; the step itself when no test explains why it did. */
function failuresOf(step: Step, result: CommandResult, counts: Counts): Failure[] {
  if (counts.failed === 0) return [];
  const failures = step.whole === true ? [] : failuresIn(result.output, errorsOf(step));
  const end = result.end ?? `ended with exit code ${result.exitCode}`;
  if (failures.length > 0 && result.end === undefined) return failures;
  const said = plain(result.output).trimEnd().split("\n").slice(-DETAIL_LINES_MAX);
  return [...failures, { file: "", test: "(the step)", details: [...said, `error: ${end}`] }];
}

function showFailures({ step, failures }: Outcome): void {
  for (const failure of failures.slice(0, SHOWN_MAX)) {
    const details = shortened(failure.details, DETAIL_LINES_MAX);
    console.log(`\n--- ${step.name}: ${titleOf(failure)}\n${details.join("\n")}`);
  }
  for (const failure of failures.slice(SHOWN_MAX)) console.log(`--- ${titleOf(failure)}`);
  if (failures.length > 0) console.log("");
}

/** `failed` names the steps that failed before it. */
async function runStep(
  step: Step,
  failed: ReadonlySet<string>,
  verbose: boolean,
): Promise<Outcome> {
  if (step.impossible !== undefined) {
    console.log(`skipped, ${step.impossible}`);
    const counts = { passed: 0, failed: 0, skipped: 1 };
    return { step, counts, seconds: 0, failures: [] };
  }
  if (step.after !== undefined && failed.has(step.after)) {
    const details = [`not run, as "${step.after}" failed`];
    const counts = { passed: 0, failed: 1, skipped: 0 };
    return { step, counts, seconds: 0, failures: [{ file: "", test: "(the step)", details }] };
  }
  if (step.xml !== undefined) rmSync(step.xml, { force: true });
  const options = {
    cwd: ROOT,
    timeoutMs: STEP_MS_MAX,
    env: { ...process.env, PATH: `${BIN}:${process.env.PATH}`, NO_COLOR: "1", ...step.env },
    ...(verbose ? { onOutput: (text: string) => process.stdout.write(text) } : {}),
  };
  const results = await Promise.all(step.commands.map((each) => runCommand(each, options)));
  const output = results.map((result) => result.output).join("");
  writeFileSync(`${outputOf(step.name)}.txt`, output);
  const judged = results.map((result) => {
    const bad = result.end === undefined ? result.exitCode : result.exitCode || 1;
    const counts = judge(result.output, bad, step.whole === true);
    return { counts, failures: failuresOf(step, result, counts) };
  });
  return {
    step,
    counts: sumOf(judged.map(({ counts }) => counts)),
    seconds: Math.max(...results.map(({ seconds }) => seconds)),
    failures: judged.flatMap(({ failures }) => failures),
  };
}

/** Names every test that failed, with what its error says. */
function summarize(outcomes: readonly Outcome[]): void {
  for (const { step, failures } of outcomes) {
    for (const [index, failure] of failures.entries()) {
      console.log(`FAILED ${step.name}: ${titleOf(failure)}`);
      if (index >= SHOWN_MAX) continue;
      for (const line of errorOf(failure, ERROR_LINES_MAX)) console.log(`    ${line}`);
    }
  }
}

async function main(args: readonly string[]): Promise<void> {
  const verbose = args.includes("--verbose");
  const chosen = args.filter((arg) => !arg.startsWith("--"));
  const outcomes: Outcome[] = [];
  const failed = new Set<string>();
  mkdirSync(OUTPUTS, { recursive: true });
  writeTimings();
  endCommandsOnSignal();
  installClients();
  provideMtab();
  for (const step of steps()) {
    if (chosen.length > 0 && !chosen.some((name) => step.name.startsWith(name))) continue;
    process.stdout.write(verbose ? `\n== ${step.name}\n` : `${step.name}: `);
    const outcome = await runStep(step, failed, verbose);
    console.log(`${sentence(outcome.counts)} (${outcome.seconds.toFixed(1)} s)`);
    if (outcome.counts.failed > 0) failed.add(step.name);
    outcomes.push(outcome);
    showFailures(outcome);
  }
  const sums = sumOf(outcomes.map(({ counts }) => counts));
  summarize(outcomes);
  console.log(sentence(sums));
  process.exitCode = sums.failed > 0 || sums.passed === 0 ? 1 : 0;
}

if (import.meta.main) await main(process.argv.slice(2));
