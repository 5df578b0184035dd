/** compareSchemas() sees every kind of difference. */
import { describe, expect, test } from "bun:test";
import { compareSchemas, type SchemaEntry } from "../../support/qapi-compare.ts";

const REFERENCE: readonly SchemaEntry[] = [
  { name: "go", "meta-type": "command", "arg-type": "7", "ret-type": "[str]" },
  { name: "str", "meta-type": "builtin" },
  { name: "[str]", "meta-type": "array", "element-type": "str" },
  {
    name: "7",
    "meta-type": "object",
    members: [
      { name: "kind", type: "8" },
      { name: "next", type: "9", default: null, features: ["unstable"] },
    ],
    tag: "kind",
    variants: [
      { case: "a", type: "10" },
      { case: "b", type: "11" },
    ],
  },
  {
    name: "8",
    "meta-type": "enum",
    members: [{ name: "a" }, { name: "b", features: ["deprecated"] }],
    values: ["a", "b"],
  },
  { name: "9", "meta-type": "alternate", members: [{ type: "7" }, { type: "str" }] },
  { name: "10", "meta-type": "object", members: [{ name: "x", type: "str" }] },
  { name: "11", "meta-type": "object", members: [] },
];

/** The reference with one entry changed. */
function compareChanged(name: string, change: Partial<SchemaEntry>, plugIn = false): string[] {
  const ours = REFERENCE.map((entry) => (entry.name === name ? { ...entry, ...change } : entry));
  return compareSchemas(ours, REFERENCE, () => plugIn);
}

describe("compareSchemas()", () => {
  test("finds nothing in what is equal but for the names of types", () => {
    const renamed = JSON.parse(
      JSON.stringify(REFERENCE).replaceAll(/"(7|8|9|10|11)"/g, '"100$1"'),
    ) as SchemaEntry[];
    expect(compareSchemas(renamed, REFERENCE, () => false)).toEqual([]);
  });

  test("asks only for what is listed", () => {
    expect(compareSchemas([], REFERENCE, () => false)).toEqual([]);
    const own = { ...REFERENCE[0], name: "mine" } as SchemaEntry;
    expect(compareSchemas([...REFERENCE, own], REFERENCE, () => false)).toEqual([
      "mine: is not in the reference",
    ]);
  });

  test("finds differences of commands", () => {
    expect(compareChanged("go", { features: ["unstable"] })).toEqual([
      'go: features is ["unstable"], not nothing',
    ]);
    expect(compareChanged("go", { "ret-type": "str" })).toEqual([
      'go returns: meta-type is "builtin", not "array"',
    ]);
  });

  test("finds differences of members, also where types contain themselves", () => {
    const [kind, next] = REFERENCE[3]?.members ?? [];
    expect(compareChanged("7", { members: [{ ...kind }] })).toEqual([
      'go: members is ["kind"], not ["kind","next"]',
    ]);
    expect(compareChanged("7", { members: [{ ...kind }, { name: "next", type: "9" }] })).toEqual([
      "go.next: default is nothing, not null",
      'go.next: features is nothing, not ["unstable"]',
    ]);
    expect(compareChanged("7", { members: [{ ...next }, { ...kind }] })).toEqual([
      'go: members is ["next","kind"], not ["kind","next"]',
    ]);
    expect(compareChanged("10", { members: [] })).toEqual(['go<a>: members is [], not ["x"]']);
    expect(compareChanged("9", { members: [{ type: "7" }] })).toEqual([
      "go.next: number of alternatives is 1, not 2",
    ]);
  });

  test("finds differences of enumerations, and takes fewer values for plug-ins", () => {
    const fewer = { members: [{ name: "a" }], values: ["a"] };
    expect(compareChanged("8", fewer)).toEqual([
      'go.kind: values is ["a"], not ["a","b"]',
      'go: variants is ["a","b"], not ["a"]',
    ]);
    expect(compareChanged("8", fewer, true)).toEqual(['go: variants is ["a","b"], not ["a"]']);
    expect(compareChanged("8", { members: [{ name: "a" }, { name: "b" }] }, true)).toEqual([
      'go.kind=b: features is nothing, not ["deprecated"]',
    ]);
  });
});
