/**
 * The object kind throttle-group. Its buckets are shared with the nodes on all threads.
 * Thread: main. Spec: qapi/qom.json ThrottleGroupProperties; QEMU block/throttle-groups.c
 */
import { ThrottleGroup } from "../block/throttle-group.ts";
import {
  BURST_SECONDS_MAX,
  LIMIT_NAMES,
  type LimitName,
  mergeLimits,
  NO_LIMITS,
  type ThrottleLimits,
  throttleLimits,
} from "../block/throttle-limits.ts";
import { any, int, optional } from "../qapi/scalars.ts";
import type { ObjectMembers } from "../qapi/types.ts";
import type { Linux } from "../runtime/linux.ts";
import { OutportError } from "../util/error.ts";
import type { ObjectKind, QomType, UserObject } from "./registry.ts";

type Wire = Readonly<Record<string, unknown>>;
type Limits = Readonly<Partial<Record<LimitName, number>>>;

/** The clock that all threads share. */
export type ThrottleClock = Pick<Linux, "monotonicNs">;

/** Each limit is a property of its own, too, that only creation can set. */
const PREFIX = "x-";

const members: ObjectMembers = {
  limits: optional(throttleLimits, "Limits of the group"),
  ...Object.fromEntries(
    LIMIT_NAMES.map((name) => [
      PREFIX + name,
      optional(int, `The same as ${name} of limits, and before it`, ["unstable"]),
    ]),
  ),
};

/** In the order of QSD's lists. */
const PROPERTIES = [
  "x-bps-write-max-length",
  "x-iops-total-max-length",
  "x-iops-size",
  "limits",
  "x-bps-total",
  "x-iops-read-max-length",
  "x-bps-write",
  "x-iops-write-max-length",
  "x-bps-read-max",
  "x-iops-read-max",
  "x-bps-total-max",
  "x-bps-read-max-length",
  "x-iops-read",
  "x-bps-read",
  "x-bps-write-max",
  "x-iops-total-max",
  "x-iops-total",
  "x-iops-write",
  "x-bps-total-max-length",
  "x-iops-write-max",
];

const type: QomType = {
  name: "throttle-group",
  userCreatable: true,
  properties: PROPERTIES.map((name) =>
    name === "limits"
      ? { name, type: "ThrottleLimits", schema: throttleLimits }
      : { name, type: "int", schema: any },
  ),
};

export function throttleGroupKind(clock: ThrottleClock): ObjectKind {
  return {
    name: "throttle-group",
    members,
    type,
    validate(options) {
      checkSingleLimits(options);
      if (options.limits !== undefined) initialLimits(options);
    },
    async create(id, options) {
      const group = new ThrottleGroup();
      const limits = initialLimits(options);
      group.configure(limits, clock.monotonicNs());
      return userObject(id, group, limits, clock);
    },
  };
}

function userObject(
  id: string,
  group: ThrottleGroup,
  initial: ThrottleLimits,
  clock: ThrottleClock,
): UserObject {
  let limits = initial;
  return {
    type,
    throttleGroup: group.shared,
    get: (name) =>
      name === "limits" ? { ...limits } : limits[name.slice(PREFIX.length) as LimitName],
    set(name, value) {
      if (name !== "limits") fail("Property cannot be set after initialization");
      limits = mergeLimits(limits, value as Limits);
      group.configure(limits, clock.monotonicNs());
    },
    async delete() {
      if (group.close()) return;
      fail(`Cannot delete throttle group '${id}' with active references`, "in-use");
    },
  };
}

/** Each for itself. */
function checkSingleLimits(options: Wire): void {
  for (const name of LIMIT_NAMES) {
    const value = options[PREFIX + name] as number | undefined;
    if (value === undefined) continue;
    if (value < 0) fail("Property values cannot be negative");
    if (name.endsWith("-length") && value > BURST_SECONDS_MAX) {
      // QSD's words, without a space as there.
      fail(`${PREFIX}${name} value must be in therange [0, ${BURST_SECONDS_MAX}]`);
    }
  }
}

/** Single properties go before what `limits` says. */
function initialLimits(options: Wire): ThrottleLimits {
  const given: Partial<Record<LimitName, number>> = { ...(options.limits as Limits) };
  for (const name of LIMIT_NAMES) {
    const value = options[PREFIX + name] as number | undefined;
    if (value !== undefined) given[name] = value;
  }
  return mergeLimits(NO_LIMITS, given);
}

function fail(message: string, kind: "invalid" | "in-use" = "invalid"): never {
  throw new OutportError(kind, message);
}
