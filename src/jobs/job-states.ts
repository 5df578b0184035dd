/** Where a job may go from where it stands, and what users may do with it there. Pure. */
import type { JobStatus } from "../qapi/jobs.ts";

/** What users do with jobs. */
export type JobVerb = "cancel" | "pause" | "resume" | "complete" | "finalize" | "dismiss";

const NEXT: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  undefined: ["created"],
  created: ["running", "aborting", "null"],
  running: ["paused", "ready", "waiting", "aborting"],
  paused: ["running"],
  ready: ["standby", "waiting", "aborting"],
  standby: ["ready"],
  waiting: ["pending", "aborting"],
  pending: ["aborting", "concluded"],
  aborting: ["concluded"],
  concluded: ["null"],
  null: [],
};

const ALIVE: readonly JobStatus[] = ["created", "running", "paused", "ready", "standby"];

const VERBS: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  cancel: [...ALIVE, "waiting", "pending"],
  pause: ALIVE,
  resume: ALIVE,
  complete: ["ready"],
  finalize: ["pending"],
  dismiss: ["concluded"],
};

export function canFollow(status: JobStatus, next: JobStatus): boolean {
  return NEXT[status].includes(next);
}

export function isAllowed(verb: JobVerb, status: JobStatus): boolean {
  return VERBS[verb].includes(status);
}
