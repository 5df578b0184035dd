/** The driver for Bun. `threadDriver` is for any thread, `runtimeDriver` for main. */
import { drainMicrotasks, fullGC } from "bun:jsc";
import { connect } from "node:net";
import type { RuntimeDriver, ThreadDriver } from "../../src/runtime/driver.ts";
import { makeRuntimeDriver, makeThreadDriver, type RuntimeParts } from "../node/driver.ts";
import { makeFfi } from "./ffi.ts";

const DRAINED = Promise.resolve();
/** What async work leaves behind until then is some MiB. */
const DRAINS_PER_COLLECTION = 2048;
/** Collecting takes less; longer with thousands of nodes, and then it is done less often. */
const COLLECTION_NS_SHORT = 20_000_000;
const COLLECTION_TIME_SHARE = 1 / 5;

/**
 * A turn of the event loop runs microtasks, too, but with system calls. Garbage is ours to collect
 * in time: by itself the runtime waits until there is as much of it as memory is mapped.
 */
function microtaskRunner(): () => Promise<void> {
  let drains = 0;
  let nextNs = 0;
  return () => {
    drainMicrotasks();
    if (++drains % DRAINS_PER_COLLECTION !== 0) return DRAINED;
    const beginNs = Bun.nanoseconds();
    if (beginNs < nextNs) return DRAINED;
    fullGC();
    const tookNs = Bun.nanoseconds() - beginNs;
    if (tookNs > COLLECTION_NS_SHORT) nextNs = beginNs + tookNs / COLLECTION_TIME_SHARE;
    // What else the runtime has put off.
    return new Promise((resolve) => void setImmediate(resolve));
  };
}

function parts(): RuntimeParts {
  return {
    name: `bun ${Bun.version}`,
    ffi: makeFfi(),
    nowNs: Bun.nanoseconds,
    url: import.meta.url,
    runMicrotasks: microtaskRunner(),
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
