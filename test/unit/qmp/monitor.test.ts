/** Monitor: negotiation, replies, limits. Words and member order are those of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import { defineCommand } from "../../../src/qapi/define.ts";
import { nothing } from "../../../src/qapi/scalars.ts";
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
  const events = new EventHub(() => 1_234_567_890);
  const connect = (): FakeStream => {
    const stream = new FakeStream();
    new Monitor({ stream, dispatcher, events, pretty: false, onClose: () => log.push("closed") });
    return stream;
  };
  return { connect, events, log, release: () => release() };
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

  test("reads no more than 8 requests ahead", async () => {
    const { connect, log, release } = setUp();
    const stream = await negotiated(connect());
    stream.receive('{"execute":"block"}');
    stream.receive('{"execute":"query-commands"}'.repeat(7));
    expect(stream.paused).toBe(false);
    stream.receive('{"execute":"query-commands"}'.repeat(50));
    expect(stream.paused).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(log).toEqual(["block"]);
    release();
    expect(await stream.messages()).toHaveLength(58);
    expect(stream.paused).toBe(false);
  });

  test("takes no requests and drops events while the client does not read", async () => {
    const { connect, events } = setUp();
    const stream = await negotiated(connect());
    stream.pendingBytes = 5 * 1024 * 1024;
    stream.receive('{"execute":"query-commands"}'.repeat(20));
    events.emit("E", {});
    expect(await stream.messages()).toEqual([{ return: [] }]);
    expect(stream.paused).toBe(true);
    stream.pendingBytes = 0;
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(await stream.messages()).toHaveLength(19);
  });

  test("is silent after its client has gone", async () => {
    const { connect, events, log, release } = setUp();
    const stream = await negotiated(connect());
    stream.receive('{"execute":"block"}{"execute":"query-commands"}');
    await new Promise((resolve) => setTimeout(resolve, 5));
    stream.onClose();
    release();
    events.emit("E", {});
    expect(await stream.messages()).toEqual([]);
    expect(log).toEqual(["block", "closed"]);
  });
});
