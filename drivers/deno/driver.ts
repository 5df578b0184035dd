/** The driver for Deno. `threadDriver` is for any thread, `runtimeDriver` for main. */
import { Socket } from "node:net";
import process from "node:process";
import type { RuntimeDriver, ThreadDriver } from "../../src/runtime/driver.ts";
import { makeRuntimeDriver, makeThreadDriver, type RuntimeParts } from "../node/driver.ts";
import { makeFfi } from "./ffi.ts";

/** The part of Deno's global that this file needs; its own types are not in the type check. */
const { build } = (globalThis as unknown as { Deno: { build: { standalone: boolean } } }).Deno;

function parts(): RuntimeParts {
  return {
    name: `deno ${process.versions.deno}`,
    ffi: makeFfi(),
    nowNs: () => Math.round(performance.now() * 1e6),
    url: import.meta.url,
    // A turn of the event loop: by then all microtasks have run, however deep they chain.
    runMicrotasks: () => new Promise((resolve) => void setImmediate(resolve)),
    programArgs: build.standalone ? [] : ["run", "-A", process.argv[1] as string],
    hidesInherited: false,
  };
}

export function threadDriver(): ThreadDriver {
  return makeThreadDriver(parts());
}

export function runtimeDriver(): RuntimeDriver {
  const adopt = (fd: number) =>
    new Socket({ fd, readable: true, writable: true, allowHalfOpen: true });
  return makeRuntimeDriver(parts(), adopt);
}
