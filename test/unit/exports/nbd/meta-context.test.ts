import { describe, expect, test } from "bun:test";
import {
  ALLOCATION_DEPTH,
  BASE_ALLOCATION,
  selectContexts,
} from "../../../../src/exports/nbd/meta-context.ts";

const bitmap = (id: number, name: string) => ({ id, name: `qemu:dirty-bitmap:${name}` });
const OFFERED = [BASE_ALLOCATION, ALLOCATION_DEPTH, bitmap(2, "a"), bitmap(3, "b"), bitmap(4, "a")];

function selected(listing: boolean, ...queries: string[]): number[] {
  const positions = new Set<number>();
  for (const query of queries) selectContexts(OFFERED, query, listing, positions);
  return [...positions];
}

describe("selectContexts()", () => {
  test("selects by full name, the first of equal ones", () => {
    expect(selected(false, "qemu:dirty-bitmap:a", "base:allocation")).toEqual([2, 0]);
  });

  test("knows wildcards in lists only", () => {
    expect(selected(true, "base:")).toEqual([0]);
    expect(selected(true, "qemu:")).toEqual([1, 2, 3, 4]);
    expect(selected(true, "qemu:dirty-bitmap:")).toEqual([2, 3, 4]);
    expect(selected(false, "base:", "qemu:", "qemu:dirty-bitmap:")).toEqual([]);
  });

  test("ignores what it doesn't know", () => {
    expect(selected(true, "", "base", "base:allocation2", "x-other:y", "qemu:nope")).toEqual([]);
  });
});
