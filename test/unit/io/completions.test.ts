import { expect, test } from "bun:test";
import { CompletionQueue } from "../../../src/io/completions.ts";

test("CompletionQueue keeps the order while it grows and wraps around", () => {
  const queue = new CompletionQueue();
  let pushed = 0;
  let taken = 0;
  for (let round = 0; round < 40; round++) {
    for (let i = 0; i < 100; i++) queue.push((0xffff_0000 + pushed) >>> 0, -pushed++);
    for (let i = 0; i < 70; i++) {
      expect(queue.token).toBe((0xffff_0000 + taken) >>> 0);
      expect(queue.shift()).toBe(-taken++);
    }
    expect(queue.length).toBe(pushed - taken);
  }
});
