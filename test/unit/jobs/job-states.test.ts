import { describe, expect, test } from "bun:test";
import { canFollow, isAllowed, type JobVerb } from "../../../src/jobs/job-states.ts";
import type { JobStatus } from "../../../src/qapi/jobs.ts";

/** In the order of the columns below. */
const STATUSES: readonly JobStatus[] = [
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
];

const columns = (test: (status: JobStatus) => boolean) =>
  STATUSES.map((status) => (test(status) ? "1" : "-")).join("");

describe("canFollow()", () => {
  test("knows every transition of QEMU's job state machine but aborting to itself", () => {
    const rows = STATUSES.map((from) => `${from} ${columns((to) => canFollow(from, to))}`);
    expect(rows).toEqual([
      "undefined -1---------",
      "created --1-----1-1",
      "running ---11-1-1--",
      "paused --1--------",
      "ready -----11-1--",
      "standby ----1------",
      "waiting -------11--",
      "pending --------11-",
      "aborting ---------1-",
      "concluded ----------1",
      "null -----------",
    ]);
  });
});

describe("isAllowed()", () => {
  test("knows what users may do where", () => {
    const verbs: JobVerb[] = ["cancel", "pause", "resume", "complete", "finalize", "dismiss"];
    const rows = verbs.map((verb) => `${verb} ${columns((status) => isAllowed(verb, status))}`);
    expect(rows).toEqual([
      "cancel -1111111---",
      "pause -11111-----",
      "resume -11111-----",
      "complete ----1------",
      "finalize -------1---",
      "dismiss ---------1-",
    ]);
  });
});
