/** readCommandLine(): what counts wherever it stands. */
import { describe, expect, test } from "bun:test";
import { readCommandLine } from "../../../src/cli/command-line.ts";

describe("readCommandLine()", () => {
  test("leaves what is done in order", () => {
    const line = readCommandLine(["--pidfile", "a", "--daemonize", "x", "--log-level=debug"]);
    expect(line.options.map(({ name }) => name)).toEqual(["pidfile", "stray"]);
    expect([line.daemonize, line.logLevel, line.logFormat, line.answer]).toEqual([
      true,
      "debug",
      "text",
      undefined,
    ]);
  });

  test("answers questions whatever options say, unless one is malformed before them", () => {
    expect(readCommandLine(["--blockdev", "nope", "--help"]).answer).toMatchObject({ exitCode: 0 });
    expect(readCommandLine(["x", "-V", "--nope"]).answer?.text).toMatch(/^outport version \d/);
    expect(readCommandLine(["-h", "-V"]).answer?.text).toMatch(/^Usage: outport/);
    expect(() => readCommandLine(["--nope", "-V"])).toThrow("unrecognized option '--nope'");
  });

  test("takes the last of what is given twice, and refuses what it does not know", () => {
    expect(readCommandLine(["--log-format", "json", "--log-format", "text"]).logFormat).toBe(
      "text",
    );
    expect(() => readCommandLine(["--log-level", "loud"])).toThrow(
      "--log-level loud: Parameter 'log-level' does not accept value 'loud'",
    );
    expect(() => readCommandLine(["--log-format="])).toThrow(
      "--log-format=: Parameter 'log-format' does not accept value ''",
    );
  });
});
