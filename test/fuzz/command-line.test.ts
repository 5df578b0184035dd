/** The parsers of the command line: whatever they get, they answer or refuse with a reason. */
import { expect, test } from "bun:test";
import { parseArguments } from "../../src/cli/arguments.ts";
import { parseChardevOption } from "../../src/cli/chardev-options.ts";
import { type Keyval, parseKeyval } from "../../src/cli/keyval.ts";
import { OutportError } from "../../src/util/error.ts";
import { matchTraceNames } from "../../src/util/trace.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";

const CASES = fuzzCases(5000);

const PIECES = [
  ...["a", "b-c", "__org.x_y", "0", "1", "12", "=", "=", ".", ".", ",", ",", ",,", "on", "no"],
  ...["help", "?", "id", "path", "socket", "stdio", "server", "\0", "\n", "ü", "\ud800", "{", "-"],
  ...["--", "-T", "--blockdev", "--help=1", "--log-level", "__proto__", "constructor", "999999999"],
];

function randomText(random: Random): string {
  let text = "";
  for (let count = random.below(12); count > 0; count--) text += random.pick(PIECES);
  return text;
}

/** What the text means, or the reason why it means nothing. */
function attempt<T>(parse: () => T): T | OutportError {
  try {
    return parse();
  } catch (error) {
    if (error instanceof OutportError) return error;
    throw error;
  }
}

/** `parse` never fails in another way than it should, on many texts. */
function fuzz(parse: (text: string, random: Random) => void): void {
  const seed = randomSeed();
  const random = new Random(seed);
  for (let round = 0; round < CASES; round++) {
    const text = randomText(random);
    try {
      parse(text, random);
    } catch (error) {
      throw new Error(`seed ${seed}: ${JSON.stringify(text)}`, { cause: error });
    }
  }
}

test("parseKeyval() answers or refuses", () => {
  fuzz((text, random) => {
    attempt(() => parseKeyval(text, random.chance(0.5) ? "driver" : undefined));
  });
});

test("parseChardevOption() and matchTraceNames() answer or refuse", () => {
  fuzz((text) => {
    attempt(() => parseChardevOption(text, () => {}));
    matchTraceNames(text);
  });
});

test("parseArguments() answers or refuses", () => {
  fuzz((text, random) => {
    attempt(() => [...parseArguments([text, randomText(random), randomText(random)])]);
  });
});

/** An object whose keys are names, and whose leaves are strings. */
function randomValue(random: Random, depth: number): Keyval {
  const value: Keyval = {};
  for (let count = 1 + random.below(3); count > 0; count--) {
    value[`k${random.below(5)}`] = randomMember(random, depth);
  }
  return value;
}

function randomMember(random: Random, depth: number): Keyval[string] {
  const kind = depth === 0 ? 0 : random.below(3);
  if (kind === 0) return randomText(random);
  if (kind === 1) return randomValue(random, depth - 1);
  return Array.from({ length: 1 + random.below(3) }, () => randomText(random));
}

function itemsOf(value: Keyval[string], key: string): string[] {
  if (typeof value === "string") return [`${key}=${value.replaceAll(",", ",,")}`];
  return Object.entries(value).flatMap(([name, member]) =>
    itemsOf(member as Keyval[string], key === "" ? name : `${key}.${name}`),
  );
}

test("parseKeyval() reads what was written, in any order", () => {
  const seed = randomSeed();
  const random = new Random(seed);
  for (let round = 0; round < CASES / 5; round++) {
    const value = randomValue(random, 3);
    const items = itemsOf(value, "");
    // Items of different keys may stand in any order.
    items.sort(() => random.below(3) - 1);
    expect([seed, parseKeyval(items.join(","))]).toEqual([seed, value]);
  }
});
