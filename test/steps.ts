/** The steps of `npm test`: what runs with which runtime, program and I/O engine. */

import { readdirSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { makeFfi } from "../drivers/bun/ffi.ts";

export const ROOT = resolve(import.meta.dirname, "..");
export const BIN = `${ROOT}/node_modules/.bin`;
const EXECUTABLE = `${ROOT}/dist/outport`;
/** Of the steps, for those who want to read all of it. */
export const OUTPUTS = `${ROOT}/dist/test`;

const BUN_TEST = "bun test --timeout 180000";
const TEST = ".test.ts";
/** Files run in so many processes at a time. */
const PARALLEL = "--parallel=2 --no-isolate";
const DENO_TEST = "deno test -A --no-check --quiet";
const SOURCE_ON_BUN = `${BIN}/bun ${ROOT}/drivers/bun/main.ts`;
const SOURCE_ON_DENO = `${BIN}/deno run -A --no-check --quiet ${ROOT}/drivers/deno/main.ts`;
const BUNDLE_ON_DENO = `${BIN}/deno run -A --quiet ${ROOT}/dist/outport-deno/main.js`;

export interface Step {
  readonly name: string;
  /** What runs at the same time. */
  readonly commands: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Where the runner writes its errors as XML. */
  readonly xml?: string;
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

/** Milliseconds of files that take long, roughly: they begin first, beside all others. */
const LONGEST: Readonly<Record<string, number>> = {
  guest: 80_000,
  "side-by-side": 45_000,
  "qcow2-reader": 40_000,
  "core-fuse-life": 35_000,
  "core-exports": 30_000,
  "core-vhost-user-model": 25_000,
  "core-shutdown": 25_000,
  "core-moving": 25_000,
  "fuse-tools": 25_000,
};
const TIMINGS = `${OUTPUTS}/timings.json`;

/** Before the first step of conformance tests. */
export function writeTimings(): void {
  const times = Object.entries(LONGEST).map(([name, ms]) => [conformanceFile(name), ms]);
  writeFileSync(TIMINGS, JSON.stringify({ version: 1, files: Object.fromEntries(times) }));
}

const conformanceFile = (name: string) => `test/conformance/${name}.test.ts`;

/** The conformance tests of which `wanted` holds. */
function conformance(wanted: (name: string) => boolean): string {
  const found = readdirSync(`${ROOT}/test/conformance`).filter((name) => name.endsWith(TEST));
  const names = found.map((name) => name.slice(0, -TEST.length)).filter(wanted);
  const files = names.map((name) => `./${conformanceFile(name)}`);
  return `${BUN_TEST} ${PARALLEL} --timings=${TIMINGS} ${files.join(" ")}`;
}

const isAny = () => true;
/** Those that concern every way of running outport. */
const isCore = (name: string) => name.startsWith("core-");
/** A guest takes minutes, and core-vhost-user serves as many rings with any engine. */
const concernsEngine = (name: string) => !["guest", "qcow2-reader", "side-by-side"].includes(name);

/** Two processes, and no option for it: files that count descriptors must have their own. */
function unitOnDeno(): string[] {
  const found = readdirSync(`${ROOT}/test/unit`, { recursive: true, encoding: "utf8" });
  const files = found.filter((name) => name.endsWith(TEST)).map((name) => `test/unit/${name}`);
  const all = [...files.sort(), "test/tidy.test.ts"];
  return [0, 1].map((half) => {
    const names = all.filter((_, index) => index % 2 === half);
    return `${DENO_TEST} ${names.join(" ")}`;
  });
}

const daemon = (command: string, engine?: "io_uring" | "epoll") => ({
  OUTPORT_COMMAND: command,
  ...(engine === undefined ? {} : { OUTPORT_IO_ENGINE: engine }),
});

export const outputOf = (name: string) => `${OUTPUTS}/${name.replaceAll(/\W+/g, "-")}`;

/** A step of `bun test`. */
function onBun(name: string, command: string, more: Partial<Step> = {}): Step {
  const xml = `${outputOf(name)}.xml`;
  const reporter = `--reporter=junit --reporter-outfile=${xml}`;
  return { name, xml, commands: [`${command} ${reporter}`], ...more };
}

export function steps(): Step[] {
  const after = "build";
  const executable = { env: daemon(EXECUTABLE), after };
  const smoke = `${BUN_TEST} ./compile/smoke.ts`;
  const whole = true;
  return [
    { name: "lint", commands: ["biome check --error-on-warnings ."], whole },
    { name: "types", commands: ["tsc --noEmit"], whole },
    { name: "build", commands: ["bun compile/bun.ts"], whole },
    { name: "build-deno", commands: ["bun compile/deno.ts"], whole },
    onBun("unit on Bun", "npm run --silent unit --"),
    { name: "unit on Deno", commands: unitOnDeno() },
    onBun("fuzz", `${BUN_TEST} ${PARALLEL} ./test/fuzz`),
    onBun("sim", `${BUN_TEST} ${PARALLEL} ./test/sim`),
    onBun("smoke, executable", smoke, executable),
    onBun("smoke, bundle on Deno", smoke, { env: daemon(BUNDLE_ON_DENO), after: "build-deno" }),
    onBun("conformance, executable, io_uring", conformance(isAny), {
      env: daemon(EXECUTABLE, "io_uring"),
      impossible: ioUringMissing(),
      after,
    }),
    onBun("conformance, executable, epoll", conformance(concernsEngine), {
      env: daemon(EXECUTABLE, "epoll"),
      after,
    }),
    onBun("core conformance, source on Bun", conformance(isCore), { env: daemon(SOURCE_ON_BUN) }),
    onBun("core conformance, source on Deno", conformance(isCore), { env: daemon(SOURCE_ON_DENO) }),
  ];
}
