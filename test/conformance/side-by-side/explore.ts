/**
 * Looks for what nobody thought of: random sequences of commands, the same to the real
 * qemu-storage-daemon and to outport. The first difference of a sequence is reduced to as few steps
 * as show it, and printed with its seed.
 * Run: bun test/conformance/side-by-side/explore.ts PROGRAM [ARGUMENT...]
 * Without PROGRAM: races of several monitors and NBD clients against outport alone.
 * EXPLORE_MINUTES: how long (1); OUTPORT_SEED: the first sequence, and 0 minutes for only that one.
 */

import { COMMAND } from "../../support/process.ts";
import { Random, randomSeed } from "../../support/random.ts";
import { Drawing, type SchemaEntity } from "./draw.ts";
import { KNOWN } from "./known.ts";
import { play, type Transcript } from "./play.ts";
import { race } from "./race.ts";
import { ask, type Step } from "./script.ts";

const CLOSED = "the monitor is closed";

interface Difference {
  /** The step at which it shows; undefined: in the events or at the exit. */
  readonly step: Step | undefined;
  readonly at: number;
  readonly ours: string;
  readonly theirs: string;
  /** Equal for differences of one cause, mostly. */
  readonly kind: string;
}

const reference = process.argv.slice(2);

function playBoth(steps: readonly Step[]): Promise<[Transcript, Transcript]> {
  const scene = { name: "explored", steps };
  return Promise.all([play(COMMAND, scene), play(reference, scene)]);
}

/**
 * The first difference that is neither known nor `reported`; null: there is none, or one of those
 * has left the daemons in different states.
 */
function firstDifference(
  steps: readonly Step[],
  [ours, theirs]: [Transcript, Transcript],
  reported: ReadonlySet<string>,
): Difference | null {
  for (const [at, step] of steps.entries()) {
    const one = (ours.replies[at] ?? []).join(" ");
    const other = (theirs.replies[at] ?? []).join(" ");
    const isInternal = one.includes("Internal error");
    if (one === other && !isInternal) continue;
    const known = isInternal ? undefined : KNOWN.find(({ is }) => is(step.text, one, other));
    if (known === undefined) {
      const crashed = other.includes(CLOSED) ? `QSD ${theirs.exit}` : "";
      const kind = `${commandOf(step)} ${crashed === "" ? plain(one, other) : crashed}`;
      const end = one.includes(CLOSED) ? ` (exit ${ours.exit})` : "";
      const difference = { step, at, ours: one + end, theirs: other + crashed, kind };
      if (!reported.has(kind)) return difference;
    }
    const isSameState = known === undefined ? bothFailed(one, other) : known.parts !== true;
    if (!isSameState) return null;
  }
  const [one, other] = [ours, theirs].map(({ events, exit }) => `${events.join(" ")} exit ${exit}`);
  if (one === other) return null;
  const [end, otherEnd] = [one as string, other as string];
  const kind = plain(end, otherEnd);
  const at = steps.length - 1;
  return reported.has(kind) ? null : { step: undefined, at, ours: end, theirs: otherEnd, kind };
}

function bothFailed(...answers: readonly string[]): boolean {
  return answers.every((answer) => answer.startsWith('{"error"'));
}

function commandOf(step: Step): string {
  return (JSON.parse(step.text) as { execute: string }).execute;
}

function partingOf(one: string, other: string): number {
  let at = 0;
  while (at < one.length && one[at] === other[at]) at++;
  return at;
}

/** Both answers from where they part, without names and numbers. */
function plain(one: string, other: string): string {
  const at = partingOf(one, other);
  const start = Math.max(0, one.lastIndexOf('{"', at), one.lastIndexOf(',"', at));
  const cut = (text: string) =>
    text.slice(start, start + 120).replaceAll(/'[^']*'|[0-9]+|#block<[0-9]*>/g, "_");
  return `${cut(one)} | ${cut(other)}`;
}

/** As few steps as still show a difference of this kind. */
async function reduce(
  steps: readonly Step[],
  found: Difference,
  reported: ReadonlySet<string>,
): Promise<[Step[], Difference]> {
  let last = found;
  let kept = found.step === undefined ? [...steps] : steps.slice(0, found.at + 1);
  for (let size = Math.ceil(kept.length / 2); size >= 1; size = Math.floor(size / 2)) {
    for (let at = kept.length - size; at > -size; at -= size) {
      const from = Math.max(0, at);
      const fewer = [...kept.slice(0, from), ...kept.slice(from + size)];
      const difference = firstDifference(fewer, await playBoth(fewer), reported);
      if (difference?.kind !== found.kind) continue;
      kept = difference.step === undefined ? fewer : fewer.slice(0, difference.at + 1);
      last = difference;
    }
  }
  return [kept, last];
}

async function readSchema(): Promise<SchemaEntity[]> {
  const { replies } = await play(COMMAND, { name: "schema", steps: [ask("query-qmp-schema")] });
  const [[reply = ""] = []] = replies;
  return (JSON.parse(reply) as { return: SchemaEntity[] }).return;
}

async function compare(schema: readonly SchemaEntity[], seeds: Iterable<number>): Promise<void> {
  const reported = new Set<string>();
  let answers = 0;
  for (const seed of seeds) {
    const steps = new Drawing(schema, new Random(seed)).sequence();
    answers += steps.length;
    const found = firstDifference(steps, await playBoth(steps), reported);
    if (found === null) continue;
    const [kept, { ours, theirs }] = await reduce(steps, found, reported);
    reported.add(found.kind);
    console.log(`\nOUTPORT_SEED=${seed}\n${kept.map(({ text }) => text).join("")}`);
    const start = Math.max(0, partingOf(ours, theirs) - 100);
    for (const text of [ours, theirs]) console.log(`   ${text.slice(start, start + 400)}`);
  }
  console.log(`\n${answers} answers, ${reported.size} kinds of differences`);
}

async function raceAll(schema: readonly SchemaEntity[], seeds: Iterable<number>): Promise<void> {
  let answers = 0;
  for (const seed of seeds) {
    answers += await race(schema, seed).catch((error: unknown) => {
      console.log(`\nOUTPORT_SEED=${seed}\n`, error);
      return 0;
    });
  }
  console.log(`\n${answers} answers`);
}

/** One after the other until the time is over; with no time only the first. */
function* seedsInTime(minutes: number): Iterable<number> {
  const endMs = Date.now() + minutes * 60_000;
  let seed = randomSeed();
  do yield seed++;
  while (Date.now() < endMs);
}

const schema = await readSchema();
const seeds = seedsInTime(Number(process.env.EXPLORE_MINUTES ?? 1));
await (reference.length === 0 ? raceAll(schema, seeds) : compare(schema, seeds));
