/** Arguments with one thing wrong in each, for every command that outport has. */
import type { GenericSchema } from "valibot";
import { type ObjectShape, type Shape, shapeOf } from "../../src/qapi/shape.ts";
import type { AnyCommand } from "../../src/qapi/types.ts";

/** Name of the command, and its arguments as JSON text. */
export type ArgumentCase = readonly [command: string, args: string];

/** How deep the faults go. */
const DEPTH_MAX = 4;
/** As JSON text: whether a number is written 1 or 1.0 matters. */
const BAD_NUMBERS = ["null", '"1"', "1.0", "1.5", "-1", "65536", "4294967296", "2147483648"];
const BAD_HUGE = ["9223372036854775808", "18446744073709551615", "18446744073709551616"];

/** Text of values that are wrong, or at the edge of what is right. */
function badValues(shape: Shape): readonly string[] {
  switch (shape.kind) {
    case "builtin":
      if (shape.type === "int") return [...BAD_NUMBERS, ...BAD_HUGE];
      return shape.type === "bool" ? ["null", '"on"'] : ["null", "7", "{}"];
    case "enum":
      return ["7", '"zzz"'];
    case "array":
      return ['"zzz"', "{}", "[null]"];
    case "object":
      return ["null", "[]", '"zzz"'];
    case "alternate":
      return ["null", "7", "1.0", "true", "[]", "[null]"];
  }
}

export function argumentCases(commands: readonly AnyCommand[]): readonly ArgumentCase[] {
  const found = new Map<string, ArgumentCase>();
  for (const { name, arguments: schema } of commands) {
    const add = (args: string) => found.set(`${name} ${args}`, [name, args]);
    const shape = shapeOf(schema);
    if (shape.kind === "object") breakObject(shape, (value) => value, add, 0);
  }
  return [...found.values()];
}

/** Puts the text of a value where it belongs in the whole arguments. */
type Wrap = (value: string) => string;
type Add = (args: string) => void;

function breakValue(schema: GenericSchema, wrap: Wrap, add: Add, depth: number): void {
  const shape = shapeOf(schema);
  for (const value of badValues(shape)) add(wrap(value));
  if (depth >= DEPTH_MAX) return;
  if (shape.kind === "array") breakValue(shape.item, (value) => wrap(`[${value}]`), add, depth + 1);
  if (shape.kind === "object") breakObject(shape, wrap, add, depth);
  if (shape.kind === "alternate") {
    for (const option of shape.options.map(shapeOf)) {
      // A node inside a node is broken as a node on its own is.
      if (option.kind === "object" && option.variants === undefined) {
        breakObject(option, wrap, add, depth);
      }
    }
  }
}

function breakObject(shape: ObjectShape, wrap: Wrap, add: Add, depth: number): void {
  const { members, variants } = shape;
  const branches = variants === undefined ? [undefined] : [...variants.branches.keys()];
  for (const [index, tagValue] of branches.entries()) {
    const right = rightMembers(shape, tagValue);
    add(wrap(textOf({ ...right, zzz: "1" })));
    for (const name of Object.keys(right)) {
      const { [name]: _, ...others } = right;
      add(wrap(textOf(others)));
    }
    const own = variants?.branches.get(tagValue ?? "")?.members ?? [];
    for (const { name, schema } of index === 0 ? [...members, ...own] : own) {
      breakValue(schema, (value) => wrap(textOf({ ...right, [name]: value })), add, depth + 1);
    }
  }
}

/** No more than there must be: text of values by name. */
function rightMembers(shape: ObjectShape, tagValue?: string): Record<string, string> {
  const { members, variants } = shape;
  const tag = tagValue ?? [...(variants?.branches.keys() ?? [])][0] ?? "";
  const all = [...members, ...(variants?.branches.get(tag)?.members ?? [])];
  return Object.fromEntries(
    all
      .filter(({ optional }) => !optional)
      .map(({ name, schema }) => [
        name,
        name === variants?.tag ? JSON.stringify(tag) : rightValue(shapeOf(schema)),
      ]),
  );
}

function rightValue(shape: Shape): string {
  switch (shape.kind) {
    case "builtin":
      return { any: "1", bool: "true", int: "1", null: "null", number: "1", str: '"q"' }[
        shape.type
      ];
    case "enum":
      return JSON.stringify([...shape.values][0]);
    case "array":
      return "[]";
    case "object":
      return textOf(rightMembers(shape));
    case "alternate": {
      const options = shape.options.map(shapeOf);
      return rightValue(options.find(({ kind }) => kind === "builtin") ?? (options[0] as Shape));
    }
  }
}

const textOf = (members: Readonly<Record<string, string>>): string =>
  `{${Object.entries(members)
    .map(([name, value]) => `${JSON.stringify(name)}:${value}`)
    .join(",")}}`;
