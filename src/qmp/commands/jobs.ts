/** Commands on background jobs, and the one that makes images. Thread: main. Spec: qapi/job.json */
import type { GenericSchema } from "valibot";
import type { BlockDriver } from "../../block/driver.ts";
import type { JobVerb } from "../../jobs/job-states.ts";
import { defineCommand, defineEvent } from "../../qapi/define.ts";
import { type JobInfo, jobInfo, jobStatus } from "../../qapi/jobs.ts";
import {
  alternate,
  arrayOf,
  doc,
  enumeration,
  nothing,
  object,
  optional,
  str,
  union,
} from "../../qapi/scalars.ts";
import type { AnyCommand, ObjectMembers } from "../../qapi/types.ts";
import { blockdevOptions, withChildren } from "./blockdev-options.ts";

type Wire = Readonly<Record<string, unknown>>;

export interface JobParts {
  readonly jobs: {
    query(): JobInfo[];
    apply(verb: JobVerb, id: string): void;
  };
  /** Starts a job. `options`: BlockdevCreateOptions, wire names, checked. */
  readonly createImage: (jobId: string, options: Wire) => void;
  readonly drivers: readonly BlockDriver[];
}

export const jobEvents = [
  defineEvent({
    name: "JOB_STATUS_CHANGE",
    documentation: "A job stands elsewhere now.",
    data: object("q_obj_JOB_STATUS_CHANGE-arg", {
      id: doc(str, "Name of the job"),
      status: doc(jobStatus, "Where it stands"),
    }),
  }),
] as const;

export function jobCommands({ jobs, createImage, drivers }: JobParts): readonly AnyCommand[] {
  const simple = (verb: JobVerb, documentation: string): AnyCommand =>
    defineCommand({
      name: `job-${verb}`,
      documentation,
      errors: ["There is no such job", "It can't be done where the job stands"],
      arguments: object(`q_obj_job-${verb}-arg`, { id: doc(str, "Name of the job") }),
      returns: nothing,
      handler({ id }) {
        jobs.apply(verb, id);
        return {};
      },
    });
  return [
    defineCommand({
      name: "query-jobs",
      documentation: "Facts about every job, the newest first.",
      errors: [],
      arguments: nothing,
      returns: arrayOf(jobInfo),
      handler: () => jobs.query(),
    }),
    simple("pause", "Has a job rest as soon as it can."),
    simple("resume", "Has a paused job go on."),
    simple("cancel", "Has a job end as soon as it can, without what it was to do."),
    simple("complete", "Has a job that is ready finish what it does."),
    simple("finalize", "Has a job that waits for it conclude."),
    simple("dismiss", "Forgets a job that has concluded."),
    defineCommand({
      name: "blockdev-create",
      documentation: "Makes an image, as a job that has to be dismissed when it has concluded.",
      errors: ["The name of the job is taken or none"],
      arguments: object("q_obj_blockdev-create-arg", {
        "job-id": doc(str, "Name of the new job"),
        options: doc(createOptions(drivers), "What is to be made"),
      }),
      returns: nothing,
      handler({ "job-id": jobId, options }) {
        createImage(jobId, options);
        return {};
      },
    }),
  ];
}

function createOptions(drivers: readonly BlockDriver[]): GenericSchema<unknown, Wire> {
  const driverName = enumeration(
    "BlockdevDriver",
    drivers.map(({ name }) => name),
  );
  const reference = alternate("BlockdevRef", [blockdevOptions(drivers), str]);
  const branch = ({ creation }: BlockDriver): ObjectMembers =>
    withChildren(
      creation?.nodes ?? [],
      creation?.members(driverName) ?? {},
      ({ optional: mayMiss }) => (mayMiss ? optional(reference, NODE) : doc(reference, NODE)),
    );
  // QSD differs: it lists all drivers, and has another error for those that make no images.
  const makers = drivers.filter(({ creation }) => creation !== undefined);
  const makerName = enumeration(
    "BlockdevCreateDriver",
    makers.map(({ name }) => name),
  );
  const options: GenericSchema = union("BlockdevCreateOptions", {
    base: { driver: doc(makerName, "Block driver") },
    tag: "driver",
    branches: Object.fromEntries(makers.map((driver) => [driver.name, branch(driver)])),
  });
  return options as GenericSchema<unknown, Wire>;
}

const NODE = "Node that it is made on: the name of one that exists, or its definition";
