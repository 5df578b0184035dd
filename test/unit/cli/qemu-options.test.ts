/** parseQemuOptions(): words of QEMU's qemu-option.c. */
import { describe, expect, test } from "bun:test";
import { parseQemuOptions, qemuOptionsHelp } from "../../../src/cli/qemu-options.ts";

const LIST = {
  name: "thing",
  impliedKey: "kind",
  keys: { kind: "str", wait: "bool", to: "num", path: "str" },
} as const;

function parse(text: string) {
  const warnings: string[] = [];
  const options = parseQemuOptions(text, LIST, (word, meaning) => {
    warnings.push(`${word} is ${meaning}`);
  });
  return { options, warnings };
}

describe("parseQemuOptions()", () => {
  test("reads pairs, a first word without a key, and doubled commas", () => {
    expect(parse("a,,b,path=x,,=y,wait=on,path=z").options).toEqual({
      kind: "a,b",
      path: "z",
      wait: "on",
    });
    expect(parse("kind=a,").options).toEqual({ kind: "a" });
    expect(parse("").options).toEqual({});
    expect(parse(",path=a").options).toEqual({ kind: "", path: "a" });
  });

  test("takes later words for switches, and says so", () => {
    expect(parse("a,wait,path")).toEqual({
      options: { kind: "a", wait: "on", path: "on" },
      warnings: ["wait is wait=on", "path is path=on"],
    });
    expect(parse("a,nowait")).toEqual({
      options: { kind: "a", wait: "off" },
      warnings: ["nowait is wait=off"],
    });
  });

  test("takes the first id", () => {
    expect(parse("a,id=x,id=y").options).toEqual({ id: "x", kind: "a" });
    for (const id of ["", "1", "a b", "a,,b"]) {
      expect(() => parse(`nope=1,id=${id}`)).toThrow("Parameter 'id' expects an identifier");
    }
  });

  test("refuses unknown keys and values of another type", () => {
    expect(() => parse("a,foo=1")).toThrow("Invalid parameter 'foo'");
    expect(() => parse("a,nofoo")).toThrow("Invalid parameter 'foo'");
    expect(() => parse("a,=1")).toThrow("Invalid parameter ''");
    expect(() => parse("a,constructor=1")).toThrow("Invalid parameter 'constructor'");
    expect(() => parse("a,wait=maybe")).toThrow("Parameter 'wait' expects 'on' or 'off'");
    for (const to of ["", "x", "1x", "1.5"]) {
      expect(() => parse(`a,to=${to}`)).toThrow("Parameter 'to' expects a number");
    }
    expect(parse("a,to=-0x1F").options).toEqual({ kind: "a", to: "-0x1F" });
  });

  test("has help", () => {
    expect(parse("a,help").options).toBe("help");
    expect(parse("a,?,foo=1").options).toBe("help");
    expect(parse("help").options).toEqual({ kind: "help" });
    expect(() => parse("a,foo=1,help")).toThrow("Invalid parameter 'foo'");
    expect(qemuOptionsHelp(LIST)).toBe(
      "thing options:\n  kind=<str>\n  path=<str>\n  to=<num>\n  wait=<bool (on/off)>\n",
    );
  });
});
