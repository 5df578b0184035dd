import { describe, expect, test } from "bun:test";
import { NONE, RequestTable } from "../../../src/io/requests.ts";

const owner = { onRequestDone: () => {} };

describe("RequestTable", () => {
  test("gives out each slot once", () => {
    const table = new RequestTable(8);
    const slots = Array.from({ length: 8 }, () => table.allocate(owner));
    expect(new Set(slots).size).toBe(8);
    expect([table.allocate(owner), table.inUse]).toEqual([NONE, 8]);
    table.free(slots[3]!);
    expect(table.allocate(owner)).toBe(slots[3]!);
    for (const slot of slots) table.free(slot);
    expect(table.inUse).toBe(0);
    expect(() => table.free(slots[0]!)).toThrow("a slot is freed once");
  });

  test("lets nobody take more than is left to others", () => {
    const table = new RequestTable(8);
    let count = 0;
    for (; table.mayTake(count); count++) table.allocate(owner);
    expect([count, table.inUse]).toEqual([4, 4]);
    let others = 0;
    for (; table.mayTake(others); others++) table.allocate(owner);
    expect([others, table.mayTake(0), table.inUse]).toEqual([2, true, 6]);
  });

  test("calls who waits once, in order, while there are slots", () => {
    const table = new RequestTable(1);
    const slot = table.allocate(owner);
    const log: string[] = [];
    table.onFree(() => void log.push("takes none"));
    table.onFree(() => {
      log.push("takes one");
      table.allocate(owner);
    });
    table.onFree(() => void log.push("waits"));
    table.free(slot);
    expect(log).toEqual(["takes none", "takes one"]);
    table.free(slot);
    expect(log).toEqual(["takes none", "takes one", "waits"]);
  });
});
