/** A reactor over the runtime that the tests run on, with the engine of choice, for unit tests. */
import { BufferPool } from "../../src/io/buffers.ts";
import type { CompletionHandler, IoEngine } from "../../src/io/engine.ts";
import { createEpollEngine } from "../../src/io/epoll.ts";
import { Memory } from "../../src/io/memory.ts";
import { OffloadPool } from "../../src/io/offload.ts";
import { Reactor } from "../../src/io/reactor.ts";
import { createUringEngine } from "../../src/io/uring.ts";
import { Linux } from "../../src/runtime/linux.ts";
import { driver } from "./driver.ts";

export type EngineName = IoEngine["name"];
export const ENGINES: readonly EngineName[] = ["io_uring", "epoll"];

const BUFFER_BYTES_MAX = 16 * 1024 * 1024;
/** Turns of a task end at least so often, to see whether it is over. */
const TURN_NS = 5_000_000;

/** The clock stands still while the test does not run: time limits hold on a busy machine, too. */
function patientClock(): () => number {
  const STEP_NS_MAX = 500_000;
  let realNs = driver.clock.nowNs();
  let nowNs = realNs;
  return () => {
    const beforeNs = realNs;
    realNs = driver.clock.nowNs();
    nowNs += Math.min(realNs - beforeNs, STEP_NS_MAX);
    return nowNs;
  };
}

export function makeReactor(engineName: EngineName): Reactor {
  return makeReactorBy(driver.clock.nowNs, engineName);
}

/** For code with time limits that a test must not reach. */
export function makePatientReactor(engineName: EngineName): Reactor {
  return makeReactorBy(patientClock(), engineName);
}

function makeReactorBy(nowNs: () => number, engineName: EngineName): Reactor {
  const linux = new Linux(driver.ffi, driver.arch);
  const memory = new Memory(linux, BufferPool.reservedBytes(BUFFER_BYTES_MAX));
  const handlers: CompletionHandler[] = [];
  const offload = () => new OffloadPool({ linux, driver, threadsMax: 2 });
  const engine =
    engineName === "io_uring"
      ? createUringEngine({ linux, memory, handlers, offload, nowNs })
      : createEpollEngine({ linux, memory, handlers, offload, nowNs });
  return new Reactor({
    linux,
    nowNs,
    memory,
    buffers: new BufferPool(memory, { bytesMax: BUFFER_BYTES_MAX }),
    handlers,
    engine,
    polling: { pollMaxNs: 0, pollGrow: 0, pollShrink: 0 },
    runMicrotasks: driver.runMicrotasks,
  });
}

/** Turns the reactor until `task` has ended; its result, or its error thrown. */
export async function runOn<Result>(
  reactor: Reactor,
  task: () => Promise<Result>,
): Promise<Result> {
  let ended = false;
  const promise = task();
  const end = () => {
    ended = true;
  };
  promise.then(end, end);
  for (;;) {
    await driver.runMicrotasks();
    if (ended) return promise;
    reactor.turn(TURN_NS);
  }
}
