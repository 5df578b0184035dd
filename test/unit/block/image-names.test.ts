import { describe, expect, test } from "bun:test";
import type { BlockDriver } from "../../../src/block/driver.ts";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { attachEdge, Edge, GraphNode } from "../../../src/block/graph-node.ts";
import { imageFilename } from "../../../src/block/image-names.ts";
import type { NodeDescription } from "../../../src/iothread/messages.ts";
import { FakeIothread } from "../../support/iothread.ts";

const iothread = new FakeIothread("main-loop");
const COMMON = {
  readOnly: false,
  autoReadOnly: false,
  forceShare: false,
  cacheDirect: false,
  cacheNoFlush: false,
  discardUnmap: false,
  detectZeroes: "off",
} as const;

const byName = (name: string) => blockDrivers.find((one) => one.name === name)!;

function node(
  driver: BlockDriver,
  options: object,
  description: NodeDescription = {},
  file?: GraphNode,
): GraphNode {
  const definition = { ...COMMON, nodeName: "n", driver: driver.name, children: {} };
  const made = new GraphNode(driver, { ...definition, options: { ...options } }, iothread);
  made.info = { ...made.info, description };
  if (file !== undefined) attachEdge(new Edge(made, "file", file));
  return made;
}

const file = (filename: string) =>
  node(byName("file"), { filename, locking: "off" }, { exactFilename: filename });
const raw = (options: object, child: GraphNode) => node(byName("raw"), options, {}, child);

// What QSD 11.1 says for the same trees.
describe("imageFilename()", () => {
  test("is a file's own name, also of a format on it", () => {
    expect(imageFilename(file("/disk"))).toBe("/disk");
    expect(imageFilename(raw({}, file("/disk")))).toBe("/disk");
  });

  test("tells all when options decide about the contents", () => {
    expect(imageFilename(raw({ offset: 512 }, file("/disk")))).toBe(
      'json:{"offset": 512, "driver": "raw", "file": {"driver": "file", "filename": "/disk"}}',
    );
    expect(imageFilename(node(byName("null-aio"), { size: 65536, "read-zeroes": true }))).toBe(
      'json:{"read-zeroes": true, "driver": "null-aio", "size": 65536}',
    );
  });

  test("tells all of a format on a format", () => {
    const inner = node(byName("raw"), {}, {}, node(byName("null-co"), {}));
    expect(imageFilename(raw({ size: 512 }, inner))).toBe(
      'json:{"driver": "raw", "size": 512, "file": {"driver": "raw", "file": ' +
        '{"driver": "null-co"}}}',
    );
    expect(imageFilename(raw({}, raw({}, file("/disk"))))).toBe(
      'json:{"driver": "raw", "file": {"driver": "raw", "file": ' +
        '{"driver": "file", "filename": "/disk"}}}',
    );
  });

  test("tells all of a filter, whatever it filters", () => {
    const filter = {
      ...byName("raw"),
      name: "throttle",
      filtered: "file",
      strongOptions: ["throttle-group"],
    };
    expect(imageFilename(node(filter, { "throttle-group": "tg" }, {}, file("/disk")))).toBe(
      'json:{"throttle-group": "tg", "driver": "throttle", "file": ' +
        '{"driver": "file", "filename": "/disk"}}',
    );
  });

  test("escapes what is not ASCII, and cuts what is too long", () => {
    const name = imageFilename(raw({ offset: 1 }, file('/ü"\\')));
    expect(name).toContain('"filename": "/\\u00FC\\"\\\\"');
    const long = imageFilename(raw({ offset: 1 }, file(`/${"x".repeat(5000)}`)));
    expect([long.length, long.endsWith("xxx...")]).toEqual([4095, true]);
  });
});
