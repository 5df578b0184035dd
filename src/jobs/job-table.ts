/** The jobs of the process, by name. Thread: main. Spec: qapi/job.json; QEMU job.c, job-qmp.c */
import { isWellformedId } from "../block/catalogue.ts";
import type { JobInfo, JobStatus } from "../qapi/jobs.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { Job, type JobWork } from "./job.ts";
import { isAllowed, type JobVerb } from "./job-states.ts";

export interface JobTableParts {
  readonly emit: (
    event: "JOB_STATUS_CHANGE",
    data: { readonly id: string; readonly status: JobStatus },
  ) => void;
  readonly log: Log;
}

export interface JobOptions {
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
}

export class JobTable {
  #parts: JobTableParts;
  /** The oldest first. */
  #jobs = new Map<string, Job>();

  constructor(parts: JobTableParts) {
    this.#parts = parts;
  }

  /** A job that runs when it returns. Throws OutportError. */
  start(id: string, work: JobWork, options: JobOptions): void {
    if (!isWellformedId(id)) throw new OutportError("invalid", `Invalid job ID '${id}'`);
    if (this.#jobs.has(id)) throw new OutportError("in-use", `Job ID '${id}' already in use`);
    const onStatus = (job: Job, status: JobStatus): void => this.#changed(job, status);
    const job = new Job({ id, work, ...options, onStatus });
    this.#jobs.set(id, job);
    job.start();
  }

  /** The newest first. */
  query(): JobInfo[] {
    return [...this.#jobs.values()].reverse().map((job) => job.describe());
  }

  /** Throws OutportError. */
  apply(verb: JobVerb, id: string): void {
    const job = this.#jobs.get(id);
    if (job === undefined) throw new OutportError("not-found", "Job not found");
    job[verb]();
  }

  /** Ends all, the newest first, and forgets them. */
  async close(): Promise<void> {
    const jobs = [...this.#jobs.values()].reverse();
    for (const job of jobs) if (isAllowed("cancel", job.status)) job.cancel();
    for (const job of jobs) {
      await job.ended;
      if (isAllowed("dismiss", job.status)) job.dismiss();
    }
  }

  #changed(job: Job, status: JobStatus): void {
    const { id } = job;
    if (status === "null") this.#jobs.delete(id);
    this.#parts.log("info", "job status", { job: id, status });
    this.#parts.emit("JOB_STATUS_CHANGE", { id, status });
  }
}
