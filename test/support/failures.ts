/** The tests that failed, by what `bun test` and `deno test` printed. */

import { plain } from "./counts.ts";

export interface Failure {
  /** Empty where the runner does not tell. */
  readonly file: string;
  readonly test: string;
  /** What was printed about it: the error with its place, and what the test itself said. */
  readonly details: readonly string[];
}

/** A line by which the seed of random values is told; it may come before the first test. */
const SEED = /^OUTPORT_SEED=\d+$/;

/** `xml`: what `bun test` wrote by its option --reporter=junit. */
export function failuresIn(output: string, xml = ""): Failure[] {
  const lines = plain(output).split("\n");
  if (!lines.some((line) => line.startsWith("bun test v"))) return ofDeno(lines);
  const errors = errorsIn(xml);
  return ofBun(lines).map((failure) => {
    const error = errors.get(titleOf(failure)) ?? [];
    const told = failure.details.filter((line) => line.startsWith("error: "));
    const isKnown = told.length === 1 && told[0]?.slice(7) === error[0]?.replace(/^\w+: /, "");
    return isKnown ? failure : { ...failure, details: [...error, ...failure.details] };
  });
}

export const titleOf = ({ file, test }: Pick<Failure, "file" | "test">) =>
  file === "" ? test : `${file}: ${test}`;

const TEST_CASE = /<testcase name="([^"]*)" classname="([^"]*)"[^>]* file="([^"]*)"[^>]*>\s*/;
const FAILED_CASE = new RegExp(
  `${TEST_CASE.source}<failure type="([^"]*)" message="([^"]*)"(?: />|>([^<]*)</failure>)`,
  "g",
);

/**
 * The errors by title. What tests print and what the runner tells of them comes in any order when
 * files run at a time; here each error is with its test.
 */
function errorsIn(xml: string): Map<string, string[]> {
  const errors = new Map<string, string[]>();
  for (const found of xml.matchAll(FAILED_CASE)) {
    const [name = "", scope = "", file = "", type = "", message = "", text] = found
      .slice(1)
      .map((each) => each && unescaped(each));
    const test = [scope, name].filter((part) => part !== "").join(" > ");
    const lines = (text ?? `${type}: ${message}`).split("\n");
    errors.set(titleOf({ file, test }), trimmed(lines));
  }
  return errors;
}

const ENTITIES: Readonly<Record<string, string>> = {
  amp: "&",
  apos: "'",
  gt: ">",
  lt: "<",
  quot: '"',
};

function unescaped(text: string): string {
  return text.replaceAll(/&(?:#(\d+)|(\w+));/g, (whole, code, name) =>
    code === undefined ? (ENTITIES[name] ?? whole) : String.fromCodePoint(Number(code)),
  );
}

/** What was printed about the test file that is under way. */
interface OpenFile {
  /** Since the test before. */
  lines: string[];
  seed: string | undefined;
}

const BUN_FILE = /^(\S+\.ts):$/;
const BUN_VERDICT = /^\((pass|fail|skip|todo)\) (.*?)(?: \[[\d.]+m?s\])?$/;
const BUN_CRASH = /^✗ (\S+\.ts) \((.*)\)$/;
const BUN_RECAPITULATION = /^\d+ tests? (?:skipped|failed|todo):$/;
const BUN_OUTSIDE = "# Unhandled error between tests";
const BUN_RULE = /^-{20,}$/;
/** Follows the test that it is about. */
const BUN_TIMEOUT = "  ^ ";

/** Files that run at a time take turns, each of which begins with the file's name. */
function ofBun(lines: readonly string[]): Failure[] {
  const failures: Failure[] = [];
  const open = new Map<string, OpenFile>();
  let file = "";
  let afterFailure: string[] | undefined;
  for (const [index, line] of lines.entries()) {
    if (BUN_RECAPITULATION.test(line)) break;
    const [, name] = BUN_FILE.exec(line) ?? [];
    const [, crashed, how] = BUN_CRASH.exec(line) ?? [];
    const [, verdict, test] = BUN_VERDICT.exec(line) ?? [];
    file = name ?? file;
    const about = open.get(file) ?? { lines: [], seed: undefined };
    open.set(file, about);
    if (SEED.test(line)) about.seed = line;
    if (crashed !== undefined) {
      failures.push({ file: crashed, test: "(the file)", details: [...about.lines, how ?? ""] });
    } else if (line === BUN_OUTSIDE) {
      const end = lines.findIndex((each, at) => at > index + 1 && BUN_RULE.test(each));
      const details = lines.slice(index + 2, end < 0 ? undefined : end);
      failures.push({ file, test: "(outside of tests)", details });
    } else if (verdict === undefined) {
      if (line.startsWith(BUN_TIMEOUT)) afterFailure?.push(line.trim());
      else if (name === undefined) about.lines.push(line);
      continue;
    }
    afterFailure = verdict === "fail" ? withSeed(about) : undefined;
    if (afterFailure !== undefined) {
      failures.push({ file, test: test as string, details: afterFailure });
    }
    if (verdict !== undefined) about.lines = [];
  }
  return failures;
}

function withSeed({ lines, seed }: OpenFile): string[] {
  const details = trimmed(lines);
  return seed === undefined || details.includes(seed) ? details : [seed, ...details];
}

const DENO_VERDICT = /^(.*?) \.\.\..* (?:ok|FAILED|ignored|cancelled)(?: \(.*\))?$/;
const DENO_ERRORS = /^ ERRORS ?$/;
const DENO_FAILURES = /^ FAILURES ?$/;
const DENO_TITLE = /^(.+) => \S+:\d+:\d+$|^(\S+\.ts) \(uncaught error\)$/;
/** A line of a stack that is in a file of tests. */
const DENO_PLACE = /file:\/\/\S*?\/((?:test|compile)\/\S+\.test\.ts):\d+/;

function ofDeno(lines: readonly string[]): Failure[] {
  const from = lines.findIndex((line) => DENO_ERRORS.test(line));
  const to = lines.findIndex((line) => DENO_FAILURES.test(line));
  if (from < 0 || to < 0) return [];
  const seeds = seedsByTest(lines.slice(0, from));
  const failures: (Failure & { details: string[] })[] = [];
  for (const line of lines.slice(from + 1, to)) {
    const [title, test, uncaught] = DENO_TITLE.exec(line) ?? [];
    const last = failures.at(-1);
    if (title === undefined) {
      last?.details.push(line);
    } else {
      const seed = seeds.get(test ?? "");
      const details = seed === undefined ? [] : [seed];
      failures.push({ file: uncaught ?? "", test: test ?? "(outside of tests)", details });
    }
  }
  return failures.map(({ file, test, details }) => {
    const place = details.map((line) => DENO_PLACE.exec(line)?.[1]).find((each) => each);
    return { file: place ?? file, test, details: trimmed(details) };
  });
}

function seedsByTest(lines: readonly string[]): Map<string, string> {
  const seeds = new Map<string, string>();
  let seed: string | undefined;
  for (const line of lines) {
    if (SEED.test(line)) seed = line;
    const [, test] = DENO_VERDICT.exec(line) ?? [];
    if (test !== undefined && seed !== undefined) seeds.set(test, seed);
  }
  return seeds;
}

/** Without empty lines at either end. */
function trimmed(lines: readonly string[]): string[] {
  const said = (line: string) => line.trim() !== "";
  const first = lines.findIndex(said);
  return first < 0 ? [] : lines.slice(first, lines.findLastIndex(said) + 1);
}

/** The error itself: the lines from the one that names it, without the stack. */
export function errorOf({ details }: Failure, linesMax: number): string[] {
  const at = details.findIndex((line) => /^(?:\w*[Ee]rror: |E[A-Z0-9]+: )/.test(line));
  const said = at < 0 ? details.slice(-linesMax) : details.slice(at);
  const stack = said.findIndex((line) => /^\s+at /.test(line));
  const error = stack < 0 ? said : said.slice(0, stack);
  return error.filter((line) => line.trim() !== "").slice(0, linesMax);
}
