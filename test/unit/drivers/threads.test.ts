import { describe, expect, test } from "bun:test";
import { threadStarter } from "../../../drivers/node/threads.ts";
import { POLLIN } from "../../../src/abi/linux.ts";
import type { Thread } from "../../../src/runtime/driver.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const startThread = threadStarter(new URL("./fixtures/x.ts", import.meta.url).href);

interface Run {
  readonly thread: Thread;
  readonly fd: number;
  /** What came out of the thread, in order, when it has ended. */
  readonly log: Promise<unknown[]>;
}

function run(task: string): Run {
  const fd = linux.eventfd();
  const thread = startThread("offload", { task, fd });
  const log = new Promise<unknown[]>((resolve) => {
    const seen: unknown[] = [];
    thread.onMessage = (message) => seen.push(message);
    thread.onError = (error) => seen.push(`error: ${error.message}`);
    thread.onExit = () => {
      linux.close(fd);
      resolve([...seen, "exit"]);
    };
  });
  return { thread, fd, log };
}

describe("threads", () => {
  test("a thread that blocks in the kernel takes messages and answers before it ends", async () => {
    const { thread, fd, log } = run("echo");
    thread.send({ text: "one", bytes: new Uint8Array([1, 2]) });
    thread.send("two");
    linux.signalEventfd(fd);
    expect(await log).toEqual([{ text: "one", bytes: new Uint8Array([1, 2]) }, "two", "exit"]);
  });

  test("an exception ends the thread with onError, then onExit", async () => {
    expect(await run("fail").log).toEqual(["before", "error: thrown in a thread", "exit"]);
  });

  test("runMicrotasks() runs chains of awaits to their end", async () => {
    expect(await run("microtasks").log).toEqual([500, "exit"]);
  });

  test("what is left behind between runMicrotasks() is collected", async () => {
    const [left] = await run("garbage").log;
    // Deno collects in time by itself.
    if ("Bun" in globalThis) expect(left).toBeLessThan(100);
  });

  test("a thread starts a thread although its event loop stands still", async () => {
    expect(await run("nest").log).toEqual([POLLIN, "exit"]);
  });
});
