/** blockdevOptions(): where the children of a driver stand in its branch, and what they take. */
import { describe, expect, test } from "bun:test";
import type { BlockDriver } from "../../../src/block/driver.ts";
import { check } from "../../../src/qapi/check.ts";
import { int, optional, str } from "../../../src/qapi/scalars.ts";
import { shapeOf } from "../../../src/qapi/shape.ts";
import { blockdevOptions } from "../../../src/qmp/commands/blockdev-options.ts";

const base = { open: () => Promise.reject(new Error("nothing is opened here")) };
const leaf: BlockDriver = { ...base, name: "leaf", members: { size: optional(int) }, children: [] };
const tree: BlockDriver = {
  ...base,
  name: "tree",
  members: { group: str, depth: optional(int) },
  children: [
    { role: "second", optional: false, after: "first" },
    { role: "first", optional: false },
    { role: "backing", optional: true, nullable: true, after: "group" },
  ],
  features: ["fine-point"],
};
const schema = blockdevOptions([leaf, tree]);

describe("blockdevOptions()", () => {
  test("puts children first, or after what they name", () => {
    const shape = shapeOf(schema);
    const branch = shape.kind === "object" ? shape.variants?.branches.get("tree") : undefined;
    expect(branch?.members.map(({ name }) => name)).toEqual([
      "first",
      "second",
      "group",
      "backing",
      "depth",
    ]);
    expect(branch?.features).toEqual(["fine-point"]);
  });

  test("takes names and definitions for children, and null for some", () => {
    const children = { first: "n0", second: { driver: "leaf", size: 1 } };
    const given = { driver: "tree", group: "g", ...children };
    expect(check(schema, given)).toEqual(given);
    expect(check(schema, { ...given, backing: null })).toEqual({ ...given, backing: null });
    expect(() => check(schema, { ...given, first: null })).toThrow(
      "Invalid parameter type for 'first', expected: BlockdevRef",
    );
    expect(() => check(schema, { ...given, backing: 7 })).toThrow(
      "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
    );
    expect(() => check(schema, { driver: "tree", group: "g" })).toThrow(
      "Parameter 'first' is missing",
    );
  });
});
