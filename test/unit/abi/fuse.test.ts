import { describe, expect, test } from "bun:test";
import * as fuse from "../../../src/abi/fuse.ts";
import * as file from "../../../src/abi/fuse-file.ts";
import * as passthrough from "../../../src/abi/fuse-passthrough.ts";
import header from "./fuse.json" with { type: "json" };

describe("abi", () => {
  test("fuse.ts, fuse-file.ts and fuse-passthrough.ts have the values of linux/fuse.h", () => {
    const ours: Readonly<Record<string, number>> = { ...fuse, ...file, ...passthrough };
    expect(ours).toEqual(header);
    expect(Object.keys(header).length).toBeGreaterThan(120);
  });
});
