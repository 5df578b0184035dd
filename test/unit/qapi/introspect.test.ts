/** introspect(): the shape of query-qmp-schema's answer. */
import { describe, expect, test } from "bun:test";
import type { GenericSchema } from "valibot";
import { defineCommand, defineEvent } from "../../../src/qapi/define.ts";
import { introspect } from "../../../src/qapi/introspect.ts";
import {
  alternate,
  any,
  arrayOf,
  bool,
  doc,
  enumeration,
  int,
  lazy,
  nothing,
  nullValue,
  number,
  object,
  optional,
  size,
  str,
  uint16,
  union,
} from "../../../src/qapi/scalars.ts";
import type { AnyCommand, QapiEvent } from "../../../src/qapi/types.ts";

function command(name: string, args: GenericSchema, returns: GenericSchema = nothing): AnyCommand {
  const rest = { documentation: "", errors: [], handler: () => ({}) };
  return defineCommand({ name, arguments: args, returns, ...rest });
}

function entriesOf(commands: readonly AnyCommand[], events: readonly QapiEvent[] = []) {
  return Object.fromEntries(introspect(commands, events).map((entry) => [entry.name, entry]));
}

describe("introspect()", () => {
  test("lists commands and events with their features", () => {
    const entries = introspect(
      [{ ...command("go", nothing, str), features: ["unstable"], allowOob: true }],
      [defineEvent({ name: "GONE", documentation: "", data: object("Gone", { id: str }) })],
    );
    expect(entries).toEqual([
      {
        name: "go",
        "ret-type": "str",
        "meta-type": "command",
        "arg-type": "0",
        "allow-oob": true,
        features: ["unstable"],
      },
      { name: "GONE", "arg-type": "1", "meta-type": "event" },
      { name: "str", "json-type": "string", "meta-type": "builtin" },
      { name: "0", members: [], "meta-type": "object" },
      { name: "1", members: [{ name: "id", type: "str" }], "meta-type": "object" },
    ]);
  });

  test("has six built-in types, and int for all integers", () => {
    const all = object("All", { any, bool, int, nullValue, number, size, str, uint16 });
    expect(entriesOf([command("go", all)])["0"]).toEqual({
      name: "0",
      members: [
        { name: "any", type: "any" },
        { name: "bool", type: "bool" },
        { name: "int", type: "int" },
        { name: "nullValue", type: "null" },
        { name: "number", type: "number" },
        { name: "size", type: "int" },
        { name: "str", type: "str" },
        { name: "uint16", type: "int" },
      ],
      "meta-type": "object",
    });
  });

  test("tells features of members, types and values, and which members may miss", () => {
    const mode = enumeration("Mode", ["old", "new"], { old: ["deprecated"] });
    const args = object(
      "Args",
      { mode: doc(mode, "a", ["unstable"]), list: optional(arrayOf(mode), "b", ["deprecated"]) },
      ["fine-point"],
    );
    const entries = entriesOf([command("go", args)]);
    expect(entries["0"]).toEqual({
      name: "0",
      members: [
        { name: "mode", type: "2", features: ["unstable"] },
        { name: "list", default: null, type: "[2]", features: ["deprecated"] },
      ],
      "meta-type": "object",
      features: ["fine-point"],
    });
    expect(entries["[2]"]).toEqual({ name: "[2]", "element-type": "2", "meta-type": "array" });
    expect(entries["2"]).toEqual({
      name: "2",
      members: [{ name: "old", features: ["deprecated"] }, { name: "new" }],
      "meta-type": "enum",
      values: ["old", "new"],
    });
  });

  test("has a variant for every value of a union's tag, equal ones as one type", () => {
    const shape = union("Shape", {
      base: { kind: enumeration("Kind", ["a", "b", "c", "d"]) },
      tag: "kind",
      branches: { a: { n: int }, b: { n: int }, c: { n: int } },
      branchFeatures: { c: ["fine-point"] },
    });
    const entries = entriesOf([command("go", shape)]);
    const variants = entries["0"]?.variants as { case: string; type: string }[];
    const [a, b, c, d] = variants.map(({ type }) => entries[type]);
    expect(variants.map((variant) => variant.case)).toEqual(["a", "b", "c", "d"]);
    expect(a).toBe(b);
    expect(a).toMatchObject({ members: [{ name: "n", type: "int" }] });
    expect(c).toMatchObject({ members: [{ name: "n", type: "int" }], features: ["fine-point"] });
    expect(d).toMatchObject({ members: [] });
    expect(entries["0"]).toMatchObject({ tag: "kind", members: [{ name: "kind" }] });
  });

  test("ends with types that contain themselves", () => {
    const tree: GenericSchema = object("Tree", {
      left: optional(alternate("Ref", [lazy(() => tree), str, nullValue])),
    });
    const entries = entriesOf([command("go", tree)]);
    const alternates = Object.values(entries).filter((each) => each["meta-type"] === "alternate");
    expect(alternates).toMatchObject([
      { members: [{ type: "0" }, { type: "str" }, { type: "null" }] },
    ]);
  });
});
