import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { dirtyInfosOf } from "../../../src/bitmaps/node-bitmaps.ts";
import { BitmapService } from "../../../src/bitmaps/service.ts";
import { markActive } from "../../../src/block/inactive-nodes.ts";
import type { BlockNode } from "../../../src/block/node.ts";
import type { BitmapAction } from "../../../src/iothread/messages.ts";
import { OutportError } from "../../../src/util/error.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { messageOf } from "../../support/iothread.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

const BYTES = 64 * 1024;
const reactor = makeReactor("epoll");
let nodes: Map<string, FakeNode & Partial<BlockNode>>;
let calls: BitmapService["calls"];

afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
});

beforeEach(() => {
  nodes = new Map([
    ["n", new FakeNode(reactor, BYTES)],
    ["m", new FakeNode(reactor, BYTES)],
    ["short", new FakeNode(reactor, 4096)],
  ]);
  ({ calls } = new BitmapService({ findNode: (name) => nodes.get(name) }));
});

const place = (name: string, nodeName = "n") => ({ nodeName, name });
const run = async (action: BitmapAction, keep = true): Promise<void> => {
  const { undo } = await calls["bitmap-action"]({ action });
  await calls["bitmap-settle"]({ undo, keep });
};
const add = (name: string, more: object = {}): Promise<void> =>
  run({
    ...{ type: "add", ...place(name), granularity: 512, persistent: false, enabled: true },
    ...more,
  });
const sha256 = async (name: string) => (await calls["bitmap-sha256"](place(name))).sha256;
const write = (offset: number) =>
  runOn(reactor, () => nodes.get("n")!.write(offset, 512, reactor.memory.address, 0));

describe("an action that is taken back", () => {
  test("leaves all as it was", async () => {
    await add("b");
    await add("other", { enabled: false });
    await write(512);
    const before = [dirtyInfosOf(nodes.get("n")!), await sha256("b"), await sha256("other")];
    const actions: BitmapAction[] = [
      { type: "clear", ...place("b") },
      { type: "disable", ...place("b") },
      { type: "enable", ...place("other") },
      { type: "remove", ...place("b") },
      { type: "merge", ...place("other"), sources: [place("b")] },
      { ...place("new"), type: "add", granularity: 512, persistent: false, enabled: true },
    ];
    for (const action of actions) {
      await run(action, false);
      const after = [dirtyInfosOf(nodes.get("n")!), await sha256("b"), await sha256("other")];
      expect(after).toEqual(before);
    }
  });

  test("has taken effect until then", async () => {
    await add("b");
    await write(0);
    const { undo } = await calls["bitmap-action"]({ action: { type: "clear", ...place("b") } });
    expect(dirtyInfosOf(nodes.get("n")!)).toMatchObject([{ count: 0 }]);
    await calls["bitmap-settle"]({ undo, keep: false });
    expect(dirtyInfosOf(nodes.get("n")!)).toMatchObject([{ count: 512 }]);
  });
});

describe("removing", () => {
  test("makes it busy until it is kept", async () => {
    await add("b");
    const { undo } = await calls["bitmap-action"]({ action: { type: "remove", ...place("b") } });
    const clear = run({ type: "clear", ...place("b") });
    expect(await messageOf(clear)).toContain("is currently in use by another operation");
    await calls["bitmap-settle"]({ undo, keep: true });
    expect(dirtyInfosOf(nodes.get("n")!)).toBeUndefined();
  });

  test("takes a persistent one out of the image, and stays undone when that fails", async () => {
    const removed: string[] = [];
    Object.assign(nodes.get("n")!, {
      checkNewBitmap: async () => {},
      removeStoredBitmap: async (name: string) => {
        if (removed.length > 0) throw new OutportError("io", "no");
        removed.push(name);
      },
    });
    await add("p", { persistent: true });
    await add("q", { persistent: true });
    await run({ type: "remove", ...place("p") });
    expect(removed).toEqual(["p"]);
    expect(await messageOf(run({ type: "remove", ...place("q") }))).toBe("no");
    expect(dirtyInfosOf(nodes.get("n")!)).toMatchObject([{ name: "q", busy: false }]);
  });
});

describe("removing a persistent one", () => {
  test("needs a node that may be written to", async () => {
    const node = nodes.get("n")!;
    Object.assign(node, { checkNewBitmap: async () => {} });
    await add("p", { persistent: true });
    const why = "Cannot remove persistent bitmap 'p': no write access to node 'n'";
    markActive(node, false);
    expect(await messageOf(run({ type: "remove", ...place("p") }))).toBe(why);
    markActive(node, true);
    Object.assign(node, { writable: false });
    expect(await messageOf(run({ type: "remove", ...place("p") }))).toBe(why);
    expect(dirtyInfosOf(node)).toMatchObject([{ name: "p", busy: false }]);
  });
});

describe("adding a persistent one", () => {
  test("is refused where the image can't keep it", async () => {
    expect(await messageOf(add("p", { persistent: true }))).toBe(
      "Can't store persistent bitmaps to n: Operation not supported",
    );
    const full = async () => Promise.reject(new OutportError("limit", "too many"));
    Object.assign(nodes.get("n")!, { checkNewBitmap: full });
    expect(await messageOf(add("p", { persistent: true }))).toBe("too many");
    expect(dirtyInfosOf(nodes.get("n")!)).toBeUndefined();
  });
});

describe("merging", () => {
  test("takes bitmaps of this thread and what is in those of another", async () => {
    await add("b");
    await add("other", { nodeName: "m" });
    await write(1024);
    const { content } = structuredClone(await calls["bitmap-content"](place("b")));
    await run({ type: "merge", ...place("other", "m"), sources: [{ content }] });
    expect(dirtyInfosOf(nodes.get("m")!)).toMatchObject([{ count: 512 }]);
    await run({ type: "clear", ...place("b") });
    await run({ type: "merge", ...place("b"), sources: [place("other", "m"), place("b")] });
    expect(dirtyInfosOf(nodes.get("n")!)).toMatchObject([{ count: 512 }]);
  });

  test("of no bitmaps does nothing", async () => {
    await add("b");
    await run({ type: "merge", ...place("b"), sources: [] });
    expect(dirtyInfosOf(nodes.get("n")!)).toMatchObject([{ count: 0 }]);
  });

  test("changes nothing when one can't be merged", async () => {
    await add("b");
    await add("c");
    await add("s", { nodeName: "short" });
    await write(0);
    await run({ type: "clear", ...place("c") });
    const merge = (sources: { nodeName: string; name: string }[]) =>
      messageOf(run({ type: "merge", ...place("c"), sources }));
    expect(await merge([place("b"), place("s", "short")])).toBe(
      "Bitmaps are of different sizes (destination size is 65536, source size is 4096) and can't " +
        "be merged",
    );
    expect(await merge([place("b"), place("none")])).toBe("Dirty bitmap 'none' not found");
    expect(await merge([place("b"), place("x", "none")])).toBe("Node 'none' not found");
    expect(dirtyInfosOf(nodes.get("n")!)).toMatchObject([{ name: "c", count: 0 }, {}]);
  });
});
