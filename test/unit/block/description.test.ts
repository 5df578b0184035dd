import { describe, expect, test } from "bun:test";
import { nodeBytes } from "../../../src/block/description.ts";

describe("nodeBytes()", () => {
  test("rounds up to whole sectors", () => {
    expect([0, 1, 511, 512, 513, 1000].map(nodeBytes)).toEqual([0, 512, 512, 512, 1024, 1024]);
    expect(nodeBytes(2 ** 50 + 1)).toBe(2 ** 50 + 512);
  });
});
