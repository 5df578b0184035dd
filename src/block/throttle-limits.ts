/**
 * The limits of a throttle group: names, defaults, what goes together. Pure. Thread: main.
 * Spec: qapi/block-core.json ThrottleLimits; QEMU util/throttle.c
 */
import { int, object, optional } from "../qapi/scalars.ts";
import { OutportError } from "../util/error.ts";

/** Each has a rate per second (0: no limit), a burst rate (-max), a burst length (-max-length). */
export const BUCKETS = [
  "bps-total",
  "bps-read",
  "bps-write",
  "iops-total",
  "iops-read",
  "iops-write",
] as const;
export type Bucket = (typeof BUCKETS)[number];
export type LimitName = Bucket | `${Bucket}-max` | `${Bucket}-max-length` | "iops-size";
export type ThrottleLimits = Readonly<Record<LimitName, number>>;

/** As their schema has them, and the order of their checks. */
export const LIMIT_NAMES: readonly LimitName[] = [
  ...[...BUCKETS.slice(3), ...BUCKETS.slice(0, 3)].flatMap(
    (bucket) => [bucket, `${bucket}-max`, `${bucket}-max-length`] as const,
  ),
  "iops-size",
];

export const throttleLimits = object("ThrottleLimits", {
  "iops-total": optional(int, "Operations per second"),
  "iops-total-max": optional(int, "Operations per second in a burst"),
  "iops-total-max-length": optional(int, "Longest burst in seconds (default: 1)"),
  "iops-read": optional(int, "Reads per second"),
  "iops-read-max": optional(int, "Reads per second in a burst"),
  "iops-read-max-length": optional(int, "Longest burst in seconds (default: 1)"),
  "iops-write": optional(int, "Writes per second"),
  "iops-write-max": optional(int, "Writes per second in a burst"),
  "iops-write-max-length": optional(int, "Longest burst in seconds (default: 1)"),
  "bps-total": optional(int, "Bytes per second"),
  "bps-total-max": optional(int, "Bytes per second in a burst"),
  "bps-total-max-length": optional(int, "Longest burst in seconds (default: 1)"),
  "bps-read": optional(int, "Bytes read per second"),
  "bps-read-max": optional(int, "Bytes read per second in a burst"),
  "bps-read-max-length": optional(int, "Longest burst in seconds (default: 1)"),
  "bps-write": optional(int, "Bytes written per second"),
  "bps-write-max": optional(int, "Bytes written per second in a burst"),
  "bps-write-max-length": optional(int, "Longest burst in seconds (default: 1)"),
  "iops-size": optional(int, "Larger requests count as several of this size, in bytes"),
});

const VALUE_MAX = 1_000_000_000_000_000;
export const BURST_SECONDS_MAX = 2 ** 32 - 1;

export const NO_LIMITS: ThrottleLimits = Object.fromEntries(
  LIMIT_NAMES.map((name) => [name, name.endsWith("-length") ? 1 : 0]),
) as Record<LimitName, number>;

/** `limits` with those of `changes` instead of its own. Throws OutportError in QSD's words. */
export function mergeLimits(
  limits: ThrottleLimits,
  changes: Readonly<Partial<Record<LimitName, number>>>,
): ThrottleLimits {
  const merged = { ...limits };
  for (const [name, value] of Object.entries(changes) as [LimitName, number][]) {
    if (value === undefined) continue;
    if (name.endsWith("-length") && value > BURST_SECONDS_MAX) {
      fail(`${name} value must be in the range [0, ${BURST_SECONDS_MAX}]`);
    }
    // QEMU keeps burst lengths as unsigned 32-bit numbers.
    merged[name] = name.endsWith("-length") ? value >>> 0 : value;
  }
  checkLimits(merged);
  return merged;
}

function checkLimits(limits: ThrottleLimits): void {
  const clash = (kind: "bps" | "iops", suffix: "" | "-max"): boolean =>
    limits[`${kind}-total${suffix}`] !== 0 &&
    (limits[`${kind}-read${suffix}`] !== 0 || limits[`${kind}-write${suffix}`] !== 0);
  if (clash("bps", "") || clash("iops", "") || clash("bps", "-max") || clash("iops", "-max")) {
    fail("bps/iops/max total values and read/write values cannot be used at the same time");
  }
  const hasIops = limits["iops-total"] || limits["iops-read"] || limits["iops-write"];
  if (limits["iops-size"] !== 0 && !hasIops) fail("iops size requires an iops value to be set");
  for (const bucket of BUCKETS) checkBucket(limits, bucket);
}

function checkBucket(limits: ThrottleLimits, bucket: Bucket): void {
  const rate = limits[bucket];
  const max = limits[`${bucket}-max`];
  const length = limits[`${bucket}-max-length`];
  const isInRange = (value: number): boolean => value >= 0 && value <= VALUE_MAX;
  if (!isInRange(rate) || !isInRange(max)) {
    fail(`bps/iops/max values must be within [0, ${VALUE_MAX}]`);
  }
  if (length === 0) fail("the burst length cannot be 0");
  if (length > 1 && max === 0) fail("burst length set without burst rate");
  if (max !== 0 && length > Math.floor(VALUE_MAX / max)) {
    fail("burst length too high for this burst rate");
  }
  if (max !== 0 && rate === 0) fail("bps_max/iops_max require corresponding bps/iops values");
  if (max !== 0 && max < rate) fail("bps_max/iops_max cannot be lower than bps/iops");
}

function fail(message: string): never {
  throw new OutportError("invalid", message);
}
