import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../../src/block/graph.ts";
import { BitmapHolds, bitmapRequests } from "../../../../src/exports/nbd/bitmap-requests.ts";
import { FakeIothreads, messageOf } from "../../../support/iothread.ts";

let graph: BlockGraph;
const node = (name: string) => graph.find(name)!;

beforeEach(async () => {
  graph = new BlockGraph({ drivers: blockDrivers, iothreads: new FakeIothreads("io0") });
  await graph.blockdevAdd({ driver: "file", "node-name": "f", filename: "/disk" });
  await graph.blockdevAdd({ driver: "raw", "node-name": "r", file: "f" });
  await graph.blockdevAdd({ driver: "copy-on-read", "node-name": "c", file: "r" });
  await graph.blockdevAdd({ driver: "null-co", "node-name": "other" });
});

describe("bitmapRequests()", () => {
  test("looks for a name through filters, and not through formats", () => {
    expect(bitmapRequests(graph, node("c"), ["b"])).toEqual([
      { name: "b", nodeNames: ["c", "r"], isLocal: true },
    ]);
  });

  test("takes a place as it is, if it is on the same iothread", async () => {
    const bitmaps = [{ node: "other", name: "b" }];
    expect(bitmapRequests(graph, node("c"), bitmaps)).toEqual([
      { name: "b", nodeNames: ["other"], isLocal: false },
    ]);
    await graph.setIothread("other", "io0", false);
    expect(() => bitmapRequests(graph, node("c"), bitmaps)).toThrow(
      "Bitmap 'b' is in another iothread than node 'c'",
    );
    expect(() => bitmapRequests(graph, node("c"), [{ node: "no", name: "b" }])).toThrow(
      "Node 'no' not found",
    );
  });
});

describe("BitmapHolds", () => {
  test("keep nodes in being until they are released", async () => {
    const holds = new BitmapHolds(graph, { node: node("r") });
    await graph.exclusive(() => holds.hold(["r", "other", "other"]));
    expect(node("r").parents).toHaveLength(1);
    expect(await messageOf(graph.blockdevDel("other"))).toBe("Node other is in use");
    await graph.exclusive(() => holds.release());
    await graph.blockdevDel("other");
  });

  test("let a node move with the exported one only", async () => {
    const holds = new BitmapHolds(graph, { node: node("r") });
    await graph.exclusive(() => holds.hold(["f"]));
    holds.checkAllTogether();
    await graph.setIothread("r", "io0", true);
    await graph.exclusive(() => holds.hold(["other"]));
    const refusal = "Cannot change iothread of active block backend";
    expect(() => holds.checkAllTogether()).toThrow(refusal);
    expect(await messageOf(graph.setIothread("other", "io0", true))).toBe(refusal);
  });
});
