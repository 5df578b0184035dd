import { beforeEach, describe, expect, test } from "bun:test";
import { blockDrivers } from "../../../../src/block/drivers/index.ts";
import { BlockGraph } from "../../../../src/block/graph.ts";
import { ExportManager } from "../../../../src/exports/manager.ts";
import { vhostUserBlkExportType } from "../../../../src/exports/vhost-user-blk/index.ts";
import type { IothreadCall } from "../../../../src/iothread/messages.ts";
import { MAIN_LOOP } from "../../../../src/iothread/pool.ts";
import { OutportError } from "../../../../src/util/error.ts";
import { FakeIothreads, messageOf } from "../../../support/iothread.ts";

const ADDRESS = { type: "unix", path: "/run/v.sock" } as const;

let iothreads: FakeIothreads;
let graph: BlockGraph;
let manager: ExportManager;
let deleted: string[];
let opened: Record<string, unknown>[];

beforeEach(async () => {
  iothreads = new FakeIothreads("io0", "io1");
  graph = new BlockGraph({ drivers: blockDrivers, iothreads });
  deleted = [];
  opened = [];
  manager = new ExportManager({
    graph,
    iothreads,
    types: [vhostUserBlkExportType()],
    emit: (_event, { id }) => void deleted.push(id),
  });
  for (const member of iothreads.members.values()) {
    member.before = (call, params) => {
      if (call === "export-open") opened.push(params);
    };
  }
  await graph.blockdevAdd({ driver: "null-co", "node-name": "disk" });
});

const add = (more: Record<string, unknown> = {}, fdNumbers = false) =>
  manager.add(
    { type: "vhost-user-blk", id: "e", "node-name": "disk", addr: ADDRESS, ...more },
    fdNumbers,
  );
const failOn = (id: string, failing: IothreadCall) => {
  iothreads.get(id).before = (call) => {
    if (call === failing) throw new OutportError("in-use", `${call} fails`);
  };
};

describe("vhostUserBlkExportType()", () => {
  test("opens the export where its node is, with all that it needs", async () => {
    await add({ "logical-block-size": 4096, "num-queues": 4, serial: "s", iothread: "io0" }, true);
    expect(iothreads.get("io0").exports.has("e")).toBe(true);
    const options = { address: ADDRESS, blockBytes: 4096, queueCount: 4, serial: "s" };
    expect(opened).toEqual([
      {
        id: "e",
        type: "vhost-user-blk",
        nodeName: "disk",
        writable: false,
        writethrough: false,
        options,
      },
    ]);
    await add({ id: "f", addr: { type: "fd", str: "7" } }, true);
    expect((opened[1]!.options as { address: unknown }).address).toEqual({ type: "fd", fd: 7 });
  });

  test("has defaults, and takes no block size for the smallest", async () => {
    await add({ "logical-block-size": 0 });
    const options = { address: ADDRESS, blockBytes: 512, queueCount: 1, serial: "vhost_user_blk" };
    expect(opened[0]!.options).toEqual(options);
    expect(await messageOf(add({ id: "f", addr: { type: "fd", str: "7" } }))).toBe(
      "only QEMU supports file descriptor passing",
    );
  });

  test("checks its options in the order of qemu-storage-daemon", async () => {
    const inet = { type: "inet", host: "localhost", port: "1" };
    const wrong = { "logical-block-size": 100, "num-queues": 0, iothread: ["io0"], addr: inet };
    const right = { "logical-block-size": 512, "num-queues": 1, iothread: "io0", addr: ADDRESS };
    const messages: string[] = [];
    for (const name of Object.keys(wrong) as (keyof typeof wrong)[]) {
      messages.push(await messageOf(add(wrong)));
      Object.assign(wrong, { [name]: right[name] });
    }
    expect(messages).toEqual([
      "parameter logical-block-size must be a power of 2 between 512 and 2097152",
      "num-queues must be greater than 0",
      "vhost-user-blk export does not support multi-threading",
      "Only socket address types 'unix' and 'fd' are supported",
    ]);
    expect(opened).toEqual([]);
    expect(await messageOf(add({ "num-queues": 1025 }))).toBe("num-queues must be at most 1024");
    expect(await messageOf(add({ serial: "s".repeat(21) }))).toBe(
      "serial must be at most 20 bytes",
    );
  });

  test("leaves nothing behind when its thread can't listen", async () => {
    failOn(MAIN_LOOP, "export-open");
    expect(await messageOf(add())).toBe("export-open fails");
    expect(manager.query()).toEqual([]);
    await graph.blockdevDel("disk");
  });

  test("stays while it has a client, unless it must go", async () => {
    await add();
    const thread = iothreads.get(MAIN_LOOP);
    thread.connectionCount = 1;
    expect(await messageOf(manager.delete("e"))).toBe("export 'e' still in use");
    expect(manager.query()[0]!["shutting-down"]).toBe(false);
    await manager.delete("e", "hard");
    await manager.closeAll();
    expect(deleted).toEqual(["e"]);
    expect(thread.exports.size).toBe(0);
  });

  test("moves with its node, or keeps it where it is", async () => {
    await add();
    const node = graph.find("disk")!;
    await graph.move(node, iothreads.get("io0"));
    expect(iothreads.get("io0").exports.has("e")).toBe(true);
    failOn("io0", "export-suspend");
    expect(await messageOf(graph.move(node, iothreads.get("io1")))).toBe(
      "Cannot change iothread of active block backend",
    );
    expect(node.iothread.id).toBe("io0");
    iothreads.get("io0").before = () => {};
    await graph.move(node, iothreads.get("io1"));
    await manager.delete("e");
    expect(deleted).toEqual(["e"]);
  });
});
