/** The driver, put together from what a runtime gives and what both have in common. */

import type { Socket } from "node:net";
import process from "node:process";
import type { Ffi, RuntimeDriver, ThreadDriver } from "../../src/runtime/driver.ts";
import { Linux } from "../../src/runtime/linux.ts";
import { makeFiles } from "./files.ts";
import { makeHttp } from "./http.ts";
import { env, makeProcess, type ProgramStart, stderr } from "./process.ts";
import { makeSockets } from "./sockets.ts";
import { threadStarter } from "./threads.ts";

/** What differs between the runtimes. */
export interface RuntimeParts extends ProgramStart {
  readonly name: string;
  readonly ffi: Ffi;
  /** Monotonic nanoseconds. */
  readonly nowNs: () => number;
  /** Of a module that has the thread entries next to it. */
  readonly url: string;
  readonly runMicrotasks: () => Promise<void>;
}

export function makeThreadDriver(parts: RuntimeParts): ThreadDriver {
  const { name, ffi, nowNs, url, runMicrotasks } = parts;
  const arch = process.arch;
  if (process.platform !== "linux" || (arch !== "x64" && arch !== "arm64")) {
    throw new Error(`Linux on x64 or arm64 is needed: this is ${process.platform} on ${arch}`);
  }
  const linux = new Linux(ffi, arch);
  return {
    name,
    arch,
    ffi,
    clock: { nowNs, realTimeUs: () => linux.realTimeUs() },
    startThread: threadStarter(url),
    runMicrotasks,
    env,
    stderr,
  };
}

/** `adopt` makes a socket of a connected fd. */
export function makeRuntimeDriver(
  parts: RuntimeParts,
  adopt: (fd: number) => Socket,
): RuntimeDriver {
  return {
    ...makeThreadDriver(parts),
    sockets: makeSockets(adopt),
    files: makeFiles(),
    http: makeHttp(),
    process: makeProcess(parts),
  };
}
