import { describe, expect, test } from "bun:test";
import { afMerge, afSplit } from "../../../src/crypto/af-split.ts";
import { pattern } from "../../support/images.ts";

/** Of five stripes whose bytes are i * 7 + 3: made with Python's hashlib from the specification. */
const MERGED = [
  ["sha1", 32, "940172d68ed8b5f266b370c897cf2eb23a6a02320a724776ab881de4043b9ab9"],
  [
    "sha256",
    64,
    "73912f5a0b968c8f185248e9a37f54a83c5a6d23e94ffba3b5847d91ce2e3634" +
      "9c71dcb8aa9b8a0393f7c696cc8bdf07399b193ee0b2f26ab21341a425615eed",
  ],
  [
    "sha512",
    64,
    "a6ac5c624f1278d575f3869dadc513f6be30282593c3f1f7f3c606f35279c725" +
      "e066e82d9b1bc8e8a03300c1b03c1ee7f80c7dca548bb36d6d6eaef8ba4d2f73",
  ],
  ["sha512", 32, "d51868321b4963868837076dd318b971f769e0ceb3901df3f67a6b1cfbd18675"],
] as const;

describe("afMerge()", () => {
  for (const [hash, bytes, expected] of MERGED) {
    test(`finds a key of ${bytes} bytes with ${hash}`, () => {
      const split = Uint8Array.from({ length: bytes * 5 }, (_, i) => i * 7 + 3);
      expect(Buffer.from(afMerge(split, 5, hash)).toString("hex")).toBe(expected);
    });
  }
});

describe("afSplit()", () => {
  for (const hash of ["sha1", "sha256", "sha512"]) {
    test(`is undone by afMerge(), with ${hash}`, () => {
      const key = new Uint8Array(pattern(64, 2));
      const split = afSplit(key, 4000, hash);
      expect(split.length).toBe(64 * 4000);
      expect(afMerge(split, 4000, hash)).toEqual(key);
      split[split.length - 100_000]! ^= 1;
      expect(afMerge(split, 4000, hash)).not.toEqual(key);
    });
  }

  test("makes another one each time", () => {
    const key = new Uint8Array(32);
    expect(afSplit(key, 10, "sha256")).not.toEqual(afSplit(key, 10, "sha256"));
  });
});
