/** The QMP parser against JSON.parse(), on random values, damaged text and random chunks. */
import { expect, test } from "bun:test";
import { JsonStream } from "../../src/qmp/json-stream.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";

const ROUNDS = 4000;

const TEXTS = [
  "",
  "a",
  "é",
  "€",
  "\u{1f600}",
  '"',
  "\\",
  "\n",
  "\u0001",
  "'",
  "/",
  "__proto__",
  "%d",
];

function randomText(random: Random): string {
  let text = "";
  for (let count = random.below(4); count > 0; count -= 1) text += random.pick(TEXTS);
  return text;
}

function randomValue(random: Random, depth: number): unknown {
  switch (random.below(depth > 4 ? 5 : 7)) {
    case 0:
      return random.below(2 ** 31) - 2 ** 30;
    case 1:
      return (random.below(2 ** 31) - 2 ** 30) / 1024;
    case 2:
      return random.below(2) === 0 ? null : random.below(2) === 0;
    case 3:
      return randomText(random);
    case 4:
      return random.below(2 ** 31) * 1e300;
    case 5:
      return Array.from({ length: random.below(4) }, () => randomValue(random, depth + 1));
    default:
      return Object.fromEntries(
        Array.from({ length: random.below(4) }, () => [
          randomText(random),
          randomValue(random, depth + 1),
        ]),
      );
  }
}

/** What comes out, and whether anything was wrong. The newline ends a number. */
function feed(bytes: Uint8Array, random: Random): { values: unknown[]; errors: string[] } {
  const values: unknown[] = [];
  const errors: string[] = [];
  const stream = new JsonStream({
    onValue: (value) => values.push(value),
    onError: (error) => errors.push(error),
  });
  for (let at = 0; at < bytes.length; ) {
    const end = at + 1 + random.below(random.chance(0.3) ? 64 : 3);
    stream.feed(bytes.subarray(at, end));
    at = end;
  }
  return { values, errors };
}

/** As text; integers beyond 2^53 as the doubles that JSON.parse() makes of them. */
function compact(value: unknown): string {
  return JSON.stringify(value, (_, each) => (typeof each === "bigint" ? Number(each) : each));
}

test("JsonStream reads what JSON.stringify() writes", () => {
  const random = new Random(randomSeed());
  for (let round = 0; round < fuzzCases(ROUNDS); round += 1) {
    const written = Array.from({ length: 1 + random.below(3) }, () => randomValue(random, 0));
    const texts = written.map((value) => JSON.stringify(value, null, random.below(3)));
    const { values, errors } = feed(new TextEncoder().encode(`${texts.join(" ")}\n`), random);
    expect(errors).toEqual([]);
    expect(values.map(compact)).toEqual(written.map(compact));
  }
});

test("JsonStream accepts damaged text only when JSON.parse() does, and always recovers", () => {
  const random = new Random(randomSeed());
  const pieces = new TextEncoder().encode('{}[]:,"\\ue1.0-+truefalsenull \t\n\u0001');
  for (let round = 0; round < fuzzCases(ROUNDS); round += 1) {
    const bytes = new TextEncoder().encode(`${JSON.stringify(randomValue(random, 0))}\n`);
    for (let count = random.below(4); count > 0; count -= 1) {
      const piece = random.below(4) === 0 ? random.below(256) : random.pick([...pieces]);
      bytes[random.below(bytes.length - 1)] = piece as number;
    }
    const { values, errors } = feed(bytes, random);
    let expected: { value: unknown } | undefined;
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
      // V8's own parser mixes up keys that are one escape, as in '{"":1,"\\n":2}'.
      if (!text.includes("\\")) expected = { value: JSON.parse(text) };
    } catch {
      // Not one JSON value, or none to compare with.
    }
    // Twice the same key is an error here, and nowhere else do the two differ in what is JSON.
    const duplicate = errors.some((error) => error.endsWith("duplicate key"));
    const unicode = errors.some((error) => error.endsWith("not a valid Unicode character"));
    if (expected !== undefined && !duplicate && !unicode) {
      expect([errors, compact(values)]).toEqual([[], compact([expected.value])]);
    }
    // A control byte, and then the parser is in step again.
    const again = new Uint8Array([...bytes, 0x01, ...new TextEncoder().encode('{"ok":1}')]);
    expect(feed(again, random).values.at(-1)).toEqual({ ok: 1 });
  }
});
