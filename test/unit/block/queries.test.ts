import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE } from "../../../src/block/node.ts";
import { BlockQueries } from "../../../src/block/queries.ts";
import { Statistics } from "../../../src/block/statistics.ts";
import type { NodeDescription } from "../../../src/iothread/messages.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { FakeIothreads } from "../../support/iothread.ts";

/** As a filter of the real tables would be. */
const filter = {
  ...blockDrivers.find(({ name }) => name === "raw")!,
  name: "filter",
  strongOptions: [],
  filtered: "file",
};
const OWN: Readonly<Record<string, NodeDescription>> = {
  f: {
    exactFilename: "/disk",
    actualBytes: 4096,
    image: { "dirty-flag": false, "format-specific": { type: "file", data: {} } },
    limits: { "request-alignment": 512, "min-mem-alignment": 512, "write-zeroes-alignment": 512 },
  },
  n: { exactFilename: "null-co://", actualBytes: 0, limits: { "request-alignment": 1 } },
};

let graph: BlockGraph;
let queries: BlockQueries;

beforeEach(() => {
  const iothreads = new FakeIothreads();
  const main = iothreads.get(MAIN_LOOP);
  const call = main.call.bind(main);
  main.call = async (name, params) => {
    const { nodeNames = [] } = params as { nodeNames?: string[] };
    if (name === "nodes-query") {
      const info = (one: string) => ({ bytes: 8192, writable: true, description: OWN[one] ?? {} });
      return nodeNames.map(info) as never;
    }
    if (name === "nodes-statistics") {
      const stats = new Statistics().describe(0, 7);
      const specific = (one: string) => (one === "f" ? { "discard-nb-ok": 1 } : null);
      return nodeNames.map((one) => ({ stats, driverSpecific: specific(one) })) as never;
    }
    return call(name, params);
  };
  graph = new BlockGraph({ drivers: [...blockDrivers, filter], iothreads });
  queries = new BlockQueries(graph);
});

const add = (driver: string, name: string, more: object = {}) =>
  graph.blockdevAdd({ driver, "node-name": name, ...more });
const addChain = async () => {
  await add("file", "f", { filename: "/disk" });
  await add("raw", "r", { file: "f", offset: 512 });
  await add("filter", "top", { file: "r" });
};

describe("namedBlockNodes()", () => {
  test("tells of nodes newest first, with what those below hand up", async () => {
    await addChain();
    const [top, raw, file] = await queries.namedBlockNodes(true);
    expect([top?.["node-name"], raw?.["node-name"], file?.["node-name"]]).toEqual([
      "top",
      "r",
      "f",
    ]);
    expect(file?.image).toEqual({
      filename: "/disk",
      format: "file",
      "virtual-size": 8192,
      "actual-size": 4096,
      "dirty-flag": false,
      "format-specific": { type: "file", data: {} },
      limits: {
        "request-alignment": 512,
        "min-mem-alignment": 512,
        "opt-mem-alignment": 4096,
        "max-iov": 1024,
        "write-zeroes-alignment": 512,
      },
    } as never);
    expect(raw?.image).toMatchObject({
      format: "raw",
      "dirty-flag": false,
      limits: { "request-alignment": 1, "min-mem-alignment": 512 },
    });
    expect(raw?.image).not.toHaveProperty("format-specific");
    expect(raw?.image.limits).not.toHaveProperty("write-zeroes-alignment");
    expect(raw?.file).toMatch(/^json:/);
    expect(raw?.children).toEqual([{ child: "file", "node-name": "f" }]);
    expect(raw).toMatchObject({ ro: false, drv: "raw", active: true, write_threshold: 0, bps: 0 });
  });

  test("shows the images behind, unless it shall be flat", async () => {
    await addChain();
    const [top, raw] = await queries.namedBlockNodes(false);
    expect([top?.backing_file_depth, raw?.backing_file_depth]).toEqual([1, 0]);
    expect(top?.image["backing-image"]?.format).toBe("raw");
    expect(top).not.toHaveProperty("backing_file");
    const [flat] = await queries.namedBlockNodes(true);
    expect(flat?.backing_file_depth).toBe(0);
    expect(flat?.image).not.toHaveProperty("backing-image");
  });

  test("has no actual size where a node doesn't know its own", async () => {
    await add("raw", "r", { file: { driver: "null-co", "node-name": "unknown" } });
    for (const { image } of await queries.namedBlockNodes(false)) {
      expect(image).not.toHaveProperty("actual-size");
    }
  });

  test("has no dirty flag where nobody knows of one", async () => {
    await add("null-co", "n");
    await add("raw", "r", { file: "n" });
    for (const { image } of await queries.namedBlockNodes(false)) {
      expect(image).not.toHaveProperty("dirty-flag");
    }
  });
});

describe("blockStats()", () => {
  test("tells of every node, oldest first, each with those below", async () => {
    await addChain();
    const all = await queries.blockStats(true);
    expect(all.map((one) => one["node-name"])).toEqual(["f", "r", "top"]);
    const below = all[2]?.parent?.parent;
    expect(below?.["node-name"]).toBe("f");
    expect(below?.["driver-specific"]).toEqual({ driver: "file", "discard-nb-ok": 1 } as never);
    expect(below?.stats.wr_highest_offset).toBe(7);
    expect(below).not.toHaveProperty("parent");
    expect(all[1]).not.toHaveProperty("driver-specific");
  });

  test("knows of no devices", async () => {
    await addChain();
    expect(await queries.blockStats(false)).toEqual([]);
    expect(queries.devices()).toEqual([]);
  });
});

describe("blockGraph()", () => {
  test("is empty without nodes", async () => {
    expect(await queries.blockGraph()).toEqual({ nodes: [], edges: [] });
  });

  test("gives ids as it meets things: users, what they use, then the rest", async () => {
    await addChain();
    await add("null-co", "n");
    const read = { used: PERM_CONSISTENT_READ, shared: PERM_ALL };
    await graph.attachRoot(graph.find("top")!, read);
    await graph.attachRoot(graph.find("n")!, { used: 0, shared: PERM_ALL & ~PERM_RESIZE });
    const { nodes, edges } = await queries.blockGraph();
    expect(nodes.map(({ id, name, type }) => [id, type === "block-backend" ? "-" : name])).toEqual([
      [4, "n"],
      [2, "top"],
      [6, "r"],
      [5, "f"],
      [3, "-"],
      [1, "-"],
    ]);
    expect(edges.map(({ parent, child, name }) => [parent, child, name])).toEqual([
      [2, 6, "file"],
      [6, 5, "file"],
      [3, 4, "root"],
      [1, 2, "root"],
    ]);
    expect(edges[3]).toMatchObject({
      perm: ["consistent-read"],
      "shared-perm": ["resize", "write-unchanged", "write", "consistent-read"],
    });
  });
});
