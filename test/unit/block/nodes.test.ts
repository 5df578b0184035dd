import { beforeEach, describe, expect, test } from "bun:test";
import type { BlockDriver } from "../../../src/block/driver.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import { NodeTable } from "../../../src/block/nodes.ts";
import type { NodeOpen } from "../../../src/iothread/messages.ts";
import { OutportError } from "../../../src/util/error.ts";
import { messageOf } from "../../support/iothread.ts";

let done: string[];
let logged: string[];
/** Name of the node that takes no permissions. */
let refusing: string;
let flushResult: number;
let table: NodeTable;

const driver: BlockDriver = {
  name: "fake",
  members: {},
  children: [],
  async open({ nodeName, children, readOnly, options }) {
    if (options.fail === true) throw new OutportError("io", "open failed");
    done.push(`open ${nodeName} on ${Object.values(children).map((child) => child.nodeName)}`);
    return {
      nodeName,
      bytes: 512,
      writable: !readOnly,
      flush: async () => {
        done.push(`flush ${nodeName}`);
        return flushResult;
      },
      close: async () => void done.push(`close ${nodeName}`),
      setPermissions: async (used: number, shared: number) => {
        if (nodeName === refusing) throw new OutportError("in-use", "locked");
        done.push(`${nodeName} ${used}/${shared}`);
      },
      describe: () => ({ exactFilename: "fake" }),
    } as unknown as BlockNode;
  },
};

beforeEach(() => {
  done = [];
  logged = [];
  refusing = "";
  flushResult = 0;
  const log = (text: string) => void logged.push(text);
  table = new NodeTable({ reactor: null as never, drivers: [driver], log });
});

const open = (nodeName: string, more: Partial<NodeOpen> = {}) =>
  table.calls["node-open"]({
    nodeName,
    driver: "fake",
    options: {},
    readOnly: false,
    children: {},
    ...more,
  } as NodeOpen);
const setPermissions = (...nodes: [nodeName: string, used: number, shared: number][]) =>
  table.calls["node-permissions"]({
    nodes: nodes.map(([nodeName, used, shared]) => ({ nodeName, used, shared, active: true })),
  });

describe("NodeTable", () => {
  test("opens a node on its children", async () => {
    await open("f0");
    const info = await open("r0", { children: { file: "f0" } });
    expect(info).toEqual({ bytes: 512, writable: true, description: { exactFilename: "fake" } });
    expect(done).toEqual(["open f0 on ", "open r0 on f0"]);
    expect(table.get("r0").nodeName).toBe("r0");
  });

  test("forgets a node that failed to open", async () => {
    expect(await messageOf(open("f0", { options: { fail: true } }))).toBe("open failed");
    await open("f0");
  });

  test("flushes what is writable before it closes it", async () => {
    await open("rw");
    await open("ro", { readOnly: true });
    await table.closeAll();
    expect(done.slice(2)).toEqual(["close ro", "flush rw", "close rw"]);
  });

  test("closes and says so when the flush fails", async () => {
    await open("rw");
    flushResult = -5;
    await table.calls["node-close"]({ nodeName: "rw" });
    expect(done.at(-1)).toBe("close rw");
    expect(logged).toEqual(["Could not flush node 'rw': Input/output error"]);
  });

  test("gives permissions to all nodes or to none", async () => {
    for (const name of ["a", "b", "c"]) await open(name);
    await setPermissions(["a", 1, 15], ["b", 1, 15]);
    done.length = 0;
    refusing = "c";
    expect(await messageOf(setPermissions(["a", 3, 7], ["b", 3, 7], ["c", 3, 7]))).toBe("locked");
    expect(done).toEqual(["a 3/7", "b 3/7", "b 1/15", "a 1/15"]);
  });
});
