/** check(): order, words and conversions of argument checking. Words are those of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import * as v from "valibot";
import { check, type InputMode } from "../../../src/qapi/check.ts";
import { Double } from "../../../src/qapi/numbers.ts";
import {
  alternate,
  any,
  arrayOf,
  bool,
  enumeration,
  int,
  lazy,
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
} from "../../../src/qapi/scalars.ts";

const mode = enumeration("Mode", ["safe", "hard"]);
const node = object("Node", { name: str, depth: optional(int) });
const reference = alternate("Ref", [lazy(() => shape), str, nullValue]);
const shape: v.GenericSchema = union("Shape", {
  base: { kind: enumeration("Kind", ["leaf", "tree"]), id: str, writable: optional(bool) },
  tag: "kind",
  branches: {
    leaf: { bytes: optional(size) },
    tree: { child: reference, count: optional(uint16) },
  },
});

function problem(schema: v.GenericSchema, value: unknown, input: InputMode = "json"): string {
  try {
    check(schema, value, input);
  } catch (error) {
    return (error as Error).message;
  }
  return "no problem";
}

describe("check() of JSON values", () => {
  test("returns what is right as it is", () => {
    const value = { kind: "tree", id: "a", child: { kind: "leaf", id: "b", bytes: 5 }, count: 7 };
    expect(check(shape, value)).toEqual(value);
  });

  test("names what is missing by its path", () => {
    expect(problem(shape, { kind: "leaf" })).toBe("Parameter 'id' is missing");
    expect(problem(shape, { kind: "tree", id: "a", child: { kind: "leaf" } })).toBe(
      "Parameter 'child.id' is missing",
    );
    expect(problem(object("A", { list: arrayOf(node) }), { list: [{ name: "a" }, {}] })).toBe(
      "Parameter 'list[1].name' is missing",
    );
  });

  test("goes by the order of the schema, then looks for what is too much", () => {
    const given = { extra: 1, writable: "on", kind: "leaf" };
    expect(problem(shape, given)).toBe("Parameter 'id' is missing");
    expect(problem(shape, { ...given, id: "a" })).toBe(
      "Invalid parameter type for 'writable', expected: boolean",
    );
    expect(problem(shape, { ...given, id: "a", writable: true })).toBe(
      "Parameter 'extra' is unexpected",
    );
  });

  test("takes members of another branch for unexpected", () => {
    expect(problem(shape, { kind: "leaf", id: "a", count: 1 })).toBe(
      "Parameter 'count' is unexpected",
    );
  });

  test("names wrong types by the path", () => {
    const cases: [v.GenericSchema, unknown, string][] = [
      [str, 1, "string"],
      [bool, "true", "boolean"],
      [int, "1", "integer"],
      [int, 1.5, "integer"],
      [int, 2n ** 63n, "integer"],
      [number, "1", "number"],
      [nullValue, 0, "null"],
      [arrayOf(str), "a", "array"],
      [node, [], "object"],
      [mode, 1, "string"],
    ];
    for (const [schema, value, expected] of cases) {
      expect(problem(object("A", { b: object("B", { c: schema }) }), { b: { c: value } })).toBe(
        `Invalid parameter type for 'b.c', expected: ${expected}`,
      );
    }
  });

  test("names enumerations and ranges by the member alone", () => {
    const nested = object("A", { b: object("B", { c: mode }) });
    expect(problem(nested, { b: { c: "x" } })).toBe("Parameter 'c' does not accept value 'x'");
    const list = object("A", { b: arrayOf(mode) });
    expect(problem(list, { b: ["x"] })).toBe("Parameter 'null' does not accept value 'x'");
    const count = object("A", { b: object("B", { c: uint16 }) });
    expect(problem(count, { b: { c: 65536 } })).toBe("Parameter 'c' expects uint16_t");
  });

  test("holds integers to their range, negative ones as two's complement", () => {
    const of = (schema: v.GenericSchema, value: unknown) =>
      problem(object("A", { n: schema }), { n: value });
    expect(of(uint16, 65535)).toBe("no problem");
    expect(of(uint16, -1)).toBe("Parameter 'n' expects uint16_t");
    expect(of(uint32, 2 ** 32)).toBe("Parameter 'n' expects uint32_t");
    expect(of(uint32, "1")).toBe("Parameter 'n' expects uint64");
    expect(of(int, -5)).toBe("no problem");
  });

  test("takes integers beyond 2^53 for the last safe one", () => {
    expect(check(uint64, 2n ** 64n - 1n)).toBe(Number.MAX_SAFE_INTEGER);
    expect(check(uint64, -1)).toBe(Number.MAX_SAFE_INTEGER);
    expect(check(uint64, 2n ** 53n)).toBe(Number.MAX_SAFE_INTEGER);
    expect(check(int, 2n ** 63n - 1n)).toBe(Number.MAX_SAFE_INTEGER);
    expect(check(int, -(2n ** 63n))).toBe(-Number.MAX_SAFE_INTEGER);
    expect(check(size, "7E", "keyval")).toBe(Number.MAX_SAFE_INTEGER);
  });

  test("takes no number with a fraction or an exponent for an integer", () => {
    const of = (schema: v.GenericSchema, value: unknown) =>
      problem(object("A", { n: schema }), { n: value });
    expect(of(int, new Double(1))).toBe("Invalid parameter type for 'n', expected: integer");
    expect(of(uint16, new Double(1))).toBe("Parameter 'n' expects uint64");
    expect(of(uint16, 1.5)).toBe("Parameter 'n' expects uint64");
    expect(check(number, new Double(1))).toBe(1);
    expect(of(str, new Double(1))).toBe("Invalid parameter type for 'n', expected: string");
    expect(of(reference, new Double(1))).toBe("Invalid parameter type for 'n', expected: Ref");
  });

  test("takes members of the branch that the tag names, none for a value without branch", () => {
    const sparse = union("Sparse", {
      base: { kind: enumeration("Kind", ["full", "bare"]) },
      tag: "kind",
      branches: { full: { n: int } },
    });
    expect(check(sparse, { kind: "bare" })).toEqual({ kind: "bare" } as never);
    expect(problem(sparse, { kind: "bare", n: 1 })).toBe("Parameter 'n' is unexpected");
    expect(problem(sparse, { kind: "full" })).toBe("Parameter 'n' is missing");
  });

  test("chooses an alternate by the JSON type", () => {
    const holder = object("A", { ref: reference });
    expect(check(holder, { ref: "n0" })).toEqual({ ref: "n0" });
    expect(check(holder, { ref: null })).toEqual({ ref: null });
    expect(problem(holder, { ref: 7 })).toBe("Invalid parameter type for 'ref', expected: Ref");
    expect(problem(holder, { ref: { kind: "leaf" } })).toBe("Parameter 'ref.id' is missing");
  });

  test("is not led astray by members of Object.prototype", () => {
    const hostile = JSON.parse('{"name": "a", "__proto__": {"depth": 1}}');
    expect(problem(node, hostile)).toBe("Parameter '__proto__' is unexpected");
    expect(problem(object("A", { toString: str }), {})).toBe("Parameter 'toString' is missing");
    expect(problem(shape, { kind: "constructor", id: "a" })).toBe(
      "Parameter 'kind' does not accept value 'constructor'",
    );
  });

  test("goes as deep as the parser does", () => {
    let value: unknown = 7;
    for (let depth = 0; depth < 1023; depth += 1) value = { kind: "tree", id: "a", child: value };
    expect(problem(shape, value)).toBe("Invalid parameter type for 'child', expected: Ref");
  });

  test("passes any value through a member of any type", () => {
    const value = { x: [1n, null] };
    expect(check(object("A", { a: any }), { a: value })).toEqual({ a: value });
  });
});

describe("check() of key=value options", () => {
  const options = object("O", {
    on: optional(bool),
    n: optional(int),
    u: optional(uint32),
    bytes: optional(size),
    list: optional(arrayOf(node)),
    ref: optional(reference),
    name: optional(str),
  });

  test("converts scalars", () => {
    const given = { on: "yes", n: "-0x10", u: "017", bytes: "1.5k", list: [{ name: "1" }] };
    expect(check(options, given, "keyval")).toEqual({
      on: true,
      n: -16,
      u: 15,
      bytes: 1536,
      list: [{ name: "1" }],
    });
  });

  test("says what it expects", () => {
    const of = (given: object) => problem(options, given, "keyval");
    expect(of({ on: "1" })).toBe("Parameter 'on' expects 'on' or 'off'");
    expect(of({ n: "1k" })).toBe("Parameter 'n' expects integer");
    expect(of({ n: "" })).toBe("Parameter 'n' expects integer");
    expect(of({ u: "-1" })).toBe("Parameter 'u' expects uint32_t");
    expect(of({ bytes: "1kb" })).toBe("Parameter 'bytes' expects size");
    expect(of({ name: { a: "1" } })).toBe("Parameters 'name.*' are unexpected");
    expect(of({ list: [{}] })).toBe("Parameter 'list.0.name' is missing");
    expect(of({ list: "x" })).toBe("Invalid parameter type for 'list', expected: array");
  });

  test("takes a string for an alternate's string", () => {
    expect(check(options, { ref: "n0" }, "keyval")).toEqual({ ref: "n0" });
  });
});

describe("schemas", () => {
  test("are valibot schemas that agree with check()", () => {
    const values: unknown[] = [
      { kind: "leaf", id: "a" },
      { kind: "leaf", id: "a", bytes: 1 },
      { kind: "leaf", id: "a", bytes: "1" },
      { kind: "leaf", id: 1 },
      { kind: "leaf", id: "a", count: 1 },
      { kind: "tree", id: "a" },
      { kind: "tree", id: "a", child: null, count: 65536 },
      { kind: "tree", id: "a", child: { kind: "leaf", id: "b" } },
      { kind: "x", id: "a" },
      null,
      [],
    ];
    for (const value of values) {
      expect([value, v.safeParse(shape, value).success]).toEqual([
        value,
        problem(shape, value) === "no problem",
      ]);
    }
  });
});
