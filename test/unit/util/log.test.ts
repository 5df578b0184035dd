/** Logger: the two forms of a line, and what does not get into one. */
import { describe, expect, test } from "bun:test";
import { type LogFormat, Logger, type LogLevel } from "../../../src/util/log.ts";
import { Random, randomSeed } from "../../support/random.ts";

function setUp(options: { level?: LogLevel; format?: LogFormat } = {}) {
  const lines: string[] = [];
  const logger = new Logger({
    write: (text) => void lines.push(text),
    realTimeUs: () => 1_700_000_000_123_456,
    ...options,
  });
  return { lines, log: logger.for("nbd") };
}

describe("Logger in text", () => {
  test("has errors and warnings as QSD has them, and names the component of the rest", () => {
    const { lines, log } = setUp({ level: "debug" });
    log("error", "it broke");
    log("warn", "it may break");
    log("info", "it works");
    log("debug", "so it does");
    expect(lines).toEqual([
      "outport: it broke\n",
      "outport: warning: it may break\n",
      "outport: info: nbd: it works\n",
      "outport: debug: nbd: so it does\n",
    ]);
  });

  test("leaves out what is less severe than asked for; by default what is no warning", () => {
    for (const [level, count] of [
      ["error", 1],
      ["warn", 2],
      ["info", 3],
      ["debug", 4],
    ] as const) {
      const { lines, log } = setUp({ level });
      for (const each of ["error", "warn", "info", "debug"] as const) log(each, "x");
      expect(lines).toHaveLength(count);
    }
    const { lines, log } = setUp();
    log("info", "x");
    log("warn", "x");
    expect(lines).toHaveLength(1);
  });

  test("puts the place before the message, facts after it, and a hint below", () => {
    const { lines, log } = setUp();
    log("error", "no", { option: "--object a", hint: "Try b." });
    log("warn", "odd", { file: "/x:3" });
    log("warn", "gone", { client: 3, export: "a b", name: 'q"', none: "", is: true });
    expect(lines).toEqual([
      "outport: --object a: no\nTry b.\n",
      "outport:/x:3: warning: odd\n",
      'outport: warning: gone client=3 export="a b" name="q\\"" none="" is=true\n',
    ]);
  });

  test("keeps a message on its line, whatever a peer put into it", () => {
    const { lines, log } = setUp();
    log("error", "name 'a\nb\x1b[0mü\u202e\u2028'", { option: "a\r\nb" });
    expect(lines).toEqual(["outport: a\\x0d\\x0ab: name 'a\\x0ab\\x1b[0mü\\u202e\\u2028'\n"]);
  });
});

describe("Logger in JSON", () => {
  test("writes one object per line", () => {
    const { lines, log } = setUp({ format: "json" });
    log("warn", "gone", { client: 3, export: "a" });
    expect(lines).toEqual([
      '{"time":"2023-11-14T22:13:20.123Z","level":"warn","component":"nbd",' +
        '"message":"gone","client":3,"export":"a"}\n',
    ]);
  });

  test("lets no fact pass for another member", () => {
    const { lines, log } = setUp({ format: "json" });
    log("warn", "m", { level: "error", message: "x", time: "never" });
    expect(JSON.parse(lines[0]!)).toEqual({
      time: "2023-11-14T22:13:20.123Z",
      level: "warn",
      component: "nbd",
      message: "m",
    });
  });

  test("stays one line that parses, whatever is in it", () => {
    const seed = randomSeed();
    const random = new Random(seed);
    for (let round = 0; round < 300; round++) {
      const text = String.fromCharCode(
        ...Array.from({ length: random.below(20) }, () => random.below(0x10000)),
      );
      const { lines, log } = setUp({ format: "json" });
      log("error", text, { fact: text });
      const [line = ""] = lines;
      const parsed = JSON.parse(line) as { message: string; fact: string };
      expect([seed, line.trimEnd().split(/[\n\r\u2028\u2029]/u).length]).toEqual([seed, 1]);
      // A half of a surrogate pair is no text.
      expect(parsed.message.toWellFormed()).toBe(text.toWellFormed());
      expect(parsed.fact).toBe(parsed.message);
    }
  });
});
