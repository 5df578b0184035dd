import { beforeEach, describe, expect, test } from "bun:test";
import type { GraphNode } from "../../../src/block/graph-node.ts";
import { PERM_ALL } from "../../../src/block/node.ts";
import type { BlockExport } from "../../../src/exports/export.ts";
import { HostedExports } from "../../../src/exports/hosted.ts";
import type { ExportOpen, IothreadCall } from "../../../src/iothread/messages.ts";
import { OutportError } from "../../../src/util/error.ts";
import { FakeIothread, messageOf } from "../../support/iothread.ts";

const REFUSAL = "Cannot change iothread of active block backend";

describe("HostedExports", () => {
  let here: FakeIothread;
  let there: FakeIothread;
  let node: { iothread: FakeIothread; nodeName: string };
  let exp: BlockExport;
  let hosted: HostedExports;

  beforeEach(() => {
    here = new FakeIothread("here");
    there = new FakeIothread("there");
    node = { iothread: here, nodeName: "disk" };
    exp = {
      id: "e",
      node: node as unknown as GraphNode,
      writable: true,
      writethrough: false,
      multiThreaded: false,
      fdNumbers: false,
      options: {},
      permissions: { used: 0, shared: PERM_ALL },
      setPermissions: async () => {},
    };
    hosted = new HostedExports("t");
  });

  const failOn = (thread: FakeIothread, failing: IothreadCall) => {
    thread.before = (call) => {
      if (call === failing) throw new OutportError("in-use", `${call} fails`);
    };
  };

  test("takes an export along with its options, and with what its thread gave away", async () => {
    const opened: ExportOpen[] = [];
    here.before = (call, params) => {
      if (call === "export-open") opened.push(params as ExportOpen);
    };
    there.before = (call, params) => {
      if (call === "export-resume") opened.push((params as { open: ExportOpen }).open);
    };
    await hosted.open(exp, { a: 1 });
    await hosted.suspend(exp);
    expect(hosted.find("e")?.move).not.toBeNull();
    node.iothread = there;
    await hosted.resume(exp);
    expect(hosted.find("e")?.move).toBeNull();
    const open = {
      id: "e",
      type: "t",
      nodeName: "disk",
      writable: true,
      writethrough: false,
      options: { a: 1 },
    };
    expect(opened).toEqual([open, open]);
  });

  test("shuts down and closes an export where it is after a move", async () => {
    await hosted.open(exp, {});
    await hosted.suspend(exp);
    there.connectionCount = 2;
    const asked = hosted.requestShutdown(exp, false);
    node.iothread = there;
    await hosted.resume(exp);
    expect(await asked).toEqual({ clientCount: 2 });
    await hosted.close(exp);
    expect(there.log).toEqual(["export-resume", "export-shutdown", "export-close"]);
    expect(hosted.find("e")).toBeUndefined();
  });

  test("keeps an export where it is once it shuts down", async () => {
    await hosted.open(exp, {});
    failOn(here, "export-shutdown");
    expect(await messageOf(hosted.requestShutdown(exp, true))).toBe("export-shutdown fails");
    await hosted.suspend(exp);
    await hosted.resume(exp);
    hosted.setClosing(exp);
    expect(await messageOf(hosted.suspend(exp))).toBe(REFUSAL);
  });

  test("refuses a move that its thread refuses, and one of what is not there", async () => {
    expect(await messageOf(hosted.suspend(exp))).toBe(REFUSAL);
    await hosted.open(exp, {});
    failOn(here, "export-suspend");
    expect(await messageOf(hosted.suspend(exp))).toBe(REFUSAL);
    expect(hosted.find("e")?.move).toBeNull();
  });

  test("knows nothing of an export that could not be opened", async () => {
    failOn(here, "export-open");
    expect(await messageOf(hosted.open(exp, {}))).toBe("export-open fails");
    expect(hosted.find("e")).toBeUndefined();
  });
});
