import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
} from "../../../src/block/node.ts";
import { MAIN_LOOP } from "../../../src/iothread/pool.ts";
import { OutportError } from "../../../src/util/error.ts";
import { type FakeIothread, FakeIothreads, messageOf } from "../../support/iothread.ts";

let iothreads: FakeIothreads;
let main: FakeIothread;
let graph: BlockGraph;

beforeEach(() => {
  iothreads = new FakeIothreads("io0");
  main = iothreads.get(MAIN_LOOP);
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
});

const file = (name?: string) => ({
  driver: "file",
  filename: "/disk",
  ...(name === undefined ? {} : { "node-name": name }),
});
const raw = (name: string, child: unknown, more = {}) => ({
  driver: "raw",
  "node-name": name,
  file: child,
  ...more,
});
const add = (options: Record<string, unknown>) => graph.blockdevAdd(options);
const names = async () => graph.nodes.reverse().map(({ nodeName }) => nodeName);

describe("blockdevAdd()", () => {
  test("opens inline children first and lists the newest first", async () => {
    await add(raw("r0", file("f0")));
    await add(raw("r1", "r0"));
    expect(await names()).toEqual(["r1", "r0", "f0"]);
    expect([...main.nodes.keys()]).toEqual(["f0", "r0", "r1"]);
    expect(main.userCount).toBe(3);
  });

  test("names inline children as QEMU does", async () => {
    await add(raw("r0", file()));
    await add(raw("r1", file()));
    const generated = (await names()).filter((name) => String(name).startsWith("#"));
    expect(generated).toHaveLength(2);
    expect(generated[0]).toMatch(/^#block1\d\d$/);
    expect(generated[1]).toMatch(/^#block0\d\d$/);
  });

  const refused: [why: string, options: Record<string, unknown>, message: string][] = [
    ["no name", file(), "'node-name' must be specified for the root node"],
    ["a bad name", file("bad name"), "Invalid node-name: 'bad name'"],
    ["an empty name", file(""), "Invalid node-name: ''"],
    ["a generated name", file("#block1"), "Invalid node-name: '#block1'"],
    ["a long name", file("n".repeat(32)), "Node name too long"],
    ["a name that exists", file("taken"), "Duplicate nodes with node-name='taken'"],
    ["a child with the same name", raw("r", file("r")), "Duplicate nodes with node-name='r'"],
    ["an unknown child", raw("r", "zz"), "Cannot find device='zz' nor node-name='zz'"],
    [
      "force-share of a writable node",
      { ...file("bad name"), "force-share": true },
      "force-share=on can only be used with read-only images",
    ],
    [
      "zeroes that are unmapped without discard",
      { ...file("f"), "detect-zeroes": "unmap" },
      "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
    ],
  ];
  for (const [why, options, message] of refused) {
    test(`refuses ${why}, and nothing is left`, async () => {
      await add(file("taken"));
      expect(await messageOf(add(options))).toBe(message);
      expect(await names()).toEqual(["taken"]);
      expect([...main.nodes.keys()]).toEqual(["taken"]);
      expect(main.userCount).toBe(1);
      await add(raw("r", file("f")));
    });
  }

  test("takes a name of 31 characters", async () => {
    await add(file("n".repeat(31)));
    expect(await names()).toHaveLength(1);
  });

  test("leaves all as before at whichever call it fails", async () => {
    await add(file("f0"));
    const options = raw("top", raw("middle", file("bottom")));
    await add(options);
    await graph.blockdevDel("top");
    const calls = main.log.filter((call) => call !== "node-close").length;
    let failures = 0;
    for (let failing = 1; failing <= calls; failing++) {
      let count = 0;
      main.before = (call) => {
        if (call === "node-close") return;
        if (++count === failing) throw new OutportError("io", "injected");
      };
      const message = await messageOf(add(options));
      main.before = () => {};
      if (message === "injected") failures++;
      else await graph.blockdevDel("top");
      expect(await names()).toEqual(["f0"]);
      expect([...main.nodes.keys()]).toEqual(["f0"]);
      expect(main.userCount).toBe(1);
    }
    expect(failures).toBeGreaterThanOrEqual(3);
  });

  test("gives an inline child what it inherits", async () => {
    const opened: unknown[] = [];
    main.before = (call, params) => {
      if (call === "node-open") opened.push(params);
    };
    const cache = { direct: true, "no-flush": true };
    const common = { "read-only": true, "auto-read-only": true, "force-share": true, cache };
    await add(raw("r0", file("f0"), common));
    const inherited = {
      readOnly: true,
      autoReadOnly: true,
      forceShare: true,
      cacheDirect: true,
      cacheNoFlush: true,
    };
    expect(opened).toMatchObject([
      { nodeName: "f0", ...inherited, discardUnmap: true, options: { filename: "/disk" } },
      { nodeName: "r0", ...inherited, discardUnmap: false, children: { file: "f0" } },
    ]);
  });

  test("lets an inline child say otherwise", async () => {
    const opened: unknown[] = [];
    main.before = (call, params) => {
      if (call === "node-open") opened.push(params);
    };
    const child = { ...file("f0"), "read-only": false, discard: "ignore" };
    await add(raw("r0", child, { "read-only": true }));
    expect(opened).toMatchObject([{ readOnly: false, discardUnmap: false }, { readOnly: true }]);
  });
});

describe("blockdevDel()", () => {
  test("refuses in QSD's words", async () => {
    await add(raw("r0", file("f0")));
    await add(raw("r1", "r0"));
    expect(await messageOf(graph.blockdevDel("zz"))).toBe(
      "Failed to find node with node-name='zz'",
    );
    expect(await messageOf(graph.blockdevDel("f0"))).toBe("Node f0 is not owned by the monitor");
    expect(await messageOf(graph.blockdevDel("r0"))).toBe("Block device r0 is in use");
    expect(await names()).toEqual(["r1", "r0", "f0"]);
  });

  test("keeps an inline child as long as another node uses it", async () => {
    await add(raw("r0", file("f0")));
    await add(raw("r1", "f0"));
    await graph.blockdevDel("r0");
    expect(await names()).toEqual(["r1", "f0"]);
    await graph.blockdevDel("r1");
    expect(await names()).toEqual([]);
    expect(main.nodes.size).toBe(0);
    expect(main.userCount).toBe(0);
  });

  test("refuses a node that an export uses", async () => {
    await add(file("f0"));
    await attach("f0", PERM_CONSISTENT_READ, PERM_ALL);
    expect(await messageOf(graph.blockdevDel("f0"))).toBe("Node f0 is in use");
  });
});

async function attach(name: string, used: number, shared: number) {
  return graph.exclusive(() => graph.attachRoot(graph.find(name)!, { used, shared }));
}

describe("attachRoot()", () => {
  test("takes permissions all the way down, in one call", async () => {
    await add(raw("r0", file("f0")));
    main.log.length = 0;
    await attach("r0", PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL & ~PERM_RESIZE);
    expect(main.log).toEqual(["node-permissions"]);
    for (const name of ["r0", "f0"]) {
      expect(main.nodes.get(name)).toEqual({
        used: PERM_CONSISTENT_READ | PERM_WRITE,
        shared: PERM_ALL & ~PERM_RESIZE,
      });
    }
  });

  test("gives them back, and closes what nobody owns any more", async () => {
    await add(raw("r0", file("f0")));
    const use = await attach("r0", PERM_WRITE, PERM_ALL);
    await graph.exclusive(() => graph.detachRoot(use));
    expect(main.nodes.get("f0")).toEqual({ used: 0, shared: PERM_ALL });
    await graph.blockdevDel("r0");
    expect(main.nodes.size).toBe(0);
  });

  test("changes nothing when it is refused by another user", async () => {
    await add(file("n0"));
    await attach("n0", PERM_CONSISTENT_READ, PERM_ALL & ~PERM_RESIZE);
    const before = main.nodes.get("n0");
    expect(await messageOf(attach("n0", PERM_RESIZE, PERM_ALL))).toBe(
      "Permission conflict on node 'n0': permissions 'resize' are both required by " +
        "an unnamed block device (uses node 'n0' as 'root' child) and unshared by " +
        "an unnamed block device (uses node 'n0' as 'root' child).",
    );
    expect(main.nodes.get("n0")).toEqual(before!);
    await attach("n0", PERM_WRITE, PERM_ALL);
  });

  test("changes nothing when the host refuses", async () => {
    await add(raw("r0", file("f0")));
    main.before = () => {
      throw new OutportError("io", 'Failed to get "write" lock');
    };
    expect(await messageOf(attach("r0", PERM_WRITE, PERM_ALL))).toBe('Failed to get "write" lock');
    main.before = () => {};
    await graph.blockdevDel("r0");
  });

  test("refuses to write through a read-only child", async () => {
    await add(raw("r0", { ...file("f0"), "read-only": true }));
    expect(await messageOf(attach("r0", PERM_WRITE, PERM_ALL))).toBe("Block node is read-only");
  });
});

describe("move()", () => {
  const move = (name: string, id: string) =>
    graph.exclusive(() => graph.move(graph.find(name)!, iothreads.get(id)));

  test("takes the whole tree", async () => {
    await add(raw("r0", file("f0")));
    await move("r0", "io0");
    expect([...iothreads.get("io0").nodes.keys()]).toEqual(["f0", "r0"]);
    expect(main.nodes.size).toBe(0);
    expect([main.userCount, iothreads.get("io0").userCount]).toEqual([0, 2]);
    await graph.blockdevDel("r0");
    expect(iothreads.get("io0").nodes.size).toBe(0);
  });

  test("refuses a tree in use", async () => {
    await add(raw("r0", file("f0")));
    await attach("f0", PERM_CONSISTENT_READ, PERM_ALL);
    expect(await messageOf(move("r0", "io0"))).toBe(
      "Cannot change iothread of active block backend",
    );
  });

  test("leaves the tree where it was at whichever call it fails", async () => {
    const io0 = iothreads.get("io0");
    await add(raw("r0", file("f0")));
    for (let failing = 1; failing <= 3; failing++) {
      let count = 0;
      io0.before = () => {
        if (++count === failing) throw new OutportError("io", "injected");
      };
      expect(await messageOf(move("r0", "io0"))).toBe("injected");
      expect([...main.nodes.keys()]).toEqual(["f0", "r0"]);
      expect(io0.nodes.size).toBe(0);
      expect([main.userCount, io0.userCount]).toEqual([2, 0]);
    }
  });

  test("lets new parents open where their children are", async () => {
    await add(file("f0"));
    await move("f0", "io0");
    await add(raw("r0", "f0"));
    expect([...iothreads.get("io0").nodes.keys()]).toEqual(["f0", "r0"]);
  });
});

test("closeAll() closes parents before their children", async () => {
  await add(raw("r0", file("f0")));
  await add(raw("r1", "f0"));
  const closed: string[] = [];
  main.before = (call, params) => {
    if (call === "node-close") closed.push((params as { nodeName: string }).nodeName);
  };
  await graph.closeAll();
  expect(closed).toEqual(["r1", "r0", "f0"]);
  expect(main.userCount).toBe(0);
});
