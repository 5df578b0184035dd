import { describe, expect, test } from "bun:test";
import { crc32c } from "../../../src/util/crc32c.ts";

describe("crc32c()", () => {
  test("equals known values", () => {
    // RFC 3720 B.4; the first is the usual check value.
    expect(crc32c(new TextEncoder().encode("123456789"))).toBe(0xe3069283);
    expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
    expect(crc32c(new Uint8Array(32).fill(0xff))).toBe(0x62a8ab43);
    expect(crc32c(new Uint8Array(0))).toBe(0);
  });
});
