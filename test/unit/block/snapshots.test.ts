import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../src/block/graph.ts";
import { PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../../src/block/node.ts";
import { type SnapshotAction, Snapshots } from "../../../src/block/snapshots.ts";
import { abortStep, runSteps } from "../../../src/block/transactions.ts";
import type { NodesReopen } from "../../../src/iothread/messages.ts";
import { OutportError } from "../../../src/util/error.ts";
import { FakeIothreads, messageOf } from "../../support/iothread.ts";

let iothreads: FakeIothreads;
let graph: BlockGraph;
let snapshots: Snapshots;
/** What reopens said of who uses what. */
let users: NodesReopen["users"][];
/** Nodes whose users were told that an overlay took their place. */
let replaced: string[];

const add = (options: Record<string, unknown>) => graph.blockdevAdd(options);
const addImage = (name: string, more: Record<string, unknown> = {}) =>
  add({
    driver: "qcow2",
    "node-name": name,
    file: { driver: "file", "node-name": `${name}-file`, filename: `/${name}` },
    backing: null,
    ...more,
  });
const node = (name: string) => graph.find(name)!;
const use = (name: string, follows = true) =>
  graph.exclusive(() => {
    const onReplaced = async (from: { nodeName: string }) => void replaced.push(from.nodeName);
    const permissions = { used: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL };
    return graph.attachRoot(node(name), permissions, follows ? { onReplaced } : {});
  });
const overlay = (base: string, name: string) =>
  snapshots.run({ type: "blockdev-snapshot", data: { node: base, overlay: name } });
const sync = (data: Record<string, string>): SnapshotAction => ({
  type: "blockdev-snapshot-sync",
  data: data as never,
});
const childrenOf = (name: string) =>
  Object.fromEntries(node(name).children.map(({ role, child }) => [role, child.nodeName]));

beforeEach(async () => {
  iothreads = new FakeIothreads("io0");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  users = [];
  replaced = [];
  for (const iothread of iothreads.members.values()) {
    iothread.before = (call, params) => {
      const { users: moved } = params as NodesReopen;
      if (call === "nodes-reopen" && moved !== undefined) users.push(moved);
    };
  }
  snapshots = new Snapshots({
    graph,
    checkOptions: (options) => options,
    isBlockDevice: () => false,
    servedDevices: () => [],
    realTimeUs: () => 0,
  });
  await addImage("base");
  await addImage("top");
});

describe("blockdev-snapshot", () => {
  test("has users and parents of the base go on with the overlay", async () => {
    await add({ driver: "raw", "node-name": "above", file: "base" });
    const [follower, stayer] = [await use("base"), await use("base", false)];
    await overlay("base", "top");
    expect(childrenOf("top")).toEqual({ backing: "base", file: "top-file" });
    expect(childrenOf("above")).toEqual({ file: "top" });
    expect(follower.child.nodeName).toBe("top");
    expect(stayer.child.nodeName).toBe("base");
    expect(users).toEqual([{ from: "base", to: "top" }]);
    expect(replaced).toEqual(["base"]);
  });

  test("leaves the base and what is inside it read-only", async () => {
    await overlay("base", "top");
    expect(["base", "base-file", "top"].map((name) => node(name).info.writable)).toEqual([
      false,
      false,
      true,
    ]);
    expect(node("base").explicit["read-only"]).toBe(true);
  });

  test("brings the overlay to where the base lives", async () => {
    await graph.setIothread("base", "io0", false);
    await overlay("base", "top");
    expect(node("top").iothread.id).toBe("io0");
  });

  test("moves no overlay whose image others use", async () => {
    await graph.setIothread("base", "io0", false);
    const reading = { used: PERM_CONSISTENT_READ, shared: PERM_ALL };
    const movable = { beforeMove: async () => {} };
    await graph.exclusive(() => graph.attachRoot(node("top-file"), reading, movable));
    expect(await messageOf(overlay("base", "top"))).toBe(
      "Cannot change iothread of active block backend",
    );
    expect([node("top").iothread.id, childrenOf("top")]).toEqual([
      node("top-file").iothread.id,
      { file: "top-file" },
    ]);
  });

  test("refuses in QSD's words", async () => {
    const refusal = (base: string, name: string) => messageOf(overlay(base, name));
    await addImage("used");
    await use("used");
    await addImage("backed", { backing: "base" });
    await addImage("other");
    await add({ driver: "copy-on-read", "node-name": "filter", file: "other" });
    const inUse = "The overlay is already in use";
    expect(await refusal("no", "top")).toBe("Cannot find device='no' nor node-name='no'");
    expect(await refusal("top", "no")).toBe("Cannot find device='no' nor node-name='no'");
    expect(await refusal("base", "top")).toBe(
      "Node 'base' is busy: node is used as backing hd of 'backed'",
    );
    expect(await refusal("top", "used")).toBe(inUse);
    expect(await refusal("top", "used-file")).toBe(inUse);
    expect(await refusal("top", "filter")).toBe("Filters cannot be used as overlays");
    expect(await refusal("top", "backed")).toBe("The overlay already has a backing image");
    await add({ driver: "null-co", "node-name": "null" });
    expect(await refusal("top", "null")).toBe("The overlay does not support backing images");
    expect(await refusal("top", "top")).toBe(
      "Making 'top' a backing child of 'top' would create a cycle",
    );
    expect(users).toEqual([]);
  });

  test("refuses where a node above relies on the links", async () => {
    await overlay("base", "top");
    await addImage("next");
    await add({ driver: "copy-on-read", "node-name": "filter", file: "top", bottom: "base" });
    expect(await messageOf(overlay("top", "next"))).toBe("Cannot change 'file' link to 'top'");
    expect(childrenOf("filter")).toEqual({ file: "top" });
  });

  test("refuses writers on an overlay that can't be written", async () => {
    await use("base");
    await addImage("fixed", { "read-only": true });
    expect(await messageOf(overlay("base", "fixed"))).toBe("Block node is read-only");
    expect(childrenOf("fixed")).toEqual({ file: "fixed-file" });
  });
});

describe("blockdev-snapshot-sync", () => {
  const existing = { "snapshot-file": "/o", mode: "existing" };

  test("closes the overlay when nobody uses the base", async () => {
    const named = { ...existing, "node-name": "base", "snapshot-node-name": "o" };
    await snapshots.run(sync(named));
    expect(graph.find("o")).toBeUndefined();
    expect(node("base").info.writable).toBe(false);
  });

  test("refuses in QSD's words", async () => {
    const refusal = (data: Record<string, string>) => messageOf(snapshots.run(sync(data)));
    const named = { ...existing, "node-name": "base" };
    expect(await refusal(existing)).toBe("Cannot find device='' nor node-name=''");
    expect(await refusal({ ...existing, device: "base" })).toBe(
      "Cannot find device='base' nor node-name=''",
    );
    expect(await refusal(named)).toBe("New overlay node-name missing");
    expect(await refusal({ ...named, "snapshot-node-name": "top" })).toBe(
      "New overlay node-name already in use",
    );
    const made = { "node-name": "base", "snapshot-node-name": "o", "snapshot-file": "/o" };
    expect(await refusal({ ...made, format: "no" })).toBe("Unknown file format 'no'");
    expect(await refusal({ ...made, format: "no", mode: "existing" })).toBe("Unknown driver 'no'");
    expect(await refusal({ ...made, format: "raw" })).toBe(
      "Backing file not supported for file format 'raw'",
    );
    expect(await refusal({ ...made, format: "throttle" })).toBe(
      "Format driver 'throttle' does not support image creation",
    );
    expect(await refusal({ ...made, "snapshot-file": "ftp:x" })).toBe("Unknown protocol 'ftp'");
  });
});

describe("a transaction of overlays", () => {
  test("goes back through all of them", async () => {
    const follower = await use("base");
    await addImage("next");
    const step = (base: string, name: string) =>
      snapshots.step({ type: "blockdev-snapshot", data: { node: base, overlay: name } });
    await add({
      driver: "raw",
      "node-name": "above",
      file: { driver: "file", "node-name": "inside", filename: "/inside" },
    });
    await addImage("last");
    const steps = [step("base", "top"), step("top", "next"), step("inside", "last"), abortStep];
    const answer = await messageOf(runSteps(graph, () => graph.nodes, steps));
    expect(answer).toBe("Transaction aborted using Abort action");
    expect([follower.child.nodeName, childrenOf("top"), childrenOf("next")]).toEqual([
      "base",
      { file: "top-file" },
      { file: "next-file" },
    ]);
    expect(node("base").info.writable).toBe(true);
    expect(node("inside").inheritsFrom).toBe(node("above"));
    expect(users.map((one) => `${one?.from} ${one?.to}`)).toEqual([
      "base top",
      "top next",
      "inside last",
      "last inside",
      "next top",
      "top base",
    ]);
    expect(replaced).toEqual([]);
  });
});

describe("change-backing-file", () => {
  const change = () =>
    messageOf(
      snapshots.changeBackingFile({
        device: "top",
        "image-node-name": "top",
        "backing-file": "x",
      }),
    );

  test("leaves a read-only image read-only, also when it fails", async () => {
    await overlay("base", "top");
    await addImage("next");
    await overlay("top", "next");
    for (const iothread of iothreads.members.values()) {
      iothread.before = (call) => {
        if (call === "node-backing-file") throw new OutportError("io", "the thread fails");
      };
    }
    const failed = snapshots.changeBackingFile({
      device: "next",
      "image-node-name": "top",
      "backing-file": "x",
    });
    expect(await messageOf(failed)).toBe("the thread fails");
    expect(node("top").info.writable).toBe(false);
  });

  test("refuses on an inactive node", async () => {
    await overlay("base", "top");
    await graph.blockdevSetActive("top", false);
    expect(await change()).toBe("Could not change backing file to 'x': Operation not permitted");
  });
});

describe("internal snapshots", () => {
  const take = (device: string, name: string) =>
    messageOf(snapshots.run({ type: "blockdev-snapshot-internal-sync", data: { device, name } }));
  const remove = (device: string, more: { id?: string; name?: string }) =>
    messageOf(snapshots.deleteInternal({ device, ...more }));

  test("refuse in QSD's words", async () => {
    await add({ driver: "null-co", "node-name": "null" });
    await addImage("fixed", { "read-only": true });
    await addImage("resting", { active: false });
    expect(await take("no", "s")).toBe("Cannot find device='no' nor node-name='no'");
    expect(await take("base-file", "s")).toBe("Need a root block node");
    expect(await take("null", "s")).toBe(
      "Block format 'null-co' used by device 'null' does not support internal snapshots",
    );
    expect(await take("fixed", "s")).toBe("Device 'fixed' is read only");
    expect(await take("resting", "s")).toBe(
      "Block format 'qcow2' used by device 'resting' does not support internal snapshots",
    );
    expect(await take("base", "")).toBe("Name is empty");
    expect(await take("base", "s")).toBe("no error");
    expect(await remove("base", {})).toBe("Name or id must be provided");
    expect(await remove("base", { name: "s" })).toBe(
      "Snapshot with id 'null' and name 's' does not exist on device 'base'",
    );
    expect(await remove("base", { id: "1" })).toBe(
      "Snapshot with id '1' and name 'null' does not exist on device 'base'",
    );
    expect(await remove("null", { id: "1" })).toBe(
      "Failed to get a snapshot list: Operation not supported",
    );
  });

  test("are taken of the image below filters", async () => {
    await add({ driver: "copy-on-read", "node-name": "filter", file: "base" });
    const taken: unknown[] = [];
    for (const iothread of iothreads.members.values()) {
      iothread.before = (call, params) => {
        if (call === "snapshot-take") taken.push(params);
      };
    }
    expect(await take("base", "s")).toBe("Need a root block node");
    expect(await take("filter", "s")).toBe("no error");
    expect(taken).toEqual([{ nodeName: "base", name: "s", timeUs: 0 }]);
  });
});
