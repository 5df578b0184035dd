/** matchesGlob() */
import { describe, expect, test } from "bun:test";
import { matchesGlob } from "../../../../src/objects/authz/glob.ts";

describe("matchesGlob()", () => {
  test("takes a star for any characters, a question mark for one", () => {
    const matching = [
      ["", ""],
      ["*", ""],
      ["*", "anything"],
      ["fred", "fred"],
      ["f*", "f"],
      ["f*d", "fred"],
      ["*red", "fred"],
      ["*re*", "fred"],
      ["f??d", "fred"],
      ["?", "é"],
      ["?", "\u{1f600}"],
      ["*.example.*", "a.example.b.example.c"],
      ["a*b*c", "aXbXbXc"],
      ["**a**", "a"],
      ["[a]", "[a]"],
      ["\\*", "\\anything"],
    ] as const;
    for (const [pattern, text] of matching) {
      expect([pattern, text, matchesGlob(pattern, text)]).toEqual([pattern, text, true]);
    }
  });

  test("refuses the rest", () => {
    const others = [
      ["", "a"],
      ["a", ""],
      ["?", ""],
      ["fred", "fredx"],
      ["fred", "Fred"],
      ["f*d", "fredx"],
      ["*red", "redx"],
      ["f??d", "fed"],
      ["[a]", "a"],
      ["a*b*c", "acb"],
    ] as const;
    for (const [pattern, text] of others) {
      expect([pattern, text, matchesGlob(pattern, text)]).toEqual([pattern, text, false]);
    }
  });

  test("is quick with many stars and a text that almost matches", () => {
    const started = performance.now();
    expect(matchesGlob(`${"a*".repeat(50)}b`, "a".repeat(10_000))).toBe(false);
    expect(performance.now() - started).toBeLessThan(20_000);
  });
});
