import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { ResizeRequests } from "../../../src/block/resize-requests.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import type { IothreadEvent } from "../../../src/iothread/messages.ts";
import { makeReactor, runOn } from "../../support/reactor.ts";

describe("ResizeRequests", () => {
  let reactor: Reactor;
  let sent: IothreadEvent[];
  let requests: ResizeRequests;

  beforeEach(() => {
    reactor = makeReactor("epoll");
    sent = [];
    requests = new ResizeRequests({ reactor, send: (event) => sent.push(event) });
  });

  afterEach(() => {
    reactor.engine.close();
    reactor.memory.unmap();
  });

  test("each asker hears of its own answer", async () => {
    const first = requests.resize("a", 512, true);
    const second = requests.resize("b", 1024, false);
    expect(sent).toEqual([
      { event: "node-resize", request: 1, nodeName: "a", bytes: 512, atLeast: true },
      { event: "node-resize", request: 2, nodeName: "b", bytes: 1024, atLeast: false },
    ]);
    await requests.calls["node-resized"]({ request: 2, result: -28 });
    await requests.calls["node-resized"]({ request: 1, result: 0 });
    expect(await runOn(reactor, () => Promise.all([first, second]))).toEqual([0, -28]);
  });
});
