/** JsonStream: values, errors and recovery. Words and positions are those of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import { Double } from "../../../src/qapi/numbers.ts";
import { JsonStream, parseJson } from "../../../src/qmp/json-stream.ts";
import { formatJson } from "../../../src/qmp/json-writer.ts";

type Output = { value: unknown } | { error: string };

function collect(): { output: Output[]; stream: JsonStream } {
  const output: Output[] = [];
  const stream = new JsonStream({
    onValue: (value) => output.push({ value }),
    onError: (error) => output.push({ error }),
  });
  return { output, stream };
}

function parse(input: string | Uint8Array, chunkBytes = Number.MAX_SAFE_INTEGER): Output[] {
  const bytes = typeof input === "string" ? new TextEncoder().encode(input) : input;
  const { output, stream } = collect();
  for (let at = 0; at < bytes.length; at += chunkBytes) {
    stream.feed(bytes.subarray(at, at + chunkBytes));
  }
  return output;
}

const values = (input: string) => parse(input).map((each) => ("value" in each ? each.value : each));
const errors = (input: string | Uint8Array) =>
  parse(input).map((each) => ("error" in each ? each.error : "value"));

describe("JsonStream values", () => {
  test("need nothing between them", () => {
    expect(values('{}[]1true null"a"{"b":[1,{}]}\n')).toEqual([
      {},
      [],
      1,
      true,
      null,
      "a",
      { b: [1, {}] },
    ]);
  });

  test("come through any chunking alike", () => {
    const text = '{\'a\\u20ac\': [1.5e2, -0, "\\ud83d\\ude00"]} tru {"é": 12345678901234567890} ';
    const whole = parse(text);
    expect(whole).toHaveLength(3);
    for (let chunkBytes = 1; chunkBytes < 12; chunkBytes += 1) {
      expect(parse(text, chunkBytes)).toEqual(whole);
    }
  });

  test("keep integers of 64 bits exact", () => {
    expect(
      values("9007199254740991 9007199254740992 18446744073709551615 -9223372036854775808 "),
    ).toEqual([9007199254740991, 9007199254740992n, 18446744073709551615n, -9223372036854775808n]);
    expect(values("18446744073709551616 -9223372036854775809 ")).toEqual([2 ** 64, -(2 ** 63)]);
    expect(values(`1${"0".repeat(300)} `)).toEqual([1e300]);
  });

  test("tell integers from numbers that are written otherwise", () => {
    expect(values("1 1.0 1e3 -0.0 1.5 1e300 ")).toEqual([
      1,
      new Double(1),
      new Double(1000),
      new Double(-0),
      1.5,
      1e300,
    ]);
    expect(formatJson(new Double(1))).toBe("1");
  });

  test("may have single-quoted strings, with the other quote inside", () => {
    expect(values("'a\\'b\"c' \"x'y\" ")).toEqual(["a'b\"c", "x'y"]);
  });

  test("may have members that JavaScript gives a meaning", () => {
    const [value] = values('{"__proto__": {"x": 1}, "constructor": 2}') as [object];
    expect(Object.keys(value)).toEqual(["__proto__", "constructor"]);
    expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
  });
});

describe("JsonStream errors", () => {
  test("say where and what", () => {
    expect(errors('{"execute":}')).toEqual(["1:12: JSON parse error, expecting value"]);
    expect(errors('\n{"execute" "x"}')).toEqual(["2:12: JSON parse error, expecting ':'"]);
    expect(errors('{"a":1,}')).toEqual(["1:8: JSON parse error, expecting key"]);
    expect(errors("{1:2}")).toEqual(["1:2: JSON parse error, expecting key"]);
    expect(errors("[1,]")).toEqual(["1:4: JSON parse error, expecting value"]);
    expect(errors("[1 2]")).toEqual(["1:4: JSON parse error, expected ',' or ']'"]);
    expect(errors('{"a":1 "b"}')).toEqual(["1:8: JSON parse error, expected ',' or '}'"]);
    expect(errors('{"a":1,"a":2}')).toEqual(["1:12: JSON parse error, duplicate key"]);
    expect(errors("tru ")).toEqual(["1:1: JSON parse error, invalid keyword 'tru'"]);
    expect(errors("}")).toEqual(["1:1: JSON parse error, expecting value"]);
    expect(errors("{]")).toEqual(["1:2: JSON parse error, expecting key"]);
  });

  test("name bytes that fit nowhere", () => {
    expect(errors("#\n")).toEqual(["1:1: JSON parse error, stray '#'"]);
    expect(errors("01\n")).toEqual(["1:1: JSON parse error, stray '01'"]);
    expect(errors("1.\n")).toEqual(["1:1: JSON parse error, stray '1.\n'"]);
    expect(errors('{"id":12e}\n')).toEqual(["1:7: JSON parse error, stray '12e}'"]);
    expect(errors('"abc\n')).toEqual(["1:1: JSON parse error, stray '\"abc\n'"]);
    expect(errors(Uint8Array.of(0xff))).toEqual(["1:1: JSON parse error, stray '\ufffd'"]);
  });

  test("do not come for NUL in modified UTF-8", () => {
    const bytes = [0x22, 0x61, 0xc0, 0x80, 0x62, 0xc3, 0xa9, 0x22];
    expect(parse(Uint8Array.from(bytes))).toEqual([{ value: "a\0bé" }]);
    expect(errors(Uint8Array.of(0x22, 0xc0, 0x81, 0x22))).toEqual([
      "1:1: JSON parse error, invalid UTF-8 sequence in string",
    ]);
    expect(errors(Uint8Array.of(0x22, 0xc0, 0x80, 0x80, 0x22))).toEqual([
      "1:1: JSON parse error, invalid UTF-8 sequence in string",
    ]);
  });

  test("tell what is wrong in a string", () => {
    expect(errors('"\\q"')).toEqual(["1:1: JSON parse error, invalid escape sequence in string"]);
    expect(errors('"\\u12"')).toEqual([
      '1:1: JSON parse error, \\u12" is not a valid Unicode character',
    ]);
    expect(errors('"\\ud800\\u0041"')).toEqual([
      "1:1: JSON parse error, \\ud800 is not a valid Unicode character",
    ]);
    expect(errors(Uint8Array.of(0x22, 0x80, 0x22))).toEqual([
      "1:1: JSON parse error, invalid UTF-8 sequence in string",
    ]);
  });

  test("leave the values that follow alone", () => {
    expect(parse('{"a":tru,"b":fals}{"c":3}')).toEqual([
      { error: "1:6: JSON parse error, invalid keyword 'tru'" },
      { value: { c: 3 } },
    ]);
    expect(parse('{"a":1}}{"b":2}')).toEqual([
      { value: { a: 1 } },
      { error: "1:8: JSON parse error, expecting value" },
      { value: { b: 2 } },
    ]);
    expect(parse('{"execute":"x"\x1b{"id":7}')).toEqual([
      { error: "1:15: JSON parse error, stray '\x1b'" },
      { value: { id: 7 } },
    ]);
  });

  test("count a character twice that ends one thing and begins another", () => {
    const cases: [string, string[]][] = [
      ['{"a":1]', ["1:8: JSON parse error, expected ',' or '}'"]],
      ['[1"a"', ["1:4: JSON parse error, expected ',' or ']'"]],
      ["[-1true]", ["1:5: JSON parse error, expected ',' or ']'"]],
      ["1T", ["value", "1:3: JSON parse error, stray 'T'"]],
      [
        "[T] ]",
        [
          "1:2: JSON parse error, stray 'T'",
          "1:4: JSON parse error, expecting value",
          "1:5: JSON parse error, expecting value",
        ],
      ],
      ["T[  A", ["1:1: JSON parse error, stray 'T'", "1:5: JSON parse error, stray 'A'"]],
      ["T\n}", ["1:1: JSON parse error, stray 'T'", "2:1: JSON parse error, expecting value"]],
    ];
    for (const [text, expected] of cases) expect(errors(text)).toEqual(expected);
  });

  test("come once for one value, also when a stray byte ends it", () => {
    expect(errors("[1 2 T {}")).toEqual(["1:4: JSON parse error, expected ',' or ']'", "value"]);
  });

  test("come at the nesting limit, once", () => {
    expect(values("[".repeat(1024) + "]".repeat(1024))).toHaveLength(1);
    expect(errors(`${"[".repeat(2000)}${"]".repeat(2000)}{}`)).toEqual([
      "JSON nesting depth limit exceeded",
      "value",
    ]);
  });

  test("come at the token limit, once", () => {
    const { output, stream } = collect();
    const chunk = new TextEncoder().encode("0,".repeat(1 << 16));
    stream.feed(new TextEncoder().encode("["));
    for (let index = 0; index < 20; index += 1) stream.feed(chunk);
    expect(output).toEqual([{ error: "JSON token count limit exceeded" }]);
  });

  test("come at the size limit for one endless string, whose bytes are not kept", () => {
    const { output, stream } = collect();
    const chunk = new Uint8Array(1 << 20).fill(0x61);
    stream.feed(Uint8Array.of(0x22));
    for (let index = 0; index < 70; index += 1) stream.feed(chunk);
    expect(output).toEqual([{ error: "JSON token size limit exceeded" }]);
  });
});

describe("JsonStream.feed()", () => {
  test("stops after the value that pauses it", () => {
    const output: unknown[] = [];
    const stream = new JsonStream({
      onValue(value) {
        output.push(value);
        stream.paused = true;
      },
      onError: (error) => output.push(error),
    });
    const bytes = new TextEncoder().encode("{}{}");
    expect(stream.feed(bytes)).toBe(2);
    expect(output).toEqual([{}]);
    stream.paused = false;
    expect(stream.feed(bytes, 2)).toBe(4);
    expect(output).toEqual([{}, {}]);
  });
});

describe("parseJson()", () => {
  test("returns the one value", () => {
    expect(parseJson(' {"a": "é"} ')).toEqual({ a: "é" });
    expect(parseJson("12")).toBe(12);
  });

  test("refuses none, several and incomplete ones", () => {
    expect(() => parseJson('{"driver":"file"')).toThrow(
      "1:17: JSON parse error, premature end of input",
    );
    expect(() => parseJson("{}{}")).toThrow("Expecting at most one JSON value");
    expect(() => parseJson("")).toThrow("Expecting a JSON value");
    expect(() => parseJson('"a')).toThrow("JSON parse error, stray");
  });
});
