import { describe, expect, test } from "bun:test";
import { IothreadChannel, serveCalls } from "../../../src/iothread/channel.ts";
import type { IothreadEvent } from "../../../src/iothread/messages.ts";
import type { Thread, ThreadStart } from "../../../src/runtime/driver.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { OutportError } from "../../../src/util/error.ts";
import { driver } from "../../support/driver.ts";
import { messageOf } from "../../support/iothread.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

/** Both ends on this thread, the far one on a reactor. */
function rig() {
  const reactor = makeReactor("epoll");
  const linux = new Linux(driver.ffi, driver.arch);
  const wakeFd = linux.eventfd(0, 0);
  const inbox: unknown[] = [];
  const thread: Thread = {
    send: (message) => void inbox.push(structuredClone(message)),
    onMessage: () => {},
    onError: () => {},
    onExit: () => {},
    unref() {},
  };
  const start: ThreadStart = {
    data: undefined,
    receive: () => inbox.shift(),
    send: (message) => thread.onMessage(structuredClone(message)),
  };
  const channel = new IothreadChannel(thread, () => linux.signalEventfd(wakeFd));
  return { reactor, wakeFd, start, channel };
}

function serve(
  { reactor, start, wakeFd }: ReturnType<typeof rig>,
  query: (params: { nodeName: string }) => Promise<{ result: number }>,
): void {
  const unused = async (): Promise<never> => {
    throw new Error("not called");
  };
  const names = ["node-open", "node-close", "node-permissions", "export-open", "export-close"];
  const handlers = Object.fromEntries(names.map((name) => [name, unused]));
  serveCalls(reactor, start, wakeFd, { ...handlers, "node-flush": query } as never);
}

describe("call()", () => {
  test("brings parameters there and the reply back", async () => {
    const parts = rig();
    serve(parts, async ({ nodeName }) => ({ result: nodeName === "n0" ? -5 : 0 }));
    const call = () => parts.channel.call("node-flush", { nodeName: "n0" });
    expect(await runOn(parts.reactor, call)).toEqual({ result: -5 });
  });

  test("rejects with the error that the handler threw", async () => {
    const parts = rig();
    serve(parts, async () => {
      throw new OutportError("in-use", "busy", { qapiClass: "DeviceNotActive" });
    });
    const error = await runOn(parts.reactor, () =>
      parts.channel.call("node-flush", { nodeName: "n0" }).catch((reason: unknown) => reason),
    );
    expect(error).toBeInstanceOf(OutportError);
    expect(error).toMatchObject({ kind: "in-use", message: "busy", qapiClass: "DeviceNotActive" });
  });

  test("does not wait for a slow one before it", async () => {
    const parts = rig();
    serve(parts, async ({ nodeName }) => {
      if (nodeName === "slow") await parts.reactor.sleep(20_000_000);
      return { result: 0 };
    });
    const order: unknown[] = [];
    await runOn(parts.reactor, async () => {
      const one = (nodeName: string) =>
        parts.channel.call("node-flush", { nodeName }).then(() => order.push(nodeName));
      await Promise.all([one("slow"), one("quick")]);
    });
    expect(order).toEqual(["quick", "slow"]);
  });

  test("fails when the thread is gone, before and after", async () => {
    const { channel } = rig();
    const before = messageOf(channel.call("node-flush", { nodeName: "n0" }));
    channel.break(new OutportError("io", "gone"));
    expect(await before).toBe("gone");
    expect(await messageOf(channel.call("node-flush", { nodeName: "n0" }))).toBe("gone");
  });
});

test("onEvent() gets what the thread sends by itself", () => {
  const { channel, start } = rig();
  const events: IothreadEvent[] = [];
  channel.onEvent = (event) => void events.push(event);
  start.send({ event: { event: "ready", engine: "epoll" } });
  expect(events).toEqual([{ event: "ready", engine: "epoll" }]);
});
