import { describe, expect, test } from "bun:test";
import { getSystemErrorMap } from "node:util";
import * as errno from "../../../src/runtime/errno.ts";

const constants = Object.entries<unknown>(errno).filter(
  (entry): entry is [string, number] => typeof entry[1] === "number",
);
/** Two names for one number; the other one is the number's. */
const ALIASES = new Set(["EWOULDBLOCK", "ENOTSUP"]);

describe("errno", () => {
  test("constants have the numbers that the runtime knows", () => {
    const ours = new Map(constants);
    const known = [...getSystemErrorMap()].filter(([, [name]]) => ours.has(name));
    expect(known.length).toBeGreaterThan(50);
    for (const [number, [name]] of known) expect([name, ours.get(name)]).toEqual([name, -number]);
  });

  test("errnoName() and errnoOfName() invert each other", () => {
    for (const [name, number] of constants) {
      if (!ALIASES.has(name)) expect(errno.errnoName(-number)).toBe(name);
      if (!ALIASES.has(name)) expect(errno.errnoOfName(name)).toBe(number);
    }
    expect(errno.errnoName(4000)).toBe("4000");
    expect(errno.errnoOfName("ENONSENSE")).toBe(undefined);
    const error = Object.assign(new Error("open failed"), { code: "ENOENT" });
    expect(errno.reasonOf(error)).toBe("No such file or directory");
    expect(errno.reasonOf(new Error("open failed"))).toBe("open failed");
  });

  test("strerror() says what the GNU C library says, for either sign", () => {
    expect(errno.strerror(errno.ENOENT)).toBe("No such file or directory");
    expect(errno.strerror(-errno.EIO)).toBe("Input/output error");
    expect(errno.strerror(-errno.EAGAIN)).toBe("Resource temporarily unavailable");
    expect(errno.strerror(-errno.ENOTSUP)).toBe("Operation not supported");
    expect(errno.strerror(41)).toBe("Unknown error 41");
  });
});
