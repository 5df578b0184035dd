/** parseRequest(): words of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import { parseRequest } from "../../../src/qmp/request.ts";

function problem(value: unknown, oob = false): string {
  try {
    parseRequest(value, oob, () => {});
  } catch (error) {
    return (error as Error).message;
  }
  return "no problem";
}

describe("parseRequest()", () => {
  test("returns name and arguments", () => {
    const value = { execute: "a", arguments: { b: 1 }, id: 7 };
    expect(parseRequest(value, false, () => {})).toEqual({ name: "a", args: { b: 1 }, oob: false });
    expect(parseRequest({ "exec-oob": "a" }, true, () => {})).toEqual({
      name: "a",
      args: {},
      oob: true,
    });
  });

  test("tells the id before it fails", () => {
    let id: unknown;
    expect(() =>
      parseRequest({ id: [1], foo: 2 }, false, (found) => {
        id = found;
      }),
    ).toThrow("QMP input member 'foo' is unexpected");
    expect(id).toEqual([1]);
  });

  test("refuses other shapes", () => {
    expect(problem([])).toBe("QMP input must be a JSON object");
    expect(problem(null)).toBe("QMP input must be a JSON object");
    expect(problem({})).toBe("QMP input lacks member 'execute'");
    expect(problem({ execute: 1 })).toBe("QMP input member 'execute' must be a string");
    expect(problem({ execute: "a", arguments: [] })).toBe(
      "QMP input member 'arguments' must be an object",
    );
    expect(problem({ execute: "a", arguments: null })).toBe(
      "QMP input member 'arguments' must be an object",
    );
    expect(problem({ "exec-oob": "a" })).toBe("QMP input member 'exec-oob' is unexpected");
    expect(problem({ "exec-oob": "a", execute: "b" }, true)).toBe(
      "QMP input member 'execute' clashes with 'exec-oob'",
    );
  });
});
