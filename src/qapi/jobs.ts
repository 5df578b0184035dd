/** Background jobs and what changes of them. Pure. Spec: qapi/job.json */
import type { InferOutput } from "valibot";
import { doc, enumeration, int, object, optional, str } from "./scalars.ts";

export const jobType = enumeration("JobType", [
  "commit",
  "stream",
  "mirror",
  "backup",
  "create",
  "amend",
  "snapshot-load",
  "snapshot-save",
  "snapshot-delete",
]);
export type JobType = InferOutput<typeof jobType>;

export const jobStatus = enumeration("JobStatus", [
  "undefined",
  "created",
  "running",
  "paused",
  "ready",
  "standby",
  "waiting",
  "pending",
  "aborting",
  "concluded",
  "null",
]);
export type JobStatus = InferOutput<typeof jobStatus>;

export const jobInfo = object("JobInfo", {
  id: doc(str, "Name of the job"),
  type: doc(jobType, "What it does"),
  status: doc(jobStatus, "Where it stands"),
  "current-progress": doc(int, "How much is done, in a unit of its own"),
  "total-progress": doc(int, "How much there is to do, as far as it is known"),
  error: optional(str, "Why it failed"),
});
export type JobInfo = InferOutput<typeof jobInfo>;
