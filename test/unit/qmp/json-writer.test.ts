/** formatJson(): the text that QSD writes. */
import { describe, expect, test } from "bun:test";
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
