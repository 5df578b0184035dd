import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../../src/block/graph.ts";
import { PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE } from "../../../../src/block/node.ts";
import { FuseExports } from "../../../../src/exports/fuse/index.ts";
import { ExportManager } from "../../../../src/exports/manager.ts";
import { MAIN_LOOP } from "../../../../src/iothread/pool.ts";
import { EPERM } from "../../../../src/runtime/errno.ts";
import { OutportError } from "../../../../src/util/error.ts";
import { FakeMounts } from "../../../support/fake-mounts.ts";
import { FakeIothreads, messageOf } from "../../../support/iothread.ts";

let iothreads: FakeIothreads;
let graph: BlockGraph;
let system: FakeMounts;
let fuse: FuseExports;
let manager: ExportManager;
let deleted: string[];
let opened: Record<string, unknown>[];

beforeEach(async () => {
  iothreads = new FakeIothreads("io0", "io1");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  system = new FakeMounts("/a", "/b");
  deleted = [];
  opened = [];
  fuse = new FuseExports({
    system,
    iothreads,
    endExport: (id) => manager.delete(id, "hard"),
    log: () => {},
    replyMsMax: 5,
  });
  manager = new ExportManager({
    graph,
    iothreads,
    types: [fuse.exportType],
    emit: (_event, { id }) => void deleted.push(id),
  });
  for (const member of iothreads.members.values()) {
    member.before = (call, params) => {
      if (call === "export-open") opened.push(params);
    };
  }
  await graph.blockdevAdd({ driver: "null-co", "node-name": "disk" });
});

const add = (more: Record<string, unknown> = {}) =>
  manager.add({ type: "fuse", id: "e", "node-name": "disk", mountpoint: "/a", ...more });
const used = () => iothreads.get(MAIN_LOOP).nodes.get("disk")!.used;
const turn = () => new Promise<void>((resolve) => void setTimeout(resolve, 5));
const end = (exportId = "e") =>
  iothreads.emit(MAIN_LOOP, { event: "fuse-ended", exportId, error: -19 });

describe("FuseExports", () => {
  test("mounts, then has the iothread serve", async () => {
    await add({ writable: true, growable: true, "allow-other": "off" });
    const [fd] = [...system.open.keys()];
    expect(opened).toEqual([
      {
        ...{ id: "e", type: "fuse", nodeName: "disk", writable: true, writethrough: false },
        options: { fd, growable: true, allowOther: false, uid: 1000, gid: 100 },
      },
    ]);
    expect(fuse.devices).toEqual([system.mounted[0]!.dev]);
  });

  test("may resize when it is writable or growable", async () => {
    await add();
    expect(used()).toBe(PERM_CONSISTENT_READ);
    await manager.delete("e");
    await add({ growable: true });
    expect(used()).toBe(PERM_CONSISTENT_READ | PERM_RESIZE);
    await manager.delete("e");
    await add({ writable: true });
    expect(used()).toBe(PERM_CONSISTENT_READ | PERM_RESIZE | PERM_WRITE);
  });

  test("refuses a mountpoint twice, before it looks at it", async () => {
    await add();
    system.openPath = () => Promise.reject(new Error("looked"));
    expect(await messageOf(add({ id: "f" }))).toBe("There already is a FUSE export on '/a'");
  });

  test("takes a list of iothreads", async () => {
    await add({ iothread: ["io1", "io0"] });
    expect(iothreads.get("io1").exports.has("e")).toBe(true);
  });

  test("leaves nothing behind when a step fails", async () => {
    system.mountResult = () => -EPERM;
    system.fusermountFailure = () => ({ stderr: "no" });
    expect(await messageOf(add({ writable: true }))).toBe("Failed to mount FUSE session to export");
    system.mountResult = () => 0;
    iothreads.get(MAIN_LOOP).before = (call) => {
      if (call === "export-open") throw new OutportError("io", "no");
    };
    expect(await messageOf(add({ writable: true }))).toBe("no");
    iothreads.get(MAIN_LOOP).before = () => {};
    expect(system.mounted).toEqual([]);
    expect(system.open.size).toBe(0);
    expect(fuse.devices).toEqual([]);
    expect(used()).toBe(0);
    await add();
  });

  test("unmounts while it is served, and closes the device last", async () => {
    await add({ writable: true });
    let openFds = 0;
    let mounts = 0;
    iothreads.get(MAIN_LOOP).before = (call) => {
      if (call === "export-shutdown") mounts = system.mounted.length;
      if (call === "export-close") openFds = system.open.size;
    };
    await manager.delete("e");
    expect([mounts, openFds]).toEqual([1, 1]);
    expect(system.mounted).toEqual([]);
    expect(system.open.size).toBe(0);
    expect(deleted).toEqual(["e"]);
    await add();
  });

  test("does not keep a monitor waiting for a slow unmount, but the path", async () => {
    await add({ writable: true });
    let release = () => {};
    system.before = new Promise((resolve) => {
      release = resolve;
    });
    await manager.delete("e");
    expect(manager.query()[0]?.["shutting-down"]).toBe(true);
    expect(await messageOf(add({ id: "f" }))).toBe("There already is a FUSE export on '/a'");
    release();
    await turn();
    expect(deleted).toEqual(["e"]);
    expect(manager.query()).toEqual([]);
    await add({ id: "f" });
  });

  test("deletes an export whose session is over", async () => {
    await add();
    system.unmountBy("/a");
    end();
    end();
    await turn();
    expect(deleted).toEqual(["e"]);
    expect(system.open.size).toBe(0);
    end();
    end("nobody");
  });

  test("deletes it, too, when that is over before it is complete", async () => {
    iothreads.get(MAIN_LOOP).before = (call) => {
      if (call === "export-open") end();
    };
    await add();
    await turn();
    expect(deleted).toEqual(["e"]);
    expect(system.mounted).toEqual([]);
  });

  test("leaves an export to who deletes it already", async () => {
    await add();
    const deletion = manager.delete("e");
    end();
    await deletion;
    // Another one, which serves.
    await add();
    await turn();
    expect(deleted).toEqual(["e"]);
    expect(manager.query()).toHaveLength(1);
  });

  test("moves with its node", async () => {
    await add();
    await graph.setIothread("disk", "io0", true);
    expect(iothreads.get("io0").exports.has("e")).toBe(true);
    await manager.delete("e");
    expect(iothreads.get("io0").exports.has("e")).toBe(false);
    expect(system.open.size).toBe(0);
  });

  test("abort() takes all mounts away at once", async () => {
    await add();
    await add({ id: "f", mountpoint: "/b" });
    fuse.abort();
    expect(system.mounted).toEqual([]);
    expect(system.log.slice(-2)).toEqual(["abort /a", "abort /b"]);
  });
});
