import { describe, expect, test } from "bun:test";
import {
  type NbdExportInfo,
  NbdExports,
  transmissionFlags,
} from "../../../../src/exports/nbd/export-table.ts";

const INFO: NbdExportInfo = {
  id: "e0",
  name: "disk",
  description: undefined,
  bytes: 4096,
  readOnly: false,
  multiConn: true,
  blockSize: { min: 1, preferred: 4096, max: 2 ** 25 },
  contexts: [],
};

describe("transmissionFlags()", () => {
  test("has the values that QSD sends", () => {
    const readOnly = { ...INFO, readOnly: true };
    const flags = [
      transmissionFlags(INFO, "simple", false),
      transmissionFlags(INFO, "structured", true),
      transmissionFlags(INFO, "extended", true),
      transmissionFlags(INFO, "extended", false),
      transmissionFlags(readOnly, "extended", true),
      transmissionFlags({ ...readOnly, multiConn: false }, "simple", false),
    ];
    expect(flags).toEqual([0x0d6d, 0x0ded, 0x1ded, 0x0ded, 0x158f, 0x040f]);
  });
});

describe("NbdExports", () => {
  test("lists the oldest first and finds by name", () => {
    const exports = new NbdExports();
    for (const name of ["b", "a", "", "c"]) exports.add({ ...INFO, name });
    exports.remove("a");
    exports.add({ ...INFO, name: "a" });
    expect(exports.list().map(({ name }) => name)).toEqual(["b", "", "c", "a"]);
    expect(exports.find("")?.name).toBe("");
    expect(exports.find("d")).toBe(undefined);
  });

  test("gives lists that later changes don't reach", () => {
    const exports = new NbdExports();
    exports.add(INFO);
    const before = exports.list();
    exports.remove("disk");
    expect(before).toEqual([INFO]);
    expect(exports.list()).toEqual([]);
  });
});
