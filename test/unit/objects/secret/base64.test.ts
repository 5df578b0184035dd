/** decodeBase64() against lengths and bytes that QSD 11.1 makes of the same text. */
import { describe, expect, test } from "bun:test";
import { decodeBase64 } from "../../../../src/objects/secret/base64.ts";

const decode = (text: string) => decodeBase64(new TextEncoder().encode(text));
const ascii = (text: string) => new TextDecoder().decode(decode(text));

describe("decodeBase64()", () => {
  test("decodes all lengths", () => {
    expect(ascii("")).toBe("");
    expect(ascii("aA==")).toBe("h");
    expect(ascii("aGU=")).toBe("he");
    expect(ascii("aGVs")).toBe("hel");
    expect(ascii("aGVsbG8=")).toBe("hello");
    expect([...decode("/////w==")]).toEqual([255, 255, 255, 255]);
  });

  test("skips newlines, drops what is left of a group, takes padding anywhere", () => {
    expect(ascii("aGVs\nbG8=\n")).toBe("hello");
    expect(ascii("aGVsbG8")).toBe("hel");
    expect(ascii("a")).toBe("");
    expect([...decode("====")]).toEqual([0]);
    expect(ascii("aA==bGxv8=")).toBe("hllo");
  });

  test("refuses characters that are not of its alphabet", () => {
    for (const text of [" ", "aGVs bG8=", "a-_b", "aGVs\r\n", "\t", "é", "aGVs\0"]) {
      expect(() => decode(text)).toThrow("Base64 data contains invalid characters");
    }
  });
});
