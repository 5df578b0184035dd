/** The object kind iothread. Thread: main. Spec: qapi/qom.json IothreadProperties */
import type { IothreadPool } from "../iothread/pool.ts";
import { int, optional } from "../qapi/scalars.ts";
import { OutportError } from "../util/error.ts";
import type { ObjectKind } from "./registry.ts";

/** What it needs of the pool of threads. */
export type IothreadStarter = Pick<IothreadPool, "start" | "stop">;

/** QEMU's defaults. */
const THREAD_POOL_MAX = 64;
const RANGE = "[0, 9223372036854775807]";

const members = {
  "aio-max-batch": optional(int, "Requests per batch; accepted, without effect"),
  "thread-pool-min": optional(int, "Threads kept for blocking calls; accepted, without effect"),
  "thread-pool-max": optional(int, "Most threads for blocking calls; accepted, without effect"),
  "poll-max-ns": optional(int, "Longest busy wait before sleeping, 0 for none (default: 32768)"),
  "poll-grow": optional(int, "Factor by which the busy wait grows (default: 0, that is 2)"),
  "poll-shrink": optional(int, "Divisor by which it shrinks (default: 0, that is at once)"),
} as const;

export function iothreadKind(iothreads: IothreadStarter): ObjectKind {
  return {
    name: "iothread",
    members,
    validate,
    async create(id, options) {
      const {
        "poll-max-ns": pollMaxNs,
        "poll-grow": pollGrow,
        "poll-shrink": pollShrink,
      } = options as { [Name in keyof typeof members]?: number };
      await iothreads.start(id, {
        ...(pollMaxNs === undefined ? {} : { pollMaxNs }),
        ...(pollGrow === undefined ? {} : { pollGrow }),
        ...(pollShrink === undefined ? {} : { pollShrink }),
      });
      // QSD differs: it deletes an iothread in use, and crashes later.
      return { delete: () => iothreads.stop(id) };
    },
  };
}

function validate(options: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(options)) {
    if ((value as number) < 0) {
      throw new OutportError("invalid", `${name} value must be in range ${RANGE}`);
    }
  }
  const min = (options["thread-pool-min"] ?? 0) as number;
  const max = (options["thread-pool-max"] ?? THREAD_POOL_MAX) as number;
  if (min > max || max === 0) {
    throw new OutportError("invalid", "bad thread-pool-min/thread-pool-max values");
  }
}
