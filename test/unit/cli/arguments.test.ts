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
    expect(parse("-hV").map(({ name }) => name)).toEqual(["help", "version"]);
  });

  test("yields what precedes a mistake", () => {
    const options = parseArguments(["--version", "--foo"]);
    expect(options.next().value).toMatchObject({ name: "version" });
    expect(() => options.next()).toThrow("unrecognized option '--foo'");
  });

  test("refuses what getopt_long() refuses", () => {
    expect(() => parse("--blockdev")).toThrow("option '--blockdev' requires an argument");
    expect(() => parse("--version=1")).toThrow("option '--version' doesn't allow an argument");
    expect(() => parse("-x")).toThrow("invalid option -- 'x'");
    expect(() => parse("foo")).toThrow("foo: Unexpected argument");
    expect(() => parse("--constructor")).toThrow("unrecognized option '--constructor'");
  });
});
