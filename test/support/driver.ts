/** The driver of the runtime that the tests run on. */
import type { RuntimeDriver } from "../../src/runtime/driver.ts";

const runtime = "Bun" in globalThis ? "bun" : "deno";
const module = (await import(`../../drivers/${runtime}/driver.ts`)) as {
  runtimeDriver(): RuntimeDriver;
};

export const driver: RuntimeDriver = {
  ...module.runtimeDriver(),
  // Unlike an iothread, a test needs its runtime's event loop: for time limits, sockets, threads.
  runMicrotasks: () => new Promise((resolve) => void setImmediate(resolve)),
};
