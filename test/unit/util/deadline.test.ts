import { describe, expect, test } from "bun:test";
import { settlesWithin } from "../../../src/util/deadline.ts";

describe("settlesWithin()", () => {
  test("tells whether a promise resolves in time", async () => {
    expect(await settlesWithin(Promise.resolve(), 1000)).toBe(true);
    expect(await settlesWithin(new Promise(() => {}), 1)).toBe(false);
  });

  test("fails with the promise", async () => {
    const failure = new Error("no");
    const result = settlesWithin(Promise.reject(failure), 1000).catch((error) => error);
    expect(await result).toBe(failure);
  });
});
