import { describe, expect, test } from "bun:test";
import { errorOf, failuresIn } from "../../support/failures.ts";

const SERIAL = `bun test v1.4.5 (a7733435c)

test/unit/a.test.ts:
OUTPORT_SEED=17
(pass) outer > good [0.10ms]
said before
5 | expect(1).toBe(2);
              ^
error: expect(received).toBe(expected)

Expected: 2
Received: 1

      at <anonymous> (/x/test/unit/a.test.ts:5:69)
(fail) outer > bad [0.17ms]
(fail) slow [137.92ms]
  ^ this test timed out after 100ms.
(skip) not here

test/unit/b.test.ts:

# Unhandled error between tests
-------------------------------
error: Cannot find module './nothing.ts' from '/x/b.test.ts'
-------------------------------


test/unit/c.test.ts:
\u001b[31m(fail)\u001b[0m (unnamed) [0.06ms]

 1 pass
 1 skip
 3 fail
 1 error
Ran 5 tests across 3 files. [171.00ms]
`;

const PARALLEL = `bun test v1.4.5 (a7733435c) 2x PARALLEL

test/unit/a.test.ts:
error: of a
test/unit/b.test.ts:
error: Uncaught (in worker "") as it should
(pass) of b
test/unit/a.test.ts:
(fail) of a [1.00ms]

d.test.ts:
✗ test/unit/d.test.ts (worker crashed: exit code 3)

2 tests failed:
(fail) of a [1.00ms]
`;

const DENO = `running 3 tests from ./test/unit/a.test.ts
outer > good ... ok (11ms)
outer > bad ...
------- output -------
OUTPORT_SEED=23
----- output end -----
outer > bad ... FAILED (2ms)
outer > later ...
Uncaught error from ./test/unit/a.test.ts FAILED
outer > later ... cancelled (0ms)

 ERRORS 

outer > bad => ./test/support/bun-test-deno.ts:101:8
error: Error: expect(received).toBe(expected)

Expected: 2
Received: 1
    at file:///x/test/support/block.ts:5:69
    at file:///x/test/unit/a.test.ts:5:69

./test/unit/a.test.ts (uncaught error)
error: Error: later

 FAILURES 

outer > bad => ./test/support/bun-test-deno.ts:101:8
./test/unit/a.test.ts (uncaught error)

FAILED | 1 passed | 2 failed (358ms)

error: Test failed
`;

describe("failuresIn", () => {
  test("finds each failed test of bun test, with its file, error and seed", () => {
    const [bad, slow, outside, unnamed, ...more] = failuresIn(SERIAL);
    expect(more).toEqual([]);
    expect(bad).toMatchObject({ file: "test/unit/a.test.ts", test: "outer > bad" });
    expect(bad?.details.slice(0, 2)).toEqual(["OUTPORT_SEED=17", "said before"]);
    expect(bad?.details.at(-1)).toContain("a.test.ts:5:69");
    expect(slow).toMatchObject({ file: "test/unit/a.test.ts", test: "slow" });
    expect(slow?.details).toContain("^ this test timed out after 100ms.");
    const text = "error: Cannot find module './nothing.ts' from '/x/b.test.ts'";
    expect(outside).toMatchObject({ file: "test/unit/b.test.ts", details: [text] });
    expect(unnamed).toMatchObject({ file: "test/unit/c.test.ts", test: "(unnamed)", details: [] });
  });

  test("keeps files apart that run at a time, and sees one that crashes", () => {
    expect(failuresIn(PARALLEL)).toEqual([
      { file: "test/unit/a.test.ts", test: "of a", details: ["error: of a"] },
      { file: "test/unit/d.test.ts", test: "(the file)", details: ["worker crashed: exit code 3"] },
    ]);
  });

  test("puts the error of each test of bun test first that the XML has", () => {
    const output = [
      ...["bun test v1.4.5 (a7733435c) 2x PARALLEL", "", "a.test.ts:"],
      ...["error: of one", "error: of two", "(fail) x > one", "(fail) two", "(fail) three"],
    ];
    const xml = `
      <testcase name="one" classname="x" time="0" file="a.test.ts" line="5" assertions="1">
        <failure type="Error" message="of &lt;1&gt;">Error: of &lt;1&gt;&#10;  at a:1&#10;</failure>
      </testcase>
      <testcase name="good" classname="" time="0.000005" file="a.test.ts" line="4" assertions="0" />
      <testcase name="two" classname="" time="0.1" file="a.test.ts" line="6" assertions="0">
        <failure type="TimeoutError" message="test timed out" />
      </testcase>`;
    expect(failuresIn(output.join("\n"), xml).map((failure) => errorOf(failure, 1))).toEqual([
      ["Error: of <1>"],
      ["TimeoutError: test timed out"],
      [],
    ]);
  });

  test("finds each failed test of deno test", () => {
    const [bad, outside, ...more] = failuresIn(DENO);
    expect(more).toEqual([]);
    expect(bad).toMatchObject({ file: "test/unit/a.test.ts", test: "outer > bad" });
    expect(bad?.details.slice(0, 2)).toEqual([
      "OUTPORT_SEED=23",
      "error: Error: expect(received).toBe(expected)",
    ]);
    expect(outside).toEqual({
      file: "./test/unit/a.test.ts",
      test: "(outside of tests)",
      details: ["error: Error: later"],
    });
  });

  test("finds none where a runner ended early, or well", () => {
    expect(failuresIn("bun test v1.4.5\n\na.test.ts:\n(pass) a\nSegmentation fault\n")).toEqual([]);
    expect(failuresIn("a ... ok (1ms)\n\nok | 1 passed | 0 failed (3ms)\n")).toEqual([]);
    expect(failuresIn("")).toEqual([]);
  });
});

describe("errorOf", () => {
  const failure = (...details: string[]) => ({ file: "", test: "", details });

  test("is the error without its stack", () => {
    const [bad] = failuresIn(SERIAL);
    expect(bad && errorOf(bad, 3)).toEqual([
      "error: expect(received).toBe(expected)",
      "Expected: 2",
      "Received: 1",
    ]);
    const coded = failure("1 | x", "ENOTCONN: not connected, fsync", "   errno: -107,");
    expect(errorOf(coded, 1)).toEqual(["ENOTCONN: not connected, fsync"]);
  });

  test("is what was said last where nothing looks like an error", () => {
    expect(errorOf(failure("a", "b", "", "c"), 2)).toEqual(["c"]);
    expect(errorOf(failure(), 2)).toEqual([]);
  });
});
