/** formatJson(): the text that QSD writes. */
import { describe, expect, test } from "bun:test";
import { Double } from "../../../src/qapi/numbers.ts";
import { formatJson } from "../../../src/qmp/json-writer.ts";

describe("formatJson()", () => {
  test("separates as QSD does", () => {
    expect(formatJson({ return: {} })).toBe('{"return": {}}');
    expect(formatJson({ a: [1, 2.5, null, true], b: { c: "d" } })).toBe(
      '{"a": [1, 2.5, null, true], "b": {"c": "d"}}',
    );
  });

  test("leaves out undefined members and keeps big integers exact", () => {
    expect(formatJson({ a: undefined, id: 18446744073709551615n })).toBe(
      '{"id": 18446744073709551615}',
    );
  });

  test("writes doubles with 17 digits", () => {
    const written = [
      [0.1, "0.10000000000000001"],
      [1.5, "1.5"],
      [new Double(-0), "-0"],
      [new Double(1000), "1000"],
      [123456789.12345679, "123456789.12345679"],
      [2 ** 64, "1.8446744073709552e+19"],
      [-(2 ** 63), "-9.2233720368547758e+18"],
      [5e-324, "4.9406564584124654e-324"],
      [1e22, "1e+22"],
      [0.0001, "0.0001"],
      [0.00001, "1.0000000000000001e-05"],
      [1e16, "10000000000000000"],
      [1e17, "1e+17"],
      [Number.POSITIVE_INFINITY, "1e999"],
      [Number.NEGATIVE_INFINITY, "-1e999"],
    ] as const;
    for (const [value, text] of written) expect(formatJson(value)).toBe(text);
  });

  test("writes ASCII only", () => {
    expect(formatJson('€\u{1f600}\u007f/é"\\\n\u001f')).toBe(
      '"\\u20AC\\uD83D\\uDE00\\u007F/\\u00E9\\"\\\\\\n\\u001F"',
    );
  });

  test("indents when pretty", () => {
    expect(formatJson({ return: {}, a: [1, {}] }, true)).toBe(
      '{\n    "return": {\n    },\n    "a": [\n        1,\n        {\n        }\n    ]\n}',
    );
  });
});
