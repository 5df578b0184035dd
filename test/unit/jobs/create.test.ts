import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { PERM_ALL, PERM_RESIZE, PERM_WRITE } from "../../../src/block/node.ts";
import type { ImageCreate, NodeTruncate } from "../../../src/iothread/messages.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { createJob } from "../../../src/jobs/create.ts";
import { Job } from "../../../src/jobs/job.ts";
import { OutportError } from "../../../src/util/error.ts";
import { type FakeIothread, FakeIothreads } from "../../support/iothread.ts";

const MiB = 1024 * 1024;
const IMAGE_BYTES = 3 * 65536 + 8;

let main: FakeIothread;
let iothreads: FakeIothreads;
let graph: BlockGraph;
/** Node and length of each. */
let truncated: [string, number][];
let created: ImageCreate[];
/** Of "image-create": may wait or fail. */
let making: () => Promise<void>;
let cancelled: string[];

beforeEach(async () => {
  truncated = [];
  created = [];
  cancelled = [];
  making = async () => {};
  iothreads = new FakeIothreads("io0");
  main = iothreads.get(MAIN_LOOP);
  for (const thread of iothreads.members.values()) answerCreations(thread);
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  await graph.blockdevAdd({ driver: "file", "node-name": "f", filename: "/f" });
  await graph.blockdevAdd({ driver: "file", "node-name": "d", filename: "/d" });
});

function answerCreations(thread: FakeIothread): void {
  const call = thread.call.bind(thread);
  thread.call = async (name, params) => {
    if (name === "image-create") {
      created.push(params as ImageCreate);
      await making();
      return null as never;
    }
    if (name === "image-create-cancel") cancelled.push((params as { jobId: string }).jobId);
    if (name !== "node-truncate") return call(name, params);
    const { nodeName, bytes, connected } = params as NodeTruncate;
    expect(thread.nodes.get(nodeName)!.used & PERM_RESIZE).toBe(PERM_RESIZE);
    expect(thread.sections.size).toBe(1);
    truncated.push([nodeName, bytes]);
    return connected.map(() => ({ bytes, writable: true, description: {} })) as never;
  };
}

function startJob(options: object): Job {
  const parts = {
    graph,
    iothreads,
    drivers: blockDrivers,
    findSecret: () => undefined,
    servedDevices: () => [7],
  };
  const work = createJob(parts, { driver: "qcow2", file: "f", size: MiB, ...options });
  const job = new Job({
    id: "j",
    work,
    autoFinalize: true,
    autoDismiss: false,
    onStatus: () => {},
  });
  job.start();
  return job;
}

/** What the job says of its failure, or "success". */
async function run(options: object): Promise<string> {
  const job = startJob(options);
  await job.ended;
  const info = job.describe();
  expect(info).toMatchObject({ "current-progress": 1, "total-progress": 1 });
  // Whatever happens, it holds nothing any more.
  for (const { used } of main.nodes.values()) expect(used & (PERM_WRITE | PERM_RESIZE)).toBe(0);
  return info.error ?? "success";
}

describe("blockdev-create", () => {
  test("empties the node, makes it long enough and hands it on", async () => {
    making = async () => {
      const { used, shared } = main.nodes.get("f")!;
      expect([used & PERM_WRITE, shared & PERM_WRITE]).toEqual([PERM_WRITE, 0]);
    };
    expect(await run({ "cluster-size": 65536 })).toBe("success");
    expect(truncated).toEqual([
      ["f", 0],
      ["f", IMAGE_BYTES],
    ]);
    expect(created).toEqual([
      {
        jobId: "j",
        driver: "qcow2",
        options: { size: MiB, "cluster-size": 65536 },
        targets: { file: { nodeName: "f", filename: 'json:{"driver": "file", "filename": "/f"}' } },
        servedDevices: [7],
      },
    ]);
  });

  test("lengthens a data file, and never shortens it", async () => {
    expect(await run({ "data-file": "d", size: 4 * MiB })).toBe("success");
    expect(truncated.slice(2)).toEqual([["d", 4 * MiB]]);
    truncated = [];
    expect(await run({ "data-file": "d", size: MiB })).toBe("success");
    expect(truncated.map(([name]) => name)).toEqual(["f", "f"]);
  });

  test("brings its nodes to one thread", async () => {
    await graph.setIothread("f", "io0", false);
    expect(await run({ "data-file": "d" })).toBe("success");
    expect(graph.find("d")!.iothread.id).toBe("io0");
  });

  test("opens nodes for itself and closes them", async () => {
    const file = { driver: "file", filename: "/new" };
    making = async () => expect(graph.nodes).toHaveLength(3);
    expect(await run({ file })).toBe("success");
    expect(graph.nodes).toHaveLength(2);
    making = () => Promise.reject(new OutportError("io", "no"));
    expect(await run({ file })).toBe("no");
    expect(graph.nodes).toHaveLength(2);
    expect(await run({ file, "data-file": "none" })).toBe(
      "Cannot find device='none' nor node-name='none'",
    );
    expect(graph.nodes).toHaveLength(2);
  });

  test("empties what it could not finish", async () => {
    making = () => Promise.reject(new OutportError("io", "No space left on device"));
    expect(await run({ "data-file": "d" })).toBe("No space left on device");
    expect(truncated.at(-1)).toEqual(["f", 0]);
  });

  test("touches nothing when its options are wrong or somebody is in the way", async () => {
    expect(await run({ size: 1 })).toBe("Image size must be a multiple of 512 bytes");
    expect(await run({ "backing-file": "x".repeat(1024) })).toContain("Could not assign backing");
    await graph.attachRoot(graph.find("f")!, { used: 0, shared: PERM_ALL & ~PERM_RESIZE });
    expect(await run({})).toContain("Permission conflict on node 'f': permissions 'resize'");
    expect(await run({ file: "d", "data-file": "d" })).toContain("Permission conflict on node 'd'");
    expect(truncated).toEqual([]);
    expect(created).toEqual([]);
  });

  test("tells the thread when it is cancelled, and only while it makes something", async () => {
    let fail = (_error: Error) => {};
    making = () =>
      new Promise((_resolve, reject) => {
        fail = reject;
      });
    const job = startJob({});
    while (created.length === 0) await new Promise((resolve) => setTimeout(resolve, 0));
    job.cancel();
    expect(cancelled).toEqual(["j"]);
    fail(new OutportError("io", "Operation canceled"));
    await job.ended;
    const early = startJob({});
    early.cancel();
    await early.ended;
    expect(early.describe().error).toBe("Operation canceled");
    expect([cancelled, created.length]).toEqual([["j"], 1]);
  });
});
