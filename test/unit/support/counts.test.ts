import { describe, expect, test } from "bun:test";
import { countsOf, judge, sumOf } from "../../support/counts.ts";

const BUN = `
(pass) Ran 1 test
 3 pass
 2 skip
 1 todo
 1 fail
 9 expect() calls
Ran 7 tests across 2 files. [42.00ms]
`;
const DENO = "a ... ok (1ms)\n\n\u001b[32mok\u001b[0m | 6 passed | 0 failed | 2 ignored (3ms)\n";

describe("countsOf", () => {
  test("reads the closing lines of bun test", () => {
    expect(countsOf(BUN)).toEqual({ passed: 3, failed: 1, skipped: 3 });
  });
  test("reads the closing line of deno test", () => {
    expect(countsOf(DENO)).toEqual({ passed: 6, failed: 0, skipped: 2 });
    const failed = "FAILED | 0 passed (3 steps) | 1 failed (2ms)\n\nerror: Test failed\n";
    expect(countsOf(failed)).toEqual({ passed: 0, failed: 1, skipped: 0 });
  });
  test("finds nothing where no runner closed", () => {
    expect(countsOf("3 pass\nSegmentation fault")).toBeUndefined();
  });
});

describe("judge", () => {
  test("takes the runner's counts when it ended well", () => {
    expect(judge(DENO, 0, false)).toEqual({ passed: 6, failed: 0, skipped: 2 });
  });
  test("counts a bad end as a failure even when no test failed", () => {
    expect(judge(DENO, 1, false).failed).toBe(1);
    expect(judge("", 139, false).failed).toBe(1);
  });
  test("counts an empty run as a failure", () => {
    expect(judge("", 0, false).failed).toBe(1);
    expect(judge(" 0 pass\n 0 fail\nRan 0 tests across 1 file. [1ms]", 0, false).failed).toBe(1);
  });
  test("counts other commands as one test each", () => {
    expect(judge("", 0, true)).toEqual({ passed: 1, failed: 0, skipped: 0 });
    expect(judge(BUN, 2, true)).toEqual({ passed: 0, failed: 1, skipped: 0 });
  });
});

test("sumOf adds up", () => {
  const counts = { passed: 1, failed: 2, skipped: 3 };
  expect(sumOf([counts, counts])).toEqual({ passed: 2, failed: 4, skipped: 6 });
  expect(sumOf([])).toEqual({ passed: 0, failed: 0, skipped: 0 });
});
