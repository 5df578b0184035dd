/** Chooses the I/O engine of a reactor: by trying, or as it is forced. Thread: iothread. */
import { OutportError } from "../util/error.ts";
import type { EngineOptions, IoEngine } from "./engine.ts";
import { createEpollEngine } from "./epoll.ts";
import { createUringEngine } from "./uring.ts";

export interface ChosenEngine {
  readonly engine: IoEngine;
  /** Why it is not io_uring, when that was not forced. */
  readonly reason: string | null;
}

/** Throws OutportError when what is forced can't be had. */
export function createEngine(
  forced: "io_uring" | "epoll" | undefined,
  options: EngineOptions,
): ChosenEngine {
  if (forced === "epoll") return { engine: createEpollEngine(options), reason: null };
  try {
    return { engine: createUringEngine(options), reason: null };
  } catch (error) {
    if (forced !== undefined || !(error instanceof OutportError)) throw error;
    return { engine: createEpollEngine(options), reason: error.message };
  }
}
