/** Monitor and Session: negotiation, replies, limits. Words and order are those of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import { defineCommand, defineEvent } from "../../../src/qapi/define.ts";
import { any, nothing, object } from "../../../src/qapi/scalars.ts";
import { miscCommands } from "../../../src/qmp/commands/misc.ts";
import { Dispatcher } from "../../../src/qmp/dispatcher.ts";
import { EventHub } from "../../../src/qmp/events.ts";
import { Monitor } from "../../../src/qmp/monitor.ts";
import { FakeStream } from "../../support/stream.ts";

function setUp() {
  let release: () => void = () => {};
  const log: string[] = [];
  const block = defineCommand({
    name: "block",
    documentation: "Waits for the test.",
    errors: [],
    arguments: nothing,
    returns: nothing,
    handler: () =>
      new Promise((resolve) => {
        log.push("block");
        release = () => resolve({});
      }),
  });
  const crash = defineCommand({
    name: "crash",
    documentation: "Has a fault.",
    errors: [],
    arguments: nothing,
    returns: nothing,
    handler: () => {
      throw new TypeError("a bug");
    },
  });
  const misc = miscCommands({ commands: () => [], quit: async () => {} });
  const dispatcher = new Dispatcher([...misc, block, crash]);
  const definition = defineEvent({
    name: "E",
    documentation: "Happens.",
    data: object("E", { a: any }),
  });
  const clock = { realTimeUs: () => 1_234_567_890, setTimeout: () => {} };
  const events = new EventHub([definition], clock);
  const settings = { pretty: false };
  const connect = (): FakeStream => {
    const stream = new FakeStream();
    const monitor = new Monitor({
      id: "m",
      settings,
      dispatcher,
      events,
      log: (level, text) => {
        if (level === "warn") log.push(text);
      },
      onClosed: () => log.push("closed"),
    });
    monitor.opened(stream);
    stream.onEnd = () => monitor.inputEnded(() => log.push("done"));
    stream.onClose = () => monitor.closed();
    return stream;
  };
  return { connect, dispatcher, events, log, settings, release: () => release() };
}

async function negotiated(stream: FakeStream): Promise<FakeStream> {
  stream.receive('{"execute":"qmp_capabilities"}');
  await stream.messages();
  return stream;
}

describe("Monitor", () => {
  test("greets with QEMU's version and the capability oob", () => {
    const { connect } = setUp();
    expect(JSON.parse(connect().take())).toMatchObject({
      QMP: { version: { qemu: { major: 11, minor: 1 } }, capabilities: ["oob"] },
    });
  });

  test("takes nothing but qmp_capabilities at first, and that once", async () => {
    const stream = setUp().connect();
    stream.take();
    stream.receive('{"execute":"query-version","id":1}{"execute":"qmp_capabilities"}');
    stream.receive('{"execute":"qmp_capabilities"}');
    const text = "Capabilities negotiation is already complete, command ignored";
    expect(await stream.messages()).toEqual([
      {
        id: 1,
        error: {
          class: "CommandNotFound",
          desc: "Expecting capabilities negotiation with 'qmp_capabilities'",
        },
      },
      { return: {} },
      { error: { class: "CommandNotFound", desc: text } },
    ]);
  });

  test("refuses unknown capabilities", async () => {
    const stream = setUp().connect();
    stream.take();
    stream.receive('{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}');
    expect(await stream.messages()).toEqual([
      { error: { class: "GenericError", desc: "Parameter 'null' does not accept value 'foo'" } },
    ]);
  });

  test("puts the id last in a return, and first in an error", async () => {
    const stream = await negotiated(setUp().connect());
    stream.receive("{'execute':'query-commands','id':{'a':[1]}}{'execute':'nope','id':'x'}");
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(stream.take()).toBe(
      '{"return": [], "id": {"a": [1]}}\r\n{"id": "x", "error": {"class": "CommandNotFound", ' +
        '"desc": "The command nope has not been found"}}\r\n',
    );
  });

  test("answers garbage and goes on", async () => {
    const stream = await negotiated(setUp().connect());
    stream.receive('[1]\n{"a" 1}\n{"execute":"query-commands"}');
    expect(await stream.messages()).toEqual([
      { error: { class: "GenericError", desc: "QMP input must be a JSON object" } },
      { error: { class: "GenericError", desc: "2:6: JSON parse error, expecting ':'" } },
      { return: [] },
    ]);
  });

  test("knows out-of-band requests when negotiated; no command supports them", async () => {
    const stream = setUp().connect();
    stream.receive('{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}');
    await stream.messages();
    stream.receive('{"exec-oob":"query-version"}');
    expect(await stream.messages()).toEqual([
      { error: { class: "GenericError", desc: "The command query-version does not support OOB" } },
    ]);
  });

  test("answers a fault of ours with an error", async () => {
    const stream = await negotiated(setUp().connect());
    stream.receive('{"execute":"crash"}');
    expect(await stream.messages()).toEqual([
      { error: { class: "GenericError", desc: "Internal error: a bug" } },
    ]);
  });

  test("delivers events after the negotiation only", async () => {
    const { connect, events } = setUp();
    const early = connect();
    early.take();
    const ready = await negotiated(connect());
    events.emit("E", { a: 1 });
    expect(early.take()).toBe("");
    expect(await ready.messages()).toEqual([
      { timestamp: { seconds: 1234, microseconds: 567890 }, event: "E", data: { a: 1 } },
    ]);
  });

  test("takes one request at a time, or 8 with oob", async () => {
    const { connect, log, release } = setUp();
    for (const [enable, taken] of [
      ["", 1],
      ['"oob"', 8],
    ] as const) {
      const stream = connect();
      stream.receive(`{"execute":"qmp_capabilities","arguments":{"enable":[${enable}]}}`);
      await stream.messages();
      stream.receive('{"execute":"block"}');
      if (taken > 1) stream.receive('{"execute":"query-commands"}'.repeat(taken - 1));
      expect(stream.paused).toBe(false);
      stream.receive('{"execute":"query-commands"}'.repeat(50));
      expect(stream.paused).toBe(true);
      await new Promise((resolve) => setTimeout(resolve, 5));
      expect(log.splice(0)).toEqual(["block"]);
      release();
      expect(await stream.messages()).toHaveLength(50 + taken);
      expect(stream.paused).toBe(false);
    }
  });

  test("lets out-of-band requests overtake, errors stay in order", async () => {
    const { connect, release } = setUp();
    const stream = connect();
    stream.receive('{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}');
    await stream.messages();
    stream.receive('{"execute":"block","id":1}{"execute":1,"id":2} ] {"exec-oob":"nope","id":3}');
    stream.receive('{"exec-oob":"query-version","id":4}{"exec-oob":"query-version","execute":"x"}');
    expect((await stream.messages()).map(({ id }) => id)).toEqual([3, 4]);
    release();
    const replies = await stream.messages();
    expect(replies.map(({ id }) => id)).toEqual([1, 2, undefined, undefined]);
    expect(replies[3]).toEqual({
      error: {
        class: "GenericError",
        desc: "QMP input member 'execute' clashes with 'exec-oob'",
      },
    });
  });

  test("knows no out-of-band requests unless negotiated", async () => {
    const stream = await negotiated(setUp().connect());
    stream.receive('{"exec-oob":"query-version"}');
    expect(await stream.messages()).toEqual([
      { error: { class: "GenericError", desc: "QMP input member 'exec-oob' is unexpected" } },
    ]);
  });

  test("checks arguments before it says that the negotiation is complete", async () => {
    const stream = await negotiated(setUp().connect());
    stream.receive('{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}');
    expect(await stream.messages()).toEqual([
      { error: { class: "GenericError", desc: "Parameter 'null' does not accept value 'foo'" } },
    ]);
  });

  test("answers what came before the client's end, then is done", async () => {
    const { connect, log, release } = setUp();
    const stream = await negotiated(connect());
    stream.receive('{"execute":"block"}{"execute":"query-commands"}{"execute":"nope"}');
    stream.onEnd();
    expect(log).toEqual(["block"]);
    release();
    expect(await stream.messages()).toHaveLength(3);
    expect(log).toEqual(["block", "done"]);
  });

  test("takes no requests while the client does not read", async () => {
    const { connect } = setUp();
    const stream = await negotiated(connect());
    stream.pendingBytes = 1024 * 1024;
    stream.receive('{"execute":"query-commands"}'.repeat(20));
    expect(await stream.messages()).toEqual([]);
    expect(stream.paused).toBe(true);
    stream.pendingBytes = 0;
    while (stream.paused) await new Promise((resolve) => setTimeout(resolve, 5));
    expect(await stream.messages()).toHaveLength(20);
  });

  test("drops a client that does not read its events", async () => {
    const { connect, events, log } = setUp();
    const stream = await negotiated(connect());
    stream.pendingBytes = 4 * 1024 * 1024;
    events.emit("E", { a: 1 });
    expect(stream.ended).toBe(false);
    stream.pendingBytes += 1;
    events.emit("E", { a: 2 });
    expect(stream.ended).toBe(true);
    expect(log).toEqual(["monitor 'm': the client does not read, its connection is closed"]);
    expect((await stream.messages()).map(({ data }) => data)).toEqual([{ a: 1 }]);
  });

  test("writes pretty when told so, from then on", async () => {
    const { connect, settings } = setUp();
    const stream = await negotiated(connect());
    settings.pretty = true;
    stream.receive('{"execute":"qmp_capabilities"}');
    expect(stream.take()).toMatch(/^\{\n {4}"error": \{\n/);
  });

  test("is silent after its client has gone, and drops what waits", async () => {
    const { connect, events, log, release } = setUp();
    const stream = await negotiated(connect());
    stream.receive('{"execute":"block"}{"execute":"block"}');
    await new Promise((resolve) => setTimeout(resolve, 5));
    stream.onClose();
    release();
    events.emit("E", { a: 1 });
    expect(await stream.messages()).toEqual([]);
    expect(log).toEqual(["block", "closed"]);
  });

  test("runs nothing more once the dispatcher is closed", async () => {
    const { connect, dispatcher, log, release } = setUp();
    const stream = await negotiated(connect());
    stream.receive('{"execute":"block"}{"execute":"block"}');
    dispatcher.close();
    release();
    expect(await stream.messages()).toEqual([{ return: {} }]);
    expect(log).toEqual(["block"]);
  });
});
