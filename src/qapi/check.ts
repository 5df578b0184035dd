/**
 * Checks a value against a schema, member by member in the schema's order, and says what is wrong
 * in QSD's words. Pure.
 * Spec: QEMU qapi/qobject-input-visitor.c, qapi/qapi-visit-core.c
 */
import type {
  ArraySchema,
  GenericSchema,
  InferOutput,
  LazySchema,
  OptionalSchema,
  PicklistSchema,
  StrictObjectSchema,
  UnionSchema,
} from "valibot";
import { OutportError } from "../util/error.ts";
import { parseInteger, parseSize, parseSwitch } from "./numbers.ts";
import { factsOf } from "./scalars.ts";
import type { IntegerFacts, ObjectMembers, UnionFacts } from "./types.ts";

/** "json": values have JSON types. "keyval": every scalar is a string, as in key=value options. */
export type InputMode = "json" | "keyval";

/** Where a value stands: QSD names some errors by the path and others by the member alone. */
interface Place {
  readonly path: string;
  readonly name: string;
}
type Dict = Record<string, unknown>;

/** What has the tag "variant" in valibot is a union() of scalars.ts, with facts. */
type AnySchema =
  | ArraySchema<GenericSchema, undefined>
  | LazySchema<GenericSchema>
  | OptionalSchema<GenericSchema, undefined>
  | PicklistSchema<readonly string[], undefined>
  | StrictObjectSchema<ObjectMembers, undefined>
  | UnionSchema<GenericSchema[], undefined>
  | { readonly type: "boolean" | "null" | "number" | "string" | "unknown" | "variant" };

/** The checked value: scalars converted, unknown members refused. Throws an OutportError. */
export function check<Schema extends GenericSchema>(
  schema: Schema,
  value: unknown,
  mode: InputMode = "json",
): InferOutput<Schema> {
  return visit(schema, value, { path: "", name: "" }, mode) as InferOutput<Schema>;
}

function visit(schema: GenericSchema, value: unknown, at: Place, mode: InputMode): unknown {
  const known = schema as unknown as AnySchema;
  switch (known.type) {
    case "optional":
      return visit(known.wrapped, value, at, mode);
    case "lazy":
      return visit(known.getter(undefined), value, at, mode);
    case "string":
      return scalar(value, at, mode, "string");
    case "picklist":
      return visitEnum(known.options, value, at, mode);
    case "boolean":
      return visitBool(value, at, mode);
    case "number":
      return visitNumber(factsOf(schema).integer, value, at, mode);
    case "null":
      if (value !== null) throw wrongType(at, "null");
      return null;
    case "array":
      return visitArray(known.item, value, at, mode);
    case "strict_object":
      return visitObject(known.entries, undefined, value, at, mode);
    case "variant":
      return visitUnion(factsOf(schema).union as UnionFacts, value, at, mode);
    case "union":
      return visitAlternate(known.options, factsOf(schema).name ?? "", value, at, mode);
    case "unknown":
      return value;
  }
}

function visitUnion(facts: UnionFacts, value: unknown, at: Place, mode: InputMode): unknown {
  return visitObject(facts.base, facts, value, at, mode);
}

/** `union` is there when `members` are the base of one. */
function visitObject(
  members: ObjectMembers,
  union: UnionFacts | undefined,
  value: unknown,
  at: Place,
  mode: InputMode,
): Dict {
  if (!isDict(value)) throw wrongType(at, "object");
  const out: Dict = {};
  visitMembers(members, value, at, mode, out);
  const branch = union?.branches[out[union.tag] as string];
  if (branch !== undefined) visitMembers(branch, value, at, mode, out);
  for (const key of Object.keys(value)) {
    if (!Object.hasOwn(out, key)) {
      throw new OutportError("invalid", `Parameter '${join(at, key).path}' is unexpected`);
    }
  }
  return out;
}

function visitMembers(
  members: ObjectMembers,
  value: Dict,
  at: Place,
  mode: InputMode,
  out: Dict,
): void {
  for (const [name, schema] of Object.entries(members)) {
    const place = join(at, name);
    if (Object.hasOwn(value, name)) out[name] = visit(schema, value[name], place, mode);
    else if (schema.type !== "optional") {
      throw new OutportError("invalid", `Parameter '${place.path}' is missing`);
    }
  }
}

function visitArray(item: GenericSchema, value: unknown, at: Place, mode: InputMode): unknown[] {
  if (!Array.isArray(value)) throw wrongType(at, "array");
  return value.map((element, index) => {
    const suffix = mode === "keyval" ? `.${index}` : `[${index}]`;
    return visit(item, element, { path: at.path + suffix, name: "null" }, mode);
  });
}

/** QSD chooses by the JSON type alone; on the command line every scalar is a string. */
function visitAlternate(
  options: readonly GenericSchema[],
  name: string,
  value: unknown,
  at: Place,
  mode: InputMode,
): unknown {
  const given = jsonType(value);
  const chosen = options.find((option) => acceptedType(option) === given);
  if (chosen === undefined) {
    const message = `Invalid parameter type for '${at.name}', expected: ${name}`;
    throw new OutportError("invalid", message);
  }
  return visit(chosen, value, at, mode);
}

function visitEnum(values: readonly string[], value: unknown, at: Place, mode: InputMode): unknown {
  const text = scalar(value, at, mode, "string") as string;
  if (!values.includes(text)) {
    throw new OutportError("invalid", `Parameter '${at.name}' does not accept value '${text}'`);
  }
  return text;
}

function visitBool(value: unknown, at: Place, mode: InputMode): unknown {
  const given = scalar(value, at, mode, "boolean");
  if (mode === "json") return given;
  const parsed = parseSwitch(given as string);
  if (parsed !== undefined) return parsed;
  throw new OutportError("invalid", `Parameter '${at.path}' expects 'on' or 'off'`);
}

function visitNumber(
  facts: IntegerFacts | undefined,
  value: unknown,
  at: Place,
  mode: InputMode,
): number {
  if (mode === "json") {
    if (facts !== undefined) return integerOf(facts, integerOfJson(facts, value, at), at);
    if (typeof value !== "number" && typeof value !== "bigint") throw wrongType(at, "number");
    return Number(value);
  }
  const text = scalar(value, at, mode, "number") as string;
  if (facts !== undefined) return integerOf(facts, integerOfText(facts, text, at), at);
  const parsed = text.trim() === "" ? Number.NaN : Number(text);
  if (Number.isFinite(parsed)) return parsed;
  throw new OutportError("invalid", `Parameter '${at.path}' expects a number`);
}

/** In the range of its type. */
function integerOf(facts: IntegerFacts, integer: bigint, at: Place): number {
  // As QSD does for compatibility: a negative value means its two's complement.
  const value = facts.min === 0n && integer < 0n ? integer + 2n ** 64n : integer;
  if (value < facts.min || value > facts.max) {
    throw new OutportError("invalid", `Parameter '${at.name}' expects ${facts.type}`);
  }
  const number = Number(value);
  if (Number.isSafeInteger(number)) return number;
  // QSD differs: it takes all of 64 bits. No disk is that large.
  throw new OutportError("limit", `Parameter '${at.path}' expects a value below 2^53`);
}

function integerOfText(facts: IntegerFacts, text: string, at: Place): bigint {
  const value = facts.size ? parseSize(text) : parseInteger(text);
  if (value !== undefined && fits64(facts, value)) return value;
  const expected = facts.size ? "a size value" : "integer";
  throw new OutportError("invalid", `Parameter '${at.path}' expects ${expected}`);
}

function integerOfJson(facts: IntegerFacts, given: unknown, at: Place): bigint {
  if (Number.isSafeInteger(given)) return BigInt(given as number);
  if (typeof given === "bigint" && fits64(facts, given)) return given;
  if (facts.min < 0n) throw wrongType(at, "integer");
  throw new OutportError("invalid", `Parameter '${at.path}' expects uint64`);
}

/** In 64 bits, signed or not. */
function fits64(facts: IntegerFacts, value: bigint): boolean {
  return value >= -(2n ** 63n) && value < (facts.min < 0n ? 2n ** 63n : 2n ** 64n);
}

/** On the command line the string, in JSON a value of the wanted type. */
function scalar(value: unknown, at: Place, mode: InputMode, wanted: string): unknown {
  if (mode === "json") {
    if (typeof value !== wanted) throw wrongType(at, wanted);
    return value;
  }
  if (typeof value !== "string") {
    throw new OutportError("invalid", `Parameters '${at.path}.*' are unexpected`);
  }
  return value;
}

function wrongType(at: Place, expected: string): OutportError {
  const message = `Invalid parameter type for '${at.path}', expected: ${expected}`;
  return new OutportError("invalid", message);
}

function join(at: Place, name: string): Place {
  return { path: at.path === "" ? name : `${at.path}.${name}`, name };
}

function isDict(value: unknown): value is Dict {
  return jsonType(value) === "object";
}

function jsonType(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  return typeof value === "bigint" ? "number" : typeof value;
}

/** The JSON type that a schema takes. */
function acceptedType(schema: GenericSchema): string {
  const known = schema as unknown as AnySchema;
  if (known.type === "lazy") return acceptedType(known.getter(undefined));
  if (known.type === "picklist") return "string";
  return known.type === "strict_object" || known.type === "variant" ? "object" : known.type;
}
