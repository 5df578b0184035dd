/**
 * What iothread and main-loop have in common: properties that are counts in a range. Thread: main.
 * Spec: qapi/qom.json EventLoopBaseProperties; QEMU util/event-loop-base.c
 */
import { int, optional } from "../../qapi/scalars.ts";
import { OutportError } from "../../util/error.ts";
import type { QomProperty, QomType } from "../registry.ts";

export type Counts = Record<string, number>;

/** Largest value where no other is said: an int64's. */
const INT64_MAX = "9223372036854775807";
const INT_MAX = 2 ** 31 - 1;

export const baseMembers = {
  "aio-max-batch": optional(int, "Requests per batch; accepted, without effect (default: 0)"),
  "thread-pool-min": optional(
    int,
    "Threads kept for blocking calls; accepted, without effect (default: 0)",
  ),
  "thread-pool-max": optional(
    int,
    "Most threads for blocking calls; accepted, without effect (default: 64)",
  ),
} as const;

export const baseDefaults: Readonly<Counts> = {
  "aio-max-batch": 0,
  "thread-pool-min": 0,
  "thread-pool-max": 64,
};

export const countProperty = (name: string): QomProperty => ({ name, type: "int", schema: int });

export const eventLoopBase: QomType = {
  name: "event-loop-base",
  abstract: true,
  userCreatable: true,
  properties: ["thread-pool-min", "aio-max-batch", "thread-pool-max"].map(countProperty),
};

/** `max`: the largest value, when it is less than an int64 holds. */
export function checkCount(name: string, value: number, max?: number): void {
  if (value >= 0 && (max === undefined || value <= max)) return;
  throw new OutportError("invalid", `${name} value must be in range [0, ${max ?? INT64_MAX}]`);
}

/** Checks what properties mean together. */
export function checkThreadPool(counts: Readonly<Counts>): void {
  const min = counts["thread-pool-min"] as number;
  const max = counts["thread-pool-max"] as number;
  if (min > max || max === 0 || max > INT_MAX) {
    throw new OutportError("invalid", "bad thread-pool-min/thread-pool-max values");
  }
}
