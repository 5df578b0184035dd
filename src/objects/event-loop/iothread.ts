/**
 * The object kind iothread. Thread: main.
 * Spec: qapi/qom.json IothreadProperties; QEMU iothread.c
 */
import type { IothreadPool } from "../../iothread/pool.ts";
import { int, optional } from "../../qapi/scalars.ts";
import type { ObjectKind, QomType } from "../registry.ts";
import {
  baseDefaults,
  baseMembers,
  type Counts,
  checkCount,
  checkThreadPool,
  countProperty,
  eventLoopBase,
} from "./base.ts";

/** What it needs of the pool of threads. */
export type IothreadStarter = Pick<IothreadPool, "start" | "stop" | "configure">;

const POLL_WEIGHT_MAX = 63;

const members = {
  ...baseMembers,
  "poll-max-ns": optional(int, "Longest busy wait before sleeping, 0 for none (default: 32768)"),
  "poll-grow": optional(int, "Factor by which the busy wait grows (default: 2)"),
  "poll-shrink": optional(int, "Divisor by which it shrinks (default: 2)"),
  "poll-weight": optional(
    int,
    "Weight of the last wait in the busy wait's length; accepted, without effect (default: 3)",
  ),
} as const;

const defaults: Readonly<Counts> = {
  ...baseDefaults,
  "poll-max-ns": 32_768,
  "poll-grow": 2,
  "poll-shrink": 2,
  "poll-weight": 3,
};

/** The order in which QSD looks at them. */
const CHECK_ORDER = [
  "poll-shrink",
  "poll-weight",
  "aio-max-batch",
  "poll-grow",
  "thread-pool-max",
  "thread-pool-min",
  "poll-max-ns",
];

const type: QomType = {
  name: "iothread",
  parent: eventLoopBase,
  properties: ["poll-max-ns", "poll-weight", "poll-grow", "poll-shrink"].map(countProperty),
};

export function iothreadKind(iothreads: IothreadStarter): ObjectKind {
  return {
    name: "iothread",
    members,
    type,
    validate(options) {
      for (const name of CHECK_ORDER) {
        if (options[name] !== undefined) checkProperty(name, options[name] as number);
      }
    },
    async create(id, options) {
      let counts = { ...defaults, ...(options as Counts) };
      checkThreadPool(counts);
      await iothreads.start(id, pollingOf(counts));
      return {
        type,
        get: (name) => counts[name],
        // QSD differs: it keeps values that it refuses together with others.
        async set(name, value) {
          checkProperty(name, value as number);
          const changed = { ...counts, [name]: value as number };
          checkThreadPool(changed);
          if (name.startsWith("poll-")) await iothreads.configure(id, pollingOf(changed));
          counts = changed;
        },
        // QSD differs: it deletes an iothread in use, and crashes later.
        delete: () => iothreads.stop(id),
      };
    },
  };
}

function checkProperty(name: string, value: number): void {
  checkCount(name, value, name === "poll-weight" ? POLL_WEIGHT_MAX : undefined);
}

function pollingOf(counts: Counts) {
  return {
    pollMaxNs: counts["poll-max-ns"] as number,
    pollGrow: counts["poll-grow"] as number,
    pollShrink: counts["poll-shrink"] as number,
  };
}
