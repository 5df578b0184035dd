import { beforeEach, describe, expect, test } from "bun:test";
import { Bitmaps } from "../../../src/bitmaps/bitmaps.ts";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import type { BitmapAction } from "../../../src/iothread/messages.ts";
import { FakeIothreads, messageOf } from "../../support/iothread.ts";

let graph: BlockGraph;
let bitmaps: Bitmaps;
/** What the iothreads were asked, by their ids. */
let asked: [id: string, call: string, params: unknown][];

beforeEach(async () => {
  asked = [];
  const iothreads = new FakeIothreads("io0");
  for (const thread of iothreads.members.values()) {
    const call = thread.call.bind(thread);
    thread.call = async (name, params) => {
      if (!name.startsWith("bitmap-")) return call(name, params);
      asked.push([thread.id, name, params]);
      return { undo: 7, content: "bits", sha256: "sum" } as never;
    };
  }
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  bitmaps = new Bitmaps(graph);
  await graph.blockdevAdd({ driver: "file", "node-name": "f", filename: "/disk" });
  await graph.blockdevAdd({ driver: "raw", "node-name": "r", file: "f" });
  await graph.blockdevAdd({ driver: "null-co", "node-name": "far" });
  await graph.setIothread("far", "io0", false);
});

const add = (more: object) =>
  bitmaps.change({ type: "add", data: { node: "r", name: "b", ...more } });
const lastAction = () => (asked.at(-1)![2] as { action: BitmapAction }).action;

describe("Bitmaps.change()", () => {
  test("asks the node's iothread, and settles there", async () => {
    const undo = await bitmaps.change({ type: "clear", data: { node: "far", name: "b" } });
    await undo.undo();
    await undo.keep();
    expect(asked).toEqual([
      ["io0", "bitmap-action", { action: { type: "clear", nodeName: "far", name: "b" } }],
      ["io0", "bitmap-settle", { undo: 7, keep: false }],
      ["io0", "bitmap-settle", { undo: 7, keep: true }],
    ]);
  });

  test("chooses a granularity by the clusters of the image, of a middling size", async () => {
    for (const [clusterBytes, granularity] of [
      [undefined, 65_536],
      [512, 4096],
      [32_768, 32_768],
      [2_097_152, 65_536],
    ]) {
      const image = { "dirty-flag": false, "cluster-size": clusterBytes };
      const file = graph.find("f")!;
      file.info = { ...file.info, description: { image } };
      await add({});
      expect(lastAction()).toMatchObject({ granularity, persistent: false, enabled: true });
    }
    await add({ granularity: 512, disabled: true });
    expect(lastAction()).toMatchObject({ granularity: 512, enabled: false });
  });

  test("refuses names, nodes and granularities in QSD's order", async () => {
    const bad = { name: "", node: "none", granularity: 1, persistent: true };
    expect(await messageOf(add(bad))).toBe("Bitmap name cannot be empty");
    expect(await messageOf(add({ ...bad, name: "b" }))).toBe(
      "Cannot find device='none' nor node-name='none'",
    );
    const node = graph.find("r")!;
    node.info = { ...node.info, writable: false };
    expect(await messageOf(add({ granularity: 1, persistent: true }))).toBe(
      "Granularity must be power of 2 and at least 512",
    );
    expect(await messageOf(add({ persistent: true }))).toBe(
      "Cannot add a persistent bitmap to read-only or inactive node 'r'",
    );
    const clear = bitmaps.change({ type: "clear", data: { node: "none", name: "b" } });
    expect(await messageOf(clear)).toBe("Node 'none' not found");
    expect(asked).toEqual([]);
  });

  test("fetches what other iothreads have for a merge", async () => {
    const sources = [
      "x",
      { node: "f", name: "y" },
      { node: "far", name: "z" },
      { node: "no", name: "w" },
    ];
    const data = { node: "r", target: "b", bitmaps: sources };
    await bitmaps.change({ type: "merge", data });
    expect(asked[0]).toEqual(["io0", "bitmap-content", { nodeName: "far", name: "z" }]);
    expect(lastAction()).toMatchObject({
      name: "b",
      sources: [
        { nodeName: "r", name: "x" },
        { nodeName: "f", name: "y" },
        { content: "bits" },
        { nodeName: "no", name: "w" },
      ],
    });
    expect(bitmaps.nodesOf({ type: "merge", data }).map(({ nodeName }) => nodeName)).toEqual([
      "r",
      "f",
      "far",
    ]);
  });
});

test("Bitmaps.sha256() asks the node's iothread", async () => {
  expect(await bitmaps.sha256({ node: "r", name: "b" })).toBe("sum");
  expect(await messageOf(bitmaps.sha256({ node: "none", name: "b" }))).toBe(
    "Node 'none' not found",
  );
});
