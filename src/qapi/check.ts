/**
 * Checks a value against a schema, member by member in the schema's order, and says what is wrong
 * in QSD's words. Pure.
 * Spec: QEMU qapi/qobject-input-visitor.c, qapi/qapi-visit-core.c
 */
import type { GenericSchema, InferOutput } from "valibot";
import { invalid, type OutportError } from "../util/error.ts";
import { Double, parseInteger, parseSize, parseSwitch } from "./numbers.ts";
import {
  type AlternateShape,
  type BuiltinShape,
  type EnumShape,
  type Member,
  type ObjectShape,
  type Shape,
  shapeOf,
} from "./shape.ts";
import type { IntegerFacts } from "./types.ts";

/** "json": values have JSON types. "keyval": every scalar is a string, as in key=value options. */
export type InputMode = "json" | "keyval";

/** Where a value stands: the name of a member, or the index in an array, below `parent`. */
interface Place {
  readonly parent: Place | undefined;
  readonly key: string | number;
}
type Dict = Record<string, unknown>;

const TOP: Place = { parent: undefined, key: "" };

/** The checked value: scalars converted, unknown members refused. Throws an OutportError. */
export function check<Schema extends GenericSchema>(
  schema: Schema,
  value: unknown,
  mode: InputMode = "json",
): InferOutput<Schema> {
  return visit(shapeOf(schema), value, TOP, mode) as InferOutput<Schema>;
}

/** Few frames per level: values are up to 1024 deep, and stacks are not large everywhere. */
function visit(given: Shape, value: unknown, at: Place, mode: InputMode): unknown {
  const shape = given.kind === "alternate" ? chosen(given, value, at) : given;
  switch (shape.kind) {
    case "builtin":
      return visitBuiltin(shape, value, at, mode);
    case "enum":
      return visitEnum(shape, value, at, mode);
    case "array":
      return visitArray(shape.item, value, at, mode);
    case "object":
      return visitObject(shape, value, at, mode);
  }
}

function visitBuiltin(shape: BuiltinShape, value: unknown, at: Place, mode: InputMode): unknown {
  switch (shape.type) {
    case "str":
      return scalar(value, at, mode, "string");
    case "bool":
      return visitBool(value, at, mode);
    case "int":
    case "number":
      return visitNumber(shape.integer, value, at, mode);
    case "null":
      if (value !== null) throw wrongType(at, mode, "null");
      return null;
    case "any":
      return value;
  }
}

function visitObject(shape: ObjectShape, value: unknown, at: Place, mode: InputMode): Dict {
  if (!isDict(value)) throw wrongType(at, mode, "object");
  const out: Dict = {};
  let count = visitMembers(shape.members, value, at, mode, out);
  if (shape.variants !== undefined) {
    const { tag, branches } = shape.variants;
    const branch = branches.get(out[tag] as string);
    if (branch !== undefined) count += visitMembers(branch.members, value, at, mode, out);
  }
  const keys = Object.keys(value);
  if (keys.length === count) return out;
  const unexpected = keys.find((key) => !Object.hasOwn(out, key)) ?? "";
  throw invalid(`Parameter '${pathOf({ parent: at, key: unexpected }, mode)}' is unexpected`);
}

/** Returns how many are there. */
function visitMembers(
  members: readonly Member[],
  value: Dict,
  parent: Place,
  mode: InputMode,
  out: Dict,
): number {
  let count = 0;
  for (const { name, schema, optional } of members) {
    if (Object.hasOwn(value, name)) {
      out[name] = visit(shapeOf(schema), value[name], { parent, key: name }, mode);
      count += 1;
    } else if (!optional) {
      throw invalid(`Parameter '${pathOf({ parent, key: name }, mode)}' is missing`);
    }
  }
  return count;
}

function visitArray(
  itemSchema: GenericSchema,
  value: unknown,
  parent: Place,
  mode: InputMode,
): unknown[] {
  if (!Array.isArray(value)) throw wrongType(parent, mode, "array");
  const item = shapeOf(itemSchema);
  return value.map((element, key) => visit(item, element, { parent, key }, mode));
}

/** QSD chooses by the JSON type alone; on the command line every scalar is a string. */
function chosen(
  { name, options }: AlternateShape,
  value: unknown,
  at: Place,
): Exclude<Shape, AlternateShape> {
  const given = jsonType(value);
  for (const option of options) {
    const shape = shapeOf(option);
    if (shape.kind !== "alternate" && acceptedType(shape) === given) return shape;
  }
  throw invalid(`Invalid parameter type for '${nameOf(at)}', expected: ${name}`);
}

function visitEnum({ values }: EnumShape, value: unknown, at: Place, mode: InputMode): unknown {
  const text = scalar(value, at, mode, "string") as string;
  if (values.has(text)) return text;
  throw invalid(`Parameter '${nameOf(at)}' does not accept value '${text}'`);
}

function visitBool(value: unknown, at: Place, mode: InputMode): unknown {
  const given = scalar(value, at, mode, "boolean");
  if (mode === "json") return given;
  const parsed = parseSwitch(given as string);
  if (parsed !== undefined) return parsed;
  throw invalid(`Parameter '${pathOf(at, mode)}' expects 'on' or 'off'`);
}

function visitNumber(
  facts: IntegerFacts | undefined,
  value: unknown,
  at: Place,
  mode: InputMode,
): number {
  if (mode === "json") {
    if (facts !== undefined) return integerOfJson(facts, value, at);
    if (value instanceof Double) return value.value;
    if (typeof value !== "number" && typeof value !== "bigint") throw wrongType(at, mode, "number");
    return Number(value);
  }
  const text = scalar(value, at, mode, "number") as string;
  if (facts !== undefined) return inRange(facts, integerOfText(facts, text, at), at);
  const parsed = text.trim() === "" ? Number.NaN : Number(text);
  if (Number.isFinite(parsed)) return parsed;
  throw invalid(`Parameter '${pathOf(at, mode)}' expects a number`);
}

function integerOfJson(facts: IntegerFacts, given: unknown, at: Place): number {
  if (typeof given === "number" && Number.isSafeInteger(given)) {
    if (given >= Number(facts.min) && given <= Number(facts.max)) return given;
    return inRange(facts, BigInt(given), at);
  }
  if (typeof given === "bigint" && fits64(facts, given)) return inRange(facts, given, at);
  if (facts.min < 0n) throw wrongType(at, "json", "integer");
  throw invalid(`Parameter '${pathOf(at, "json")}' expects uint64`);
}

function integerOfText(facts: IntegerFacts, text: string, at: Place): bigint {
  const value = facts.size ? parseSize(text) : parseInteger(text);
  if (value !== undefined && fits64(facts, value)) return value;
  const expected = facts.size ? "size" : "integer";
  throw invalid(`Parameter '${pathOf(at, "keyval")}' expects ${expected}`);
}

/** In the range of its type. */
function inRange(facts: IntegerFacts, integer: bigint, at: Place): number {
  // As QSD does for compatibility: a negative value means its two's complement.
  const value = facts.min === 0n && integer < 0n ? integer + 2n ** 64n : integer;
  if (value < facts.min || value > facts.max) {
    throw invalid(`Parameter '${nameOf(at)}' expects ${facts.type}`);
  }
  // QSD differs: it keeps 64 bits. No disk is that large, and limits that large limit nothing.
  return Math.max(-Number.MAX_SAFE_INTEGER, Math.min(Number(value), Number.MAX_SAFE_INTEGER));
}

/** In 64 bits, signed or not. */
function fits64(facts: IntegerFacts, value: bigint): boolean {
  return value >= -(2n ** 63n) && value < (facts.min < 0n ? 2n ** 63n : 2n ** 64n);
}

/** On the command line the string, in JSON a value of the wanted type. */
function scalar(value: unknown, at: Place, mode: InputMode, wanted: string): unknown {
  if (mode === "json") {
    if (typeof value !== wanted) throw wrongType(at, mode, wanted);
    return value;
  }
  if (typeof value === "string") return value;
  throw invalid(`Parameters '${pathOf(at, mode)}.*' are unexpected`);
}

function wrongType(at: Place, mode: InputMode, expected: string): OutportError {
  return invalid(`Invalid parameter type for '${pathOf(at, mode)}', expected: ${expected}`);
}

/** What QSD says for most errors. */
function pathOf({ parent, key }: Place, mode: InputMode): string {
  if (parent === undefined) return "";
  const path = pathOf(parent, mode);
  if (typeof key === "number") return mode === "keyval" ? `${path}.${key}` : `${path}[${key}]`;
  return path === "" ? key : `${path}.${key}`;
}

/** What it says for some: the last name alone. */
function nameOf({ key }: Place): string {
  return typeof key === "number" ? "null" : key;
}

function isDict(value: unknown): value is Dict {
  return jsonType(value) === "object";
}

function jsonType(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  return typeof value === "bigint" || value instanceof Double ? "number" : typeof value;
}

const ACCEPTED_TYPES = {
  any: "any",
  bool: "boolean",
  int: "number",
  null: "null",
  number: "number",
  str: "string",
} as const;

/** The JSON type that a shape takes. */
function acceptedType(shape: Shape): string {
  if (shape.kind === "builtin") return ACCEPTED_TYPES[shape.type];
  return shape.kind === "enum" ? "string" : shape.kind;
}
