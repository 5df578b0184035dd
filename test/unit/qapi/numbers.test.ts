/** Numbers and switches of the command line; verdicts are those of QEMU's own parsers. */
import { describe, expect, test } from "bun:test";
import { parseInteger, parseSize, parseSwitch } from "../../../src/qapi/numbers.ts";

describe("parseSwitch()", () => {
  test("takes QSD's words for on and off, and no others", () => {
    expect(["on", "yes", "true", "y"].map(parseSwitch)).toEqual([true, true, true, true]);
    expect(["off", "no", "false", "n"].map(parseSwitch)).toEqual([false, false, false, false]);
    for (const text of ["", "ON", "1", "0", "on "]) {
      expect([text, parseSwitch(text)]).toEqual([text, undefined]);
    }
  });
});

describe("parseInteger()", () => {
  test("reads decimal, hexadecimal and octal", () => {
    expect(parseInteger("10")).toBe(10n);
    expect(parseInteger("0x1F")).toBe(31n);
    expect(parseInteger("010")).toBe(8n);
    expect(parseInteger("0")).toBe(0n);
    expect(parseInteger(" -3")).toBe(-3n);
    expect(parseInteger("18446744073709551616")).toBe(2n ** 64n);
  });

  test("refuses everything else", () => {
    for (const text of ["", " ", "1 ", "1k", "1.5", "08", "0x", "1e3", "--1", "zz"]) {
      expect([text, parseInteger(text)]).toEqual([text, undefined]);
    }
  });
});

describe("parseSize()", () => {
  test("reads suffixes and fractions", () => {
    expect(parseSize("512")).toBe(512n);
    expect(parseSize("4k")).toBe(4096n);
    expect(parseSize("1.5K")).toBe(1536n);
    expect(parseSize(".5k")).toBe(512n);
    expect(parseSize("1b")).toBe(1n);
    expect(parseSize("2E")).toBe(2n ** 61n);
    expect(parseSize("0x10")).toBe(16n);
    expect(parseSize("1.k")).toBe(1024n);
  });

  test("refuses everything else", () => {
    for (const text of ["", "k", "1kb", "1 ", "-1", "1e3", "0x1k", "1.5", "1.5b", "zz"]) {
      expect([text, parseSize(text)]).toEqual([text, undefined]);
    }
  });
});
