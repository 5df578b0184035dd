import { describe, expect, test } from "bun:test";
import { type LogLevel, makeLog } from "../../../src/util/log.ts";

function logged(levelMin?: LogLevel): string {
  let text = "";
  const log = makeLog((line) => {
    text += line;
  }, levelMin);
  log("error", "it broke");
  log("warn", "it may break");
  log("info", "it works");
  return text;
}

describe("makeLog()", () => {
  test("writes one line per message, errors without a level", () => {
    const all = "outport: it broke\noutport: warning: it may break\noutport: info: it works\n";
    expect(logged("info")).toBe(all);
  });

  test("leaves out what is less severe than asked for; by default what is no warning", () => {
    expect(logged("error")).toBe("outport: it broke\n");
    expect(logged()).toBe("outport: it broke\noutport: warning: it may break\n");
  });

  test("keeps a message on its line, whatever is in it", () => {
    let text = "";
    makeLog((line) => {
      text += line;
    })("error", "name 'a\nb\x1b[0mü'");
    expect(text).toBe("outport: name 'a\\x0ab\\x1b[0mü'\n");
  });
});
