/** check() on random schemas and values, with valibot as the judge of what it lets through. */
import { expect, test } from "bun:test";
import * as v from "valibot";
import { check, type InputMode } from "../../src/qapi/check.ts";
import { Double } from "../../src/qapi/numbers.ts";
import {
  alternate,
  any,
  arrayOf,
  bool,
  enumeration,
  int,
  nullValue,
  number,
  object,
  optional,
  size,
  str,
  uint16,
  uint32,
  uint64,
  union,
} from "../../src/qapi/scalars.ts";
import { OutportError } from "../../src/util/error.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";

const ROUNDS = 3000;

/** A schema, and how to make a value that it takes. */
interface Subject {
  readonly schema: v.GenericSchema;
  valid(): unknown;
}
type Members = Readonly<Record<string, Subject & { readonly optional: boolean }>>;

/** valibot takes what an object inherits for its members, so no such names. */
const NAMES = ["a", "node-name", "type", "x_y", "max-bytes", "id", "length", "0"];
const TEXTS = ["", "a", "on", "off", "1", "-1", "4k", "0x10", "1.0", "null", "hard", "é"];
const ODD_VALUES = [
  null,
  true,
  "",
  "on",
  "hard",
  0,
  -1,
  1.5,
  2 ** 16,
  2 ** 32,
  2 ** 53,
  -(2 ** 63),
  1e308,
  2n ** 63n,
  2n ** 64n - 1n,
  -(2n ** 63n),
  new Double(1),
  {},
  [],
  [null],
  { "": 1 },
  JSON.parse('{"__proto__": {"a": 1}}') as unknown,
];

function randomSubject(random: Random, depth: number): Subject {
  const kind = random.below(depth > 3 ? 4 : 8);
  if (kind < 3) return randomScalar(random);
  if (kind === 3) {
    const values = NAMES.slice(0, 1 + random.below(NAMES.length));
    return { schema: enumeration("Enum", values), valid: () => random.pick(values) };
  }
  if (kind === 4) {
    const item = randomSubject(random, depth + 1);
    return {
      schema: arrayOf(item.schema),
      valid: () => Array.from({ length: random.below(3) }, () => item.valid()),
    };
  }
  if (kind === 5) return randomAlternate(random, depth);
  if (kind === 6) return randomUnion(random, depth);
  const members = randomMembers(random, depth, NAMES);
  return { schema: object("Object", schemasOf(members)), valid: () => validOf(random, members) };
}

function randomScalar(random: Random): Subject {
  const integer = (schema: v.GenericSchema, limit: number) => ({
    schema,
    valid: () => random.below(limit),
  });
  return random.pick<Subject>([
    { schema: str, valid: () => random.pick(TEXTS) },
    { schema: bool, valid: () => random.chance(0.5) },
    { schema: nullValue, valid: () => null },
    { schema: any, valid: () => random.pick(ODD_VALUES) },
    { schema: number, valid: () => random.below(1000) / 8 },
    { schema: int, valid: () => random.below(2 ** 53) - 2 ** 52 },
    integer(uint16, 2 ** 16),
    integer(uint32, 2 ** 32),
    integer(uint64, 2 ** 53),
    integer(size, 2 ** 53),
  ]);
}

function randomMembers(random: Random, depth: number, names: readonly string[]): Members {
  const chosen = names.filter(() => random.chance(0.4));
  return Object.fromEntries(
    chosen.map((name) => {
      const { schema, valid } = randomSubject(random, depth + 1);
      const mayMiss = random.chance(0.5);
      return [name, { schema: mayMiss ? optional(schema) : schema, valid, optional: mayMiss }];
    }),
  );
}

const schemasOf = (members: Members) =>
  Object.fromEntries(Object.entries(members).map(([name, { schema }]) => [name, schema]));

const validOf = (random: Random, members: Members): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(members)
      .filter((member) => !member[1].optional || random.chance(0.5))
      .map(([name, member]) => [name, member.valid()]),
  );

/** Of types that JSON tells apart. */
function randomAlternate(random: Random, depth: number): Subject {
  const members = randomMembers(random, depth, NAMES);
  const structure = object("Object", schemasOf(members));
  const [first, second] = random.pick<[Subject, Subject]>([
    [
      { schema: str, valid: () => random.pick(TEXTS) },
      { schema: nullValue, valid: () => null },
    ],
    [
      { schema: structure, valid: () => validOf(random, members) },
      { schema: arrayOf(str), valid: () => [random.pick(TEXTS)] },
    ],
  ]);
  return {
    schema: alternate("Alternate", [first.schema, second.schema]),
    valid: () => (random.chance(0.5) ? first : second).valid(),
  };
}

function randomUnion(random: Random, depth: number): Subject {
  const values = ["leaf", "tree", "root"] as const;
  const base = randomMembers(random, depth, NAMES.slice(0, 4));
  const branches = { leaf: {}, tree: randomMembers(random, depth, NAMES.slice(4)) };
  const schema = union("Union", {
    base: { ...schemasOf(base), tag: enumeration("Tag", values) },
    tag: "tag",
    branches: { leaf: {}, tree: schemasOf(branches.tree) },
  });
  return {
    schema,
    valid() {
      const tag = random.pick(values);
      const own = tag === "tree" ? validOf(random, branches.tree) : {};
      return { ...validOf(random, base), tag, ...own };
    },
  };
}

/** Replaces, removes and adds at random places; sometimes nothing. */
function damage(random: Random, value: unknown, mode: InputMode): unknown {
  if (random.chance(0.15)) return random.pick(ODD_VALUES);
  if (typeof value !== "object" || value === null || value instanceof Double) {
    return mode === "keyval" && random.chance(0.9) ? asText(value) : value;
  }
  if (Array.isArray(value)) return value.map((item) => damage(random, item, mode));
  const entries = Object.entries(value).filter(() => random.chance(0.95));
  if (random.chance(0.05)) entries.push([random.pick(NAMES), random.pick(ODD_VALUES)]);
  return Object.fromEntries(entries.map(([key, item]) => [key, damage(random, item, mode)]));
}

const asText = (value: unknown): string =>
  typeof value === "boolean" ? (value ? "on" : "off") : String(value);

/** The checked value, or undefined when it was refused; other errors come through. */
function accept(schema: v.GenericSchema, value: unknown, mode: InputMode): unknown {
  try {
    return { value: check(schema, value, mode) };
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    expect(error.message).toMatch(/^(Invalid parameter type for|Parameters?) '/);
    return undefined;
  }
}

test("check() takes what is right, as it is", () => {
  const random = new Random(randomSeed());
  for (let round = fuzzCases(ROUNDS); round > 0; round -= 1) {
    const { schema, valid } = randomSubject(random, 0);
    const value = valid();
    expect(accept(schema, value, "json")).toEqual({ value });
  }
});

test("check() refuses with an OutportError, or returns a value of the schema's type", () => {
  const random = new Random(randomSeed());
  let accepted = 0;
  let refused = 0;
  for (let round = fuzzCases(ROUNDS); round > 0; round -= 1) {
    const { schema, valid } = randomSubject(random, 0);
    const mode = random.pick<InputMode>(["json", "keyval"]);
    const result = accept(schema, damage(random, valid(), mode), mode);
    if (result === undefined) {
      refused += 1;
      continue;
    }
    accepted += 1;
    expect(v.safeParse(schema, (result as { value: unknown }).value).issues).toBeUndefined();
  }
  expect(Math.min(accepted, refused)).toBeGreaterThan(fuzzCases(ROUNDS) / 20);
});
