/**
 * A background job from its creation to its dismissal, whatever it does. Thread: main.
 * Spec: qapi/job.json JobStatus; QEMU job.c
 */
import type { JobInfo, JobStatus, JobType } from "../qapi/jobs.ts";
import { ECANCELED, strerror } from "../runtime/errno.ts";
import { assert, OutportError } from "../util/error.ts";
import { canFollow, isAllowed, type JobVerb } from "./job-states.ts";

/** What a job does. */
export interface JobWork {
  readonly type: JobType;
  /** Does it. Throws OutportError: the job has failed then, in these words. */
  run(job: Job): Promise<void>;
  /** The job is to end early: run() ends soon, if it can. */
  cancel?(): void;
  /** A ready job is to end by itself: run() ends soon. Missing: nobody can ask for that. */
  complete?(): void;
}

export interface JobParts {
  readonly id: string;
  readonly work: JobWork;
  /** It concludes by itself when its work is done; otherwise job-finalize says when. */
  readonly autoFinalize: boolean;
  /** Nobody needs to look at its end. */
  readonly autoDismiss: boolean;
  readonly onStatus: (job: Job, status: JobStatus) => void;
}

export class Job {
  readonly id: string;
  /** It has concluded; never rejects. */
  readonly ended: Promise<void>;
  #parts: JobParts;
  #work: JobWork;
  #status: JobStatus = "undefined";
  #doneCount = 0;
  #totalCount = 0;
  #error: string | undefined;
  #isCancelled = false;
  #isPaused = false;
  /** The work waits in pausePoint(). */
  #wake: (() => void) | null = null;
  #end: () => void = () => {};

  constructor(parts: JobParts) {
    this.id = parts.id;
    this.#parts = parts;
    this.#work = parts.work;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#become("created");
  }

  get status(): JobStatus {
    return this.#status;
  }

  describe(): JobInfo {
    return {
      id: this.id,
      type: this.#work.type,
      status: this.#status,
      "current-progress": this.#doneCount,
      "total-progress": this.#totalCount,
      ...(this.#error === undefined ? {} : { error: this.#error }),
    };
  }

  start(): void {
    this.#become("running");
    void this.#run();
  }

  // For its work.

  get isCancelled(): boolean {
    return this.#isCancelled;
  }

  /** So much more is to be done. */
  setRemaining(count: number): void {
    this.#totalCount = this.#doneCount + count;
  }

  advance(count: number): void {
    this.#doneCount += count;
  }

  /** Waits here while the user has paused it. */
  async pausePoint(): Promise<void> {
    while (this.#isPaused && !this.#isCancelled) {
      const before = this.#status;
      this.#become(before === "ready" ? "standby" : "paused");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#become(before);
    }
  }

  /** From here on it goes on until the user completes or cancels it. */
  becomeReady(): void {
    this.#become("ready");
  }

  // For users. Each throws OutportError in QSD's words.

  pause(): void {
    this.#check("pause");
    if (this.#isPaused) throw new OutportError("invalid", "Job is already paused");
    this.#isPaused = true;
  }

  resume(): void {
    if (!this.#isPaused) {
      throw new OutportError("invalid", "Can't resume a job that was not paused");
    }
    this.#check("resume");
    this.#isPaused = false;
    this.#wakeUp();
  }

  complete(): void {
    this.#check("complete");
    if (this.#isCancelled || this.#work.complete === undefined) {
      const message = `The active block job '${this.id}' cannot be completed`;
      throw new OutportError("unsupported", message);
    }
    this.#work.complete();
  }

  cancel(): void {
    this.#check("cancel");
    const isFirst = !this.#isCancelled;
    this.#isCancelled = true;
    this.#isPaused = false;
    this.#wakeUp();
    // Otherwise run() is on its way to abort().
    if (this.#status === "created" || this.#status === "pending") this.#abort();
    else if (isFirst) this.#work.cancel?.();
  }

  finalize(): void {
    this.#check("finalize");
    this.#conclude();
  }

  dismiss(): void {
    this.#check("dismiss");
    this.#become("null");
  }

  async #run(): Promise<void> {
    try {
      await this.pausePoint();
      if (!this.#isCancelled) await this.#work.run(this);
    } catch (error) {
      if (!(error instanceof OutportError)) throw error;
      this.#error = error.message;
    }
    if (this.#error !== undefined || this.#isCancelled) {
      this.#abort();
      return;
    }
    this.#become("waiting");
    this.#become("pending");
    if (this.#parts.autoFinalize) this.#conclude();
  }

  #abort(): void {
    this.#error ??= strerror(ECANCELED);
    this.#become("aborting");
    this.#conclude();
  }

  #conclude(): void {
    this.#become("concluded");
    this.#end();
    if (this.#parts.autoDismiss) this.dismiss();
  }

  #wakeUp(): void {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }

  #check(verb: JobVerb): void {
    if (isAllowed(verb, this.#status)) return;
    const where = `Job '${this.id}' in state '${this.#status}'`;
    throw new OutportError("invalid", `${where} cannot accept command verb '${verb}'`);
  }

  #become(status: JobStatus): void {
    assert(canFollow(this.#status, status), `a job goes from ${this.#status} to ${status}`);
    this.#status = status;
    this.#parts.onStatus(this, status);
  }
}
