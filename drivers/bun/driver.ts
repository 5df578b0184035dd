/** The driver for Bun. `threadDriver` is for any thread, `runtimeDriver` for main. */
import { connect } from "node:net";
import type { RuntimeDriver, ThreadDriver } from "../../src/runtime/driver.ts";
import { makeRuntimeDriver, makeThreadDriver, type RuntimeParts } from "../node/driver.ts";
import { makeFfi } from "./ffi.ts";

function parts(): RuntimeParts {
  return {
    name: `bun ${Bun.version}`,
    ffi: makeFfi(),
    nowNs: Bun.nanoseconds,
    url: import.meta.url,
    // A compiled executable has its modules inside.
    programArgs: Bun.main.startsWith("/$bunfs/") ? [] : [...process.execArgv, Bun.main],
    hidesInherited: true,
  };
}

export function threadDriver(): ThreadDriver {
  return makeThreadDriver(parts());
}

export function runtimeDriver(): RuntimeDriver {
  // A Socket made of an fd counts as closed here; connecting to an fd adopts it.
  const adopt = (fd: number) => connect({ fd, allowHalfOpen: true } as never);
  return makeRuntimeDriver(parts(), adopt);
}
