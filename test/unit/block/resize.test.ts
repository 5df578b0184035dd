import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE } from "../../../src/block/node.ts";
import { resizeNode, serveResizeRequests } from "../../../src/block/resize.ts";
import type { NodeTruncate } from "../../../src/iothread/messages.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { OutportError } from "../../../src/util/error.ts";
import { type FakeIothread, FakeIothreads, messageOf } from "../../support/iothread.ts";

let main: FakeIothread;
let iothreads: FakeIothreads;
let graph: BlockGraph;
let truncated: NodeTruncate[];
/** Of "node-resized". */
let answers: unknown[];
let failure: OutportError | null;

beforeEach(async () => {
  truncated = [];
  answers = [];
  failure = null;
  iothreads = new FakeIothreads();
  main = iothreads.get(MAIN_LOOP);
  const call = main.call.bind(main);
  main.call = async (name, params) => {
    if (name === "node-resized") answers.push(params);
    if (name !== "node-truncate") return call(name, params);
    const wanted = params as NodeTruncate;
    truncated.push(wanted);
    // Nothing is in flight, and nobody else may do the same.
    expect(main.sections.size).toBe(1);
    expect(main.nodes.get(wanted.nodeName)!.used & PERM_RESIZE).toBe(PERM_RESIZE);
    if (failure !== null) throw failure;
    const info = { bytes: wanted.bytes, writable: true, description: {} };
    return wanted.connected.map(() => info) as never;
  };
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  await graph.blockdevAdd({ driver: "file", "node-name": "f", filename: "/disk" });
  await graph.blockdevAdd({ driver: "raw", "node-name": "r", file: "f" });
  await graph.blockdevAdd({ driver: "raw", "node-name": "r2", file: "f" });
});

const resize = (nodeName: string, size: number) =>
  resizeNode(graph, { "node-name": nodeName, size });

/** What is left when nobody resizes. */
function expectNothingHeld(): void {
  expect(main.sections.size).toBe(0);
  for (const { used } of main.nodes.values()) expect(used & PERM_RESIZE).toBe(0);
}

describe("resizeNode()", () => {
  test("truncates in a drained section, and all lengths follow", async () => {
    await resize("r", 4096);
    expect(truncated).toEqual([{ nodeName: "r", bytes: 4096, connected: ["f", "r", "r2"] }]);
    for (const name of ["f", "r", "r2"]) expect(graph.find(name)?.info.bytes).toBe(4096);
    expectNothingHeld();
  });

  test("leaves all as it was when the node can't", async () => {
    const before = graph.find("r")!.info;
    failure = new OutportError("io", "Could not resize file: File too large");
    expect(await messageOf(resize("r", 4096))).toBe(failure.message);
    expect(graph.find("r")!.info).toBe(before);
    expectNothingHeld();
  });

  test("refuses unknown nodes before sizes, and sizes before conflicts", async () => {
    const shared = PERM_ALL & ~PERM_RESIZE;
    await graph.attachRoot(graph.find("r")!, { used: PERM_CONSISTENT_READ, shared });
    expect(await messageOf(resizeNode(graph, { device: "d", "node-name": "z", size: -1 }))).toBe(
      "Cannot find device='d' nor node-name='z'",
    );
    expect(await messageOf(resizeNode(graph, { size: 1 }))).toBe(
      "Cannot find device='' nor node-name=''",
    );
    expect(await messageOf(resize("r", -1))).toBe("Parameter 'size' expects a >0 size");
    expect(await messageOf(resize("r", 1))).toMatch(/^Permission conflict on node 'r': /);
    expect(await messageOf(resize("r2", 1))).toMatch(/^Permission conflict on node 'f': /);
    expect(truncated).toEqual([]);
    expectNothingHeld();
  });
});

describe("serveResizeRequests()", () => {
  const ask = (nodeName: string, bytes: number, atLeast: boolean) =>
    iothreads.emit(main.id, { event: "node-resize", request: 5, nodeName, bytes, atLeast });

  /** What the thread hears. */
  async function answered(): Promise<unknown> {
    for (;;) {
      const answer = answers.pop();
      if (answer !== undefined) return answer;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  beforeEach(async () => {
    const { used, shared } = { used: PERM_CONSISTENT_READ | PERM_RESIZE, shared: PERM_ALL };
    await graph.attachRoot(graph.find("r")!, { used, shared });
    serveResizeRequests(graph, iothreads);
  });

  test("truncates in a drained section, and all lengths follow", async () => {
    ask("r", 4096, false);
    expect(await answered()).toEqual({ request: 5, result: 0 });
    const connected = ["f", "r", "r2"];
    expect(truncated).toEqual([{ nodeName: "r", bytes: 4096, connected }]);
    for (const name of connected) expect(graph.find(name)?.info.bytes).toBe(4096);
    ask("r", 8192, true);
    await answered();
    expect(truncated[1]).toEqual({ nodeName: "r", bytes: 8192, atLeast: true, connected });
    expect(main.sections.size).toBe(0);
  });

  test("answers what it fails with, and that a node is gone", async () => {
    failure = new OutportError("unsupported", "Cannot grow device files");
    ask("r", 4096, true);
    expect(await answered()).toEqual({ request: 5, result: -95 });
    failure = new OutportError("io", "no");
    ask("r", 4096, true);
    expect(await answered()).toEqual({ request: 5, result: -5 });
    ask("z", 4096, true);
    expect(await answered()).toEqual({ request: 5, result: -5 });
    expect(main.sections.size).toBe(0);
    // Those who may have gone on to another node.
    const before = truncated.length;
    ask("r2", 4096, true);
    expect(await answered()).toEqual({ request: 5, result: -116 });
    expect(truncated.length).toBe(before);
  });
});
