/** parseArguments(): getopt_long() as QSD uses it. */
import { describe, expect, test } from "bun:test";
import { parseArguments } from "../../../src/cli/arguments.ts";

const parse = (...args: string[]) => [...parseArguments(args)];

describe("parseArguments()", () => {
  test("keeps the order and what was written", () => {
    expect(parse("--object", "iothread,id=a", "--blockdev=x", "-V", "--pidfile", "-p")).toEqual([
      { name: "object", value: "iothread,id=a", text: "--object iothread,id=a" },
      { name: "blockdev", value: "x", text: "--blockdev=x" },
      { name: "version", value: "", text: "-V" },
      { name: "pidfile", value: "-p", text: "--pidfile -p" },
    ]);
  });

  test("takes a unique beginning of a name", () => {
    expect(parse("--mon", "a")[0]?.name).toBe("monitor");
    expect(parse("--v")[0]?.name).toBe("version");
    // Every first letter that is enough for QSD is enough here.
    const letters = ["b", "c", "d", "e", "h", "m", "n", "o", "p", "t", "v"];
    const values = letters.map((letter) => parse(`--${letter}`, "x")[0]?.name[0]);
    expect(values).toEqual(letters);
  });

  test("reads letters, joined or not", () => {
    expect(parse("-hV").map(({ name }) => name)).toEqual(["help", "version"]);
    const traces = [
      { name: "trace", value: "blk_*", text: "-T blk_*" },
      { name: "trace", value: "hV", text: "-ThV" },
    ];
    expect(parse("-T", "blk_*", "-ThV")).toEqual(traces as never);
    expect(parse("-hTx").map(({ name, value }) => [name, value])).toEqual([
      ["help", ""],
      ["trace", "x"],
    ]);
  });

  test("yields what precedes a mistake", () => {
    const options = parseArguments(["--version", "--foo"]);
    expect(options.next().value).toMatchObject({ name: "version" });
    expect(() => options.next()).toThrow("unrecognized option '--foo'");
  });

  test("leaves arguments of no option to when their turn comes, and ends at --", () => {
    expect(parse("a", "", "-", "--pidfile", "--", "--", "--nope", "x")).toEqual([
      { name: "stray", value: "a", text: "a" },
      { name: "stray", value: "", text: "" },
      { name: "stray", value: "-", text: "-" },
      { name: "pidfile", value: "--", text: "--pidfile --" },
    ]);
  });

  test("refuses what getopt_long() refuses, in its words", () => {
    expect(() => parse("--blockdev")).toThrow("option '--blockdev' requires an argument");
    expect(() => parse("--b")).toThrow("option '--blockdev' requires an argument");
    expect(() => parse("-T")).toThrow("option requires an argument -- 'T'");
    expect(() => parse("--hel=1")).toThrow("option '--help' doesn't allow an argument");
    expect(() => parse("-x")).toThrow("invalid option -- 'x'");
    expect(() => parse("--nope=1")).toThrow("unrecognized option '--nope=1'");
    expect(() => parse("--constructor")).toThrow("unrecognized option '--constructor'");
    expect(() => parse("--log=1")).toThrow(
      "option '--log=1' is ambiguous; possibilities: '--log-format' '--log-level'",
    );
  });
});
