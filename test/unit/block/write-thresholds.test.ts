import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { WriteThresholds } from "../../../src/block/write-thresholds.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { FakeIothreads, messageOf } from "../../support/iothread.ts";

let iothreads: FakeIothreads;
let graph: BlockGraph;
let thresholds: WriteThresholds;
let emitted: unknown[];

beforeEach(async () => {
  emitted = [];
  iothreads = new FakeIothreads();
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  thresholds = new WriteThresholds({
    graph,
    iothreads,
    emit: (event, data) => emitted.push([event, data]),
  });
  await graph.blockdevAdd({ driver: "null-co", "node-name": "n" });
});

const exceed = (nodeName: string, writeThreshold: number) =>
  iothreads.emit(MAIN_LOOP, {
    ...{ event: "write-threshold", nodeName, writeThreshold, amountExceeded: 5 },
  });

describe("WriteThresholds", () => {
  test("sets one on the node's iothread, and tells of it once it is exceeded", async () => {
    await thresholds.set("n", 4096);
    expect(iothreads.get(MAIN_LOOP).log.at(-1)).toBe("node-write-threshold");
    expect(graph.find("n")?.writeThreshold).toBe(4096);
    exceed("n", 4096);
    expect(graph.find("n")?.writeThreshold).toBe(0);
    expect(emitted).toEqual([
      [
        "BLOCK_WRITE_THRESHOLD",
        { "node-name": "n", "amount-exceeded": 5, "write-threshold": 4096 },
      ],
    ]);
  });

  test("keeps a newer one when the event of an older one arrives", async () => {
    await thresholds.set("n", 4096);
    await thresholds.set("n", 8192);
    exceed("n", 4096);
    expect(graph.find("n")?.writeThreshold).toBe(8192);
    expect(emitted).toHaveLength(1);
  });

  test("tells of a node that is gone by now", () => {
    exceed("gone", 1);
    expect(emitted).toHaveLength(1);
  });

  test("refuses unknown nodes", async () => {
    expect(await messageOf(thresholds.set("zz", 1))).toBe("Device 'zz' not found");
  });
});
