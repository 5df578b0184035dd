/** parseKeyval(): words of QEMU's keyval.c. */
import { describe, expect, test } from "bun:test";
import { parseKeyval, parseKeyvalOrHelp } from "../../../src/cli/keyval.ts";

describe("parseKeyval()", () => {
  test("reads pairs, the later of two equal keys wins", () => {
    expect(parseKeyval("a=1,b-c=2,a=3")).toEqual({ a: "3", "b-c": "2" });
    expect(parseKeyval("")).toEqual({});
    expect(parseKeyval("a=,b=x=y,")).toEqual({ a: "", b: "x=y" });
  });

  test("takes two commas in a value for one", () => {
    expect(parseKeyval("a=x,,y,,,b=1")).toEqual({ a: "x,y,", b: "1" });
  });

  test("gives a first item without a key the implied one, up to its comma", () => {
    expect(parseKeyval("file,a=1", "driver")).toEqual({ driver: "file", a: "1" });
    expect(parseKeyval("driver=file", "driver")).toEqual({ driver: "file" });
    expect(() => parseKeyval("file,,x", "driver")).toThrow("Invalid parameter ''");
    expect(() => parseKeyval("a=1,file", "driver")).toThrow("Expected '=' after parameter 'file'");
    expect(() => parseKeyval("file")).toThrow("Expected '=' after parameter 'file'");
  });

  test("makes objects and arrays of dotted keys", () => {
    expect(parseKeyval("a.b.c=1,a.d=2,l.1=y,l.0=x,m.0.n=z")).toEqual({
      a: { b: { c: "1" }, d: "2" },
      l: ["x", "y"],
      m: [{ n: "z" }],
    });
  });

  test("refuses keys that contradict each other", () => {
    expect(() => parseKeyval("a.b=1,a=2")).toThrow("Parameters 'a.*' used inconsistently");
    expect(() => parseKeyval("a=1,a.b=2")).toThrow("Parameters 'a.*' used inconsistently");
    expect(() => parseKeyval("a.0=2,a.b=1")).toThrow("Parameters 'a.*' used inconsistently");
    expect(() => parseKeyval("a.0=2,a.2=1")).toThrow("Parameter 'a.1' missing");
    expect(() => parseKeyval("a.b.1=2")).toThrow("Parameter 'a.b.0' missing");
    expect(() => parseKeyval("a.999999999999=2")).toThrow("Parameter 'a.0' missing");
  });

  test("refuses malformed keys", () => {
    for (const key of ["", "9a", "a..b", "a.", ".a", "a.9b", "ä", "a b"]) {
      expect(() => parseKeyval(`${key}=1`)).toThrow(`Invalid parameter '${key}'`);
    }
    const long = "a".repeat(128);
    expect(() => parseKeyval(`${long}=1`)).toThrow(`Parameter '${long}' is too long`);
    expect(() => parseKeyval(`a.${long}=1`)).toThrow(`Parameter fragment '${long}' is too long`);
  });

  test("is not led astray by names of Object.prototype", () => {
    expect(Object.keys(parseKeyval("constructor=1,toString.a=2"))).toEqual([
      "constructor",
      "toString",
    ]);
    expect(() => parseKeyval("__proto__=1")).toThrow("Invalid parameter '__proto__'");
  });

  test("has no help", () => {
    const message = "Help is not available for this option";
    expect(() => parseKeyval("help", "driver")).toThrow(message);
    expect(() => parseKeyval("file,?", "driver")).toThrow(message);
    expect(() => parseKeyval("help,a..b=1", "driver")).toThrow("Invalid parameter 'a..b'");
  });

  test("leaves help to whoever has some", () => {
    expect(parseKeyvalOrHelp("file,a=1,help", "driver")).toEqual({
      value: { driver: "file", a: "1" },
      help: true,
    });
    expect(parseKeyvalOrHelp("?", "driver")).toEqual({ value: {}, help: true });
    expect(parseKeyvalOrHelp("help=1", "driver")).toEqual({ value: { help: "1" }, help: false });
    expect(() => parseKeyvalOrHelp("help,file", "driver")).toThrow(
      "Expected '=' after parameter 'file'",
    );
  });
});
