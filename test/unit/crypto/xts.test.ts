import { describe, expect, test } from "bun:test";
import { XtsCipher } from "../../../src/crypto/xts.ts";
import { decryptSector } from "../../support/encrypted-image.ts";
import { pattern } from "../../support/images.ts";

const fromHex = (text: string) => new Uint8Array(Buffer.from(text, "hex"));
const toHex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

// Spec: IEEE 1619-2007, Annex B. Their data units are sectors: 0, 1, .. 255 twice.
const VECTORS = [
  {
    name: "vector 4 of IEEE 1619, AES-128",
    key: "27182818284590452353602874713526" + "31415926535897932384626433832795",
    sector: 0,
    starts:
      "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c" +
      "c78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412",
    ends: "7db738b18deb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568",
  },
  {
    name: "vector 10 of IEEE 1619, AES-256",
    key:
      "2718281828459045235360287471352662497757247093699959574966967627" +
      "3141592653589793238462643383279502884197169399375105820974944592",
    sector: 0xff,
    starts:
      "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b" +
      "5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd",
    ends: "caa773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
  },
];

describe("XtsCipher", () => {
  for (const { name, key, sector, starts, ends } of VECTORS) {
    test(`does ${name}`, () => {
      const plain = Uint8Array.from({ length: 512 }, (_, i) => i);
      const cipher = new XtsCipher(fromHex(key));
      const encrypted = new Uint8Array(512);
      cipher.encrypt(plain, encrypted, sector);
      expect(toHex(encrypted).slice(0, starts.length)).toBe(starts);
      expect(toHex(encrypted).slice(-ends.length)).toBe(ends);
      cipher.decrypt(encrypted, encrypted, sector);
      expect(encrypted).toEqual(plain);
    });
  }

  test("gives each sector its own tweak, however many there are at a time", () => {
    const cipher = new XtsCipher(pattern(64, 3));
    const bytes = 300 * 512;
    const plain = new Uint8Array(pattern(bytes, 4));
    const together = new Uint8Array(bytes);
    // Past the 32 bits of a sector's number that fit into one word.
    const first = 2 ** 32 - 100;
    cipher.encrypt(plain, together, first);
    const apart = new Uint8Array(bytes);
    for (let at = 0; at < bytes; at += 512) {
      const sector = first + at / 512;
      cipher.encrypt(plain.subarray(at, at + 512), apart.subarray(at, at + 512), sector);
    }
    expect(Buffer.compare(together, apart)).toBe(0);
    const other = new Uint8Array(512);
    cipher.encrypt(plain.subarray(0, 512), other, first - 2 ** 32 + 2 ** 40);
    expect(Buffer.compare(other, together.subarray(0, 512))).not.toBe(0);
    cipher.decrypt(together, together, first);
    expect(Buffer.compare(together, plain)).toBe(0);
  });

  test("counts sectors past 2 TiB", () => {
    const key = pattern(64, 7);
    const plain = new Uint8Array(pattern(512, 8));
    for (const sector of [2 ** 32 - 1, 2 ** 32, 5 * 2 ** 32 + 3, 2 ** 44 + 1]) {
      const encrypted = new Uint8Array(512);
      new XtsCipher(key).encrypt(plain, encrypted, sector);
      expect(decryptSector(key, sector * 512, encrypted)).toEqual(plain);
    }
  });

  test("leaves the source as it is, at whatever address", () => {
    const cipher = new XtsCipher(pattern(32, 5));
    const memory = new Uint8Array(2000);
    memory.set(pattern(1024, 6), 3);
    const target = new Uint8Array(1031).subarray(7);
    cipher.encrypt(memory.subarray(3, 1027), target, 9);
    expect(Buffer.compare(memory.subarray(3, 1027), pattern(1024, 6))).toBe(0);
    cipher.decrypt(target, target, 9);
    expect(Buffer.compare(target, pattern(1024, 6))).toBe(0);
  });

  test("takes whole sectors and keys of AES-128 and AES-256 only", () => {
    expect(() => new XtsCipher(new Uint8Array(48))).toThrow("AES-128 or AES-256");
    const cipher = new XtsCipher(new Uint8Array(32));
    expect(() => cipher.encrypt(new Uint8Array(500), new Uint8Array(500), 0)).toThrow("whole");
    expect(() => cipher.encrypt(new Uint8Array(512), new Uint8Array(1024), 0)).toThrow("as long");
  });
});
