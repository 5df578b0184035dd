import { describe, expect, test } from "bun:test";
import type { Job, JobWork } from "../../../src/jobs/job.ts";
import { JobTable } from "../../../src/jobs/job-table.ts";

const HOW = { autoFinalize: true, autoDismiss: false };
const turn = () => new Promise<void>((resolve) => setTimeout(resolve, 0));

function makeTable() {
  const events: string[] = [];
  const table = new JobTable({
    emit: (_event, { id, status }) => void events.push(`${id} ${status}`),
    log: () => {},
  });
  return { table, events };
}

const done: JobWork = { type: "create", run: async () => {} };

/** Lasts until it is cancelled. */
const endless = (): JobWork => {
  let end = () => {};
  return {
    type: "create",
    run: (_job: Job) =>
      new Promise((resolve) => {
        end = resolve;
      }),
    cancel: () => end(),
  };
};

describe("JobTable", () => {
  test("refuses names that are none or taken", () => {
    const { table, events } = makeTable();
    for (const id of ["", "1a", "a b", "#a", "a:b"]) {
      expect(() => table.start(id, done, HOW)).toThrow(`Invalid job ID '${id}'`);
    }
    table.start("a.b_c-1", done, HOW);
    expect(() => table.start("a.b_c-1", done, HOW)).toThrow("Job ID 'a.b_c-1' already in use");
    expect(events).toEqual(["a.b_c-1 created", "a.b_c-1 running"]);
  });

  test("lists the newest first, until they are dismissed", async () => {
    const { table } = makeTable();
    table.start("a", done, HOW);
    table.start("b", done, HOW);
    await turn();
    expect(table.query().map(({ id }) => id)).toEqual(["b", "a"]);
    table.apply("dismiss", "b");
    expect(table.query().map(({ id }) => id)).toEqual(["a"]);
    expect(() => table.apply("dismiss", "b")).toThrow("Job not found");
    table.start("b", done, { ...HOW, autoDismiss: true });
    await turn();
    expect(table.query().map(({ id }) => id)).toEqual(["a"]);
  });

  test("close() ends all of them, whatever they do", async () => {
    const { table, events } = makeTable();
    table.start("old", done, HOW);
    table.start("endless", endless(), HOW);
    table.start("resting", endless(), HOW);
    table.start("asked", done, { ...HOW, autoFinalize: false });
    await turn();
    table.apply("pause", "resting");
    events.length = 0;
    await table.close();
    expect(table.query()).toEqual([]);
    expect(events.slice(-4)).toEqual(["asked null", "resting null", "endless null", "old null"]);
    expect(events.filter((event) => event.endsWith("aborting"))).toHaveLength(3);
  });
});
