import { describe, expect, test } from "bun:test";
import { jsonFilename, nodeBytes } from "../../../src/block/description.ts";

describe("nodeBytes()", () => {
  test("rounds up to whole sectors", () => {
    expect([0, 1, 511, 512, 513, 1000].map(nodeBytes)).toEqual([0, 512, 512, 512, 1024, 1024]);
    expect(nodeBytes(2 ** 50 + 1)).toBe(2 ** 50 + 512);
  });
});

describe("jsonFilename()", () => {
  test("leaves out what was not given", () => {
    const options = { offset: undefined, size: 512 };
    expect(jsonFilename("raw", options)).toBe('json:{"driver":"raw","size":512}');
  });
});
