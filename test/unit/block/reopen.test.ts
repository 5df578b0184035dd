import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
} from "../../../src/block/node.ts";
import { type FakeIothread, FakeIothreads, messageOf } from "../../support/iothread.ts";

let iothreads: FakeIothreads;
let main: FakeIothread;
let graph: BlockGraph;

type Wire = Record<string, unknown>;

beforeEach(async () => {
  iothreads = new FakeIothreads("io0");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  main = iothreads.get(iothreads.members.keys().next().value as string);
  await graph.blockdevAdd(f0({ discard: "unmap" }));
  await graph.blockdevAdd({ driver: "file", "node-name": "ro", filename: "/b", "read-only": true });
  await graph.blockdevAdd(r0("f0"));
  await graph.blockdevAdd(ri({ driver: "file", "node-name": "fi", filename: "/c" }));
  await graph.blockdevAdd({ driver: "null-co", "node-name": "n0", size: 4096 });
});

const f0 = (more: Wire = {}) => ({ driver: "file", "node-name": "f0", filename: "/a", ...more });
const r0 = (file: unknown, more: Wire = {}) => ({
  driver: "raw",
  "node-name": "r0",
  file,
  ...more,
});
const ri = (file: unknown, more: Wire = {}) => ({ ...r0(file, more), "node-name": "ri" });
const reopen = (...list: Wire[]) => graph.blockdevReopen(list);
const attach = (name: string, used: number, shared: number, user = {}) =>
  graph.exclusive(() => graph.attachRoot(graph.find(name)!, { used, shared }, user));
const definitionOf = (name: string) => main.definitions.get(name)!;

describe("blockdevReopen()", () => {
  const refused: [why: string, options: Wire | Wire[], message: string][] = [
    ["no name", { driver: "file", filename: "/a" }, "node-name not specified"],
    [
      "a name that nobody has",
      { ...f0(), "node-name": "zz" },
      "Failed to find node with node-name='zz'",
    ],
    ["another file name", f0({ filename: "/x" }), "Cannot change the option 'filename'"],
    ["another driver", f0({ driver: "host_device" }), "Cannot change the option 'driver'"],
    ["other locking", f0({ locking: "off" }), "Cannot change the option 'locking'"],
    ["force-share", f0({ "force-share": true }), "Cannot change the option 'force-share'"],
    ["inactivity", f0({ active: false }), "Cannot change the option 'active'"],
    [
      "an option left out that has no way back",
      { driver: "null-co", "node-name": "n0" },
      "Option 'size' cannot be reset to its default value",
    ],
    [
      "zeroes that are unmapped without discard",
      f0({ discard: "ignore", "detect-zeroes": "unmap" }),
      "setting detect-zeroes to unmap is not allowed",
    ],
    ["itself as child", r0("r0"), "Making 'r0' a file child of 'r0' would create a cycle"],
    ["a child that is not there", r0("zz"), "Cannot find device='' nor node-name='zz'"],
    [
      "options of a child by reference",
      r0({ driver: "file", filename: "/a" }),
      "Cannot change the option 'file.driver'",
    ],
    [
      "another file name of an inline child",
      ri({ driver: "file", filename: "/x" }),
      "Cannot change the option 'filename'",
    ],
    [
      "another name of an inline child",
      ri({ driver: "file", filename: "/c", "node-name": "other" }),
      "Cannot change the option 'node-name'",
    ],
    [
      "a loop over two nodes",
      [ri("r0"), r0("ri")],
      "Making 'ri' a file child of 'r0' would create a cycle",
    ],
  ];
  for (const [why, options, message] of refused) {
    test(`refuses ${why}`, async () => {
      main.log.length = 0;
      expect(await messageOf(reopen(...[options].flat()))).toContain(message);
      expect(main.log).toEqual([]);
    });
  }

  test("refuses drivers that can't", async () => {
    const options = { driver: "copy-on-read", "node-name": "c0", file: "f0" };
    await graph.blockdevAdd(options);
    expect(await messageOf(reopen(options))).toBe(
      "Block format 'copy-on-read' used by node 'c0' does not support reopening files",
    );
  });

  test("sets what is given, and all else to its default but discard", async () => {
    await reopen(f0({ cache: { direct: true }, "detect-zeroes": "unmap", "read-only": true }));
    expect(definitionOf("f0")).toMatchObject({
      readOnly: true,
      cacheDirect: true,
      discardUnmap: true,
      detectZeroes: "unmap",
    });
    await reopen(f0());
    expect(definitionOf("f0")).toMatchObject({
      readOnly: false,
      cacheDirect: false,
      discardUnmap: true,
      detectZeroes: "off",
    });
  });

  test("hands down to inline children, by name or not, and to no others", async () => {
    await reopen(ri("fi", { "read-only": true }), r0("f0", { "read-only": true }));
    expect(definitionOf("fi")).toMatchObject({ readOnly: true, options: { filename: "/c" } });
    expect(definitionOf("f0")).toMatchObject({ readOnly: false });
    await reopen(ri({ driver: "file", filename: "/c", cache: { direct: true } }));
    expect(definitionOf("fi")).toMatchObject({ readOnly: false, cacheDirect: true });
    await reopen(ri("fi"));
    expect(definitionOf("fi")).toMatchObject({ cacheDirect: true });
  });

  test("joins what is said twice of one node", async () => {
    await reopen(f0({ "read-only": true }), f0({ "detect-zeroes": "on" }));
    expect(definitionOf("f0")).toMatchObject({ readOnly: true, detectZeroes: "on" });
  });

  test("closes an inline child that nobody uses any more", async () => {
    await reopen(ri("f0"));
    expect(graph.find("fi")).toBeUndefined();
    expect(main.nodes.has("fi")).toBe(false);
    expect(definitionOf("ri").children).toEqual({ file: "f0" });
    await graph.blockdevDel("ri");
    await graph.blockdevDel("r0");
    await graph.blockdevDel("f0");
  });

  test("takes its users' permissions along to another child", async () => {
    await attach("r0", PERM_WRITE, PERM_ALL & ~PERM_RESIZE);
    expect(await messageOf(reopen(r0("ro")))).toBe("Block node is read-only");
    await reopen(r0("fi"));
    expect(main.nodes.get("fi")).toEqual({ used: PERM_WRITE, shared: PERM_ALL & ~PERM_RESIZE });
    expect(main.nodes.get("f0")).toEqual({ used: 0, shared: PERM_ALL });
    const readOnly = messageOf(reopen(r0("fi", { "read-only": true })));
    expect(await readOnly).toBe("Read-only block node 'r0' cannot support read-write users");
  });

  test("does nothing when it is asked for nothing", async () => {
    main.log.length = 0;
    await reopen();
    expect(main.log).toEqual([]);
  });

  test("takes no inactive child", async () => {
    await graph.blockdevSetActive("n0", false);
    expect(await messageOf(reopen(r0("n0")))).toBe(
      "Inactive 'n0' can't be a file child of active 'r0'",
    );
  });
});

describe("blockdevSetActive()", () => {
  const set = (name: string | undefined, active: boolean) => graph.blockdevSetActive(name, active);
  const inactive = () => [...main.inactive].sort();

  test("takes the nodes below along, but those that another active node uses", async () => {
    await graph.blockdevAdd(r0("f0", { "node-name": "r1" }));
    await set("r0", false);
    expect(inactive()).toEqual(["r0"]);
    await set("r1", false);
    expect(inactive()).toEqual(["f0", "r0", "r1"]);
    await set("r0", true);
    expect(inactive()).toEqual(["r1"]);
    expect(await messageOf(set("f0", false))).toBe("Node has active parent node");
    expect(await messageOf(set("zz", false))).toBe("Failed to find node with node-name='zz'");
    await set(undefined, false);
    await set(undefined, false);
    expect(inactive()).toHaveLength(graph.nodes.length);
    await set(undefined, true);
    expect(inactive()).toEqual([]);
  });

  test("leaves an inactive node without locks, and its users resting", async () => {
    await attach("r0", PERM_WRITE, PERM_ALL & ~PERM_RESIZE, { allowInactive: true });
    await attach("r0", PERM_CONSISTENT_READ, PERM_ALL);
    await set("r0", false);
    expect(main.nodes.get("f0")).toEqual({ used: 0, shared: PERM_ALL });
    expect(await messageOf(attach("r0", PERM_RESIZE, PERM_ALL))).toBe(
      "Permission 'resize' unavailable on inactive node",
    );
    await set("r0", true);
    expect(main.nodes.get("f0")).toEqual({
      used: PERM_CONSISTENT_READ | PERM_WRITE,
      shared: PERM_ALL & ~PERM_RESIZE,
    });
  });

  test("refuses a writer that needs the node active, and data that cannot be flushed", async () => {
    const use = await attach("r0", PERM_WRITE, PERM_ALL);
    expect(await messageOf(set("r0", false))).toBe(
      "Failed to inactivate node: Operation not permitted",
    );
    expect(await messageOf(set(undefined, false))).toBe(
      "Failed to inactivate all nodes: Operation not permitted",
    );
    await graph.exclusive(() => graph.detachRoot(use));
    main.flushResult = -5;
    expect(await messageOf(set("r0", false))).toBe("Failed to inactivate node: Input/output error");
    expect(inactive()).toEqual([]);
  });

  test("is given at first by blockdev-add, and handed down", async () => {
    const file = { driver: "file", "node-name": "fx", filename: "/x" };
    const top = (more: Wire) => r0({ ...file, ...more }, { "node-name": "top", active: false });
    await graph.blockdevAdd(top({}));
    expect(inactive()).toEqual(["fx", "top"]);
    await graph.blockdevDel("top");
    await graph.blockdevAdd(top({ active: true }));
    expect(inactive()).toEqual(["top"]);
    await graph.blockdevDel("top");
    expect(await messageOf(graph.blockdevAdd({ ...top({ active: false }), active: true }))).toBe(
      "Inactive 'fx' can't be a file child of active 'top'",
    );
  });
});

describe("setIothread()", () => {
  test("asks the users of a tree, outside of drained sections", async () => {
    const io0 = iothreads.get("io0");
    const told: string[] = [];
    const tell = (what: string) => async () => {
      told.push(`${what} on ${graph.find("f0")!.iothread.id}, ${main.sections.size} drained`);
    };
    const user = { beforeMove: tell("before"), afterMove: tell("after") };
    await attach("r0", PERM_WRITE, PERM_ALL, user);
    await graph.setIothread("f0", "io0", false);
    expect(told).toEqual([`before on ${main.id}, 0 drained`, "after on io0, 0 drained"]);
    expect(io0.nodes.get("f0")).toEqual({ used: PERM_WRITE, shared: PERM_ALL });
    expect([main.sections.size, io0.sections.size]).toEqual([0, 0]);
    expect(await messageOf(graph.setIothread("r0", null, false))).toBe(
      "Node r0 is associated with a BlockBackend and could be in use " +
        "(use force=true to override this check)",
    );
    await graph.setIothread("r0", null, true);
    expect(io0.nodes.size).toBe(0);
    expect(await messageOf(graph.setIothread("r0", "zz", true))).toBe("Cannot find iothread zz");
    expect(await messageOf(graph.setIothread("r0", main.id, true))).toBe(
      `Cannot find iothread ${main.id}`,
    );
  });

  test("closes what lies above the files before it opens it elsewhere", async () => {
    const order: string[] = [];
    for (const iothread of iothreads.members.values()) {
      iothread.before = (call, params) => {
        if (call !== "node-open" && call !== "node-close") return;
        order.push(`${call} ${(params as { nodeName: string }).nodeName} ${iothread.id}`);
      };
    }
    await graph.setIothread("r0", "io0", false);
    expect(order).toEqual([
      "node-open f0 io0",
      `node-close r0 ${main.id}`,
      "node-open r0 io0",
      `node-close f0 ${main.id}`,
    ]);
  });

  test("moves nothing whose data does not reach the disk", async () => {
    main.flushResult = -5;
    expect(await messageOf(graph.setIothread("r0", "io0", false))).toBe(
      "Error flushing drive: Input/output error",
    );
    expect(iothreads.get("io0").nodes.size).toBe(0);
  });
});
