/** readCommandLine(): what counts wherever it stands. */
import { describe, expect, test } from "bun:test";
import { readCommandLine } from "../../../src/cli/command-line.ts";

describe("readCommandLine()", () => {
  test("leaves what is done in order", () => {
    const line = readCommandLine(["--pidfile", "a", "--daemonize", "", "--log-level=debug"]);
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

  test("takes a lone argument for an image, where nothing is built by hand", () => {
    const namesOf = (...args: string[]) => readCommandLine(args).options.map(({ name }) => name);
    const quick = readCommandLine(["--read-only", "disk.img", "--format=raw", "--socket", "s"]);
    expect(quick.options).toEqual([{ name: "image", value: "disk.img", text: "disk.img" }]);
    expect(quick.quickStart).toEqual({ readOnly: true, format: "raw", socket: "s" });
    expect(namesOf("--pidfile", "p", "disk.img")).toEqual(["pidfile", "image"]);
    expect(namesOf("a", "b")).toEqual(["stray", "stray"]);
    for (const option of ["blockdev", "export", "nbd-server", "object"]) {
      expect(namesOf("disk.img", `--${option}`, "x")).toEqual(["stray", option as never]);
    }
    const message = "--format raw: Needs one image, and no nodes by hand";
    expect(() => readCommandLine(["--format", "raw"])).toThrow(message);
    expect(() => readCommandLine(["--format", "raw", "a", "b"])).toThrow(message);
    expect(() => readCommandLine(["--format", "raw", "a", "--object", "x"])).toThrow(message);
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
