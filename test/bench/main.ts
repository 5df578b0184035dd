/**
 * `npm run bench`: the hot loops on both runtimes, start-up and memory of the built executable, its
 * monitors, qcow2 beside QSD, and where PEERS_ROOT and COMPARE name the peers' root and the
 * comparing program, that comparison (`npm run bench -- OPTIONS` hands it options).
 */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import type { LoopName, Measure } from "./loops.ts";
import { measureMonitors } from "./monitor.ts";
import { compareQcow2 } from "./qcow2.ts";
import { measureStartup } from "./startup.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const BIN = `${ROOT}/node_modules/.bin`;
const LOOPS = `${ROOT}/test/bench/loops.ts`;
/** Nothing is collected while allocations are counted. */
const V8_FLAGS = "--v8-flags=--min-semi-space-size=64,--max-semi-space-size=64";
const EXECUTABLE = `${ROOT}/dist/outport`;

const NAMES: readonly LoopName[] = [
  "ring",
  "nbd-simple",
  "nbd-structured",
  "nbd-extended",
  "nbd-mixed",
  "resolve",
  "qcow2",
  "overlay",
];

function measureLoop(command: string, args: readonly string[], name: LoopName): Measure {
  const { status, stdout } = spawnSync(command, [...args, LOOPS, name], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (status !== 0) throw new Error(`${command} exited with ${status}`);
  return JSON.parse(stdout) as Measure;
}

function showLoops(): void {
  console.log(`${"Per request".padEnd(66)}  Bun ns   Deno ns   bytes allocated`);
  for (const name of NAMES) {
    const onBun = measureLoop(`${BIN}/bun`, [], name);
    const onDeno = measureLoop(`${BIN}/deno`, ["run", "-A", "--no-check", V8_FLAGS], name);
    const numbers = [
      onBun.ns.toFixed(1).padStart(8),
      onDeno.ns.toFixed(1).padStart(10),
      (onDeno.bytes ?? Number.NaN).toFixed(2).padStart(18),
    ];
    console.log(`${onBun.name.padEnd(66)}${numbers.join("")}`);
  }
}

function compare(options: readonly string[]): void {
  const { PEERS_ROOT, COMPARE } = process.env;
  if (PEERS_ROOT === undefined || COMPARE === undefined) {
    console.log(
      "No comparison: PEERS_ROOT and COMPARE do not name the peers' root and its program",
    );
    return;
  }
  const env = { DUT: EXECUTABLE, ...process.env };
  const { status } = spawnSync(COMPARE, options, { stdio: "inherit", env });
  process.exitCode = status ?? 1;
}

showLoops();
console.log();
if (existsSync(EXECUTABLE)) {
  await measureStartup();
  console.log();
  await measureMonitors();
  console.log();
  await compareQcow2();
  console.log();
  compare(process.argv.slice(2));
} else {
  console.log("dist/outport is missing (npm run build): nothing more to measure");
}
