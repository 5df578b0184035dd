import { describe, expect, test } from "bun:test";
import { Job, type JobWork } from "../../../src/jobs/job.ts";
import type { JobVerb } from "../../../src/jobs/job-states.ts";
import { OutportError } from "../../../src/util/error.ts";

const turn = () => new Promise<void>((resolve) => setTimeout(resolve, 0));

interface Options {
  readonly autoFinalize?: boolean;
  readonly autoDismiss?: boolean;
  readonly work?: Partial<JobWork>;
}

/** A job whose work lasts until it is told to end, or to fail with a message. */
function makeJob({ autoFinalize = true, autoDismiss = false, work = {} }: Options = {}) {
  const log: string[] = [];
  let end: (error?: Error) => void = () => {};
  const waits: JobWork = {
    type: "create",
    run: () =>
      new Promise((resolve, reject) => {
        end = (error) => (error === undefined ? resolve() : reject(error));
      }),
    ...work,
  };
  const onStatus = (_job: Job, status: string) => void log.push(status);
  const job = new Job({ id: "j", work: waits, autoFinalize, autoDismiss, onStatus });
  const finish = async (error?: Error) => {
    end(error);
    await turn();
  };
  return { job, log, finish };
}

const failure = (action: () => void): string => {
  try {
    action();
    return "success";
  } catch (error) {
    return (error as OutportError).message;
  }
};

describe("a job", () => {
  test("goes through all states of success", async () => {
    const { job, log, finish } = makeJob();
    job.start();
    await turn();
    job.setRemaining(2);
    job.advance(1);
    expect(job.describe()).toEqual({
      id: "j",
      type: "create",
      status: "running",
      "current-progress": 1,
      "total-progress": 2,
    });
    await finish();
    expect(log).toEqual(["created", "running", "waiting", "pending", "concluded"]);
    await job.ended;
    job.dismiss();
    expect(log.at(-1)).toBe("null");
    expect(job.describe().error).toBe(undefined);
  });

  test("tells why it failed", async () => {
    const { job, log, finish } = makeJob();
    job.start();
    await turn();
    await finish(new OutportError("io", "No space left on device"));
    expect(log).toEqual(["created", "running", "aborting", "concluded"]);
    expect(job.describe().error).toBe("No space left on device");
  });

  test("waits for job-finalize where it was told to", async () => {
    const { job, log, finish } = makeJob({ autoFinalize: false, autoDismiss: true });
    job.start();
    await turn();
    await finish();
    expect(job.status).toBe("pending");
    job.finalize();
    expect(log).toEqual(["created", "running", "waiting", "pending", "concluded", "null"]);
  });

  test("ends when it is cancelled while it waits for job-finalize", async () => {
    const { job, log, finish } = makeJob({ autoFinalize: false });
    job.start();
    await turn();
    await finish();
    job.cancel();
    expect(log.slice(4)).toEqual(["aborting", "concluded"]);
    expect(job.describe().error).toBe("Operation canceled");
  });

  test("ends when it is cancelled before it starts", () => {
    const { job, log } = makeJob();
    job.cancel();
    expect(log).toEqual(["created", "aborting", "concluded"]);
  });

  test("tells its work once that it is cancelled, and fails even if that succeeds", async () => {
    let told = 0;
    const { job, log, finish } = makeJob({ work: { cancel: () => void told++ } });
    job.start();
    await turn();
    job.cancel();
    job.cancel();
    expect([told, job.isCancelled, job.status]).toEqual([1, true, "running"]);
    await finish();
    expect(log.slice(2)).toEqual(["aborting", "concluded"]);
    expect(job.describe().error).toBe("Operation canceled");
  });

  test("rests at its pause points, running or ready", async () => {
    const steps: string[] = [];
    const run = async (job: Job) => {
      await job.pausePoint();
      steps.push("first");
      job.becomeReady();
      job.pause();
      await job.pausePoint();
      steps.push("second");
    };
    const { job, log } = makeJob({ work: { run } });
    job.pause();
    job.start();
    await turn();
    expect([job.status, steps]).toEqual(["paused", []]);
    job.resume();
    await turn();
    expect([job.status, steps]).toEqual(["standby", ["first"]]);
    job.resume();
    await turn();
    expect(steps).toEqual(["first", "second"]);
    expect(log).toEqual([
      ...["created", "running", "paused", "running", "ready", "standby", "ready"],
      ...["waiting", "pending", "concluded"],
    ]);
  });

  test("wakes up to be cancelled", async () => {
    const { job, log } = makeJob();
    job.pause();
    job.start();
    await turn();
    job.cancel();
    await turn();
    expect(log.slice(2)).toEqual(["paused", "running", "aborting", "concluded"]);
  });

  test("is completed by hand only when it is ready and its work can", async () => {
    let told = 0;
    const run = async (job: Job) => {
      job.becomeReady();
      await new Promise(() => {});
    };
    const able = makeJob({ work: { run, complete: () => void told++ } });
    able.job.start();
    await turn();
    able.job.complete();
    expect(told).toBe(1);
    able.job.cancel();
    const cannot = "The active block job 'j' cannot be completed";
    expect(failure(() => able.job.complete())).toBe(cannot);
    const unable = makeJob({ work: { run } });
    unable.job.start();
    await turn();
    expect(failure(() => unable.job.complete())).toBe(cannot);
  });

  test("refuses what its state does not allow", async () => {
    const { job, finish } = makeJob();
    job.start();
    await turn();
    for (const verb of ["complete", "finalize", "dismiss"] as const) {
      const message = `Job 'j' in state 'running' cannot accept command verb '${verb}'`;
      expect(failure(() => job[verb]())).toBe(message);
    }
    job.pause();
    expect(failure(() => job.pause())).toBe("Job is already paused");
    await finish();
    const verbs: JobVerb[] = ["cancel", "pause", "resume", "complete", "finalize"];
    for (const verb of verbs) {
      const message = `Job 'j' in state 'concluded' cannot accept command verb '${verb}'`;
      expect(failure(() => job[verb]())).toBe(message);
    }
  });

  test("can be resumed only after a pause", () => {
    const { job } = makeJob();
    expect(failure(() => job.resume())).toBe("Can't resume a job that was not paused");
  });
});
