/** Chardevs with fake sockets: who is served, who waits. */
import { describe, expect, test } from "bun:test";
import { Chardevs } from "../../../src/cli/chardevs.ts";
import { miscCommands } from "../../../src/qmp/commands/misc.ts";
import { Dispatcher } from "../../../src/qmp/dispatcher.ts";
import { EventHub } from "../../../src/qmp/events.ts";
import type { Listener, RuntimeDriver, Stream } from "../../../src/runtime/driver.ts";
import type { Linux } from "../../../src/runtime/linux.ts";
import { FakeStream } from "../../support/stream.ts";

function setUp() {
  const state = { closed: false, failure: undefined as unknown };
  const listener: Listener = {
    onConnection: () => {},
    close: () => {
      state.closed = true;
    },
  };
  const open = <T>(value: T): Promise<T> =>
    state.failure === undefined ? Promise.resolve(value) : Promise.reject(state.failure);
  const stdin = new FakeStream();
  const driver = {
    sockets: { listen: () => open(listener), connect: () => open(new FakeStream() as Stream) },
    process: { stdin: () => stdin },
  } as unknown as RuntimeDriver;
  const dispatcher = new Dispatcher(miscCommands({ commands: () => [], quit: async () => {} }));
  const linux = { getsockopt: () => -88 } as unknown as Linux;
  const events = new EventHub(() => 0);
  const chardevs = new Chardevs({ driver, linux, dispatcher, events, log: () => {} });
  const connect = (): FakeStream => {
    const stream = new FakeStream();
    listener.onConnection(stream);
    return stream;
  };
  return { chardevs, connect, state, stdin };
}

const SERVER = "socket,id=c,path=/x,server=on,wait=off";

describe("Chardevs", () => {
  test("serves one client of a socket at a time, in their order", async () => {
    const { chardevs, connect } = setUp();
    await chardevs.add(SERVER);
    chardevs.get("c").attachMonitor(false);
    chardevs.start();
    const [first, second, third] = [connect(), connect(), connect()];
    expect(first.take()).toMatch(/^\{"QMP"/);
    expect([second.take(), second.paused]).toEqual(["", true]);
    second.onClose();
    first.onClose();
    expect(second.take()).toBe("");
    expect([third.take().slice(0, 6), third.paused]).toEqual(['{"QMP"', false]);
  });

  test("lets requests in when all options are done", async () => {
    const { chardevs, connect, stdin } = setUp();
    await chardevs.add(SERVER);
    await chardevs.add("stdio,id=s");
    chardevs.get("c").attachMonitor(false);
    chardevs.get("s").attachMonitor(false);
    const stream = connect();
    expect([stream.take().slice(0, 6), stream.paused, stdin.paused]).toEqual([
      '{"QMP"',
      true,
      true,
    ]);
    chardevs.start();
    expect([stream.paused, stdin.paused]).toEqual([false, false]);
  });

  test("serves a client that came before the monitor", async () => {
    const { chardevs, connect } = setUp();
    await chardevs.add(SERVER);
    const stream = connect();
    expect(stream.take()).toBe("");
    chardevs.get("c").attachMonitor(true);
    expect(stream.take()).toMatch(/^\{\n {4}"QMP"/);
  });

  test("turns clients away when too many wait", async () => {
    const { chardevs, connect } = setUp();
    await chardevs.add(SERVER);
    const streams = Array.from({ length: 300 }, connect);
    expect(streams.filter(({ ended }) => ended)).toHaveLength(300 - 257);
  });

  test("waits for the first client when told so", async () => {
    const { chardevs, connect } = setUp();
    let isReady = false;
    const adding = chardevs.add("socket,id=c,path=/x,server=on").then(() => {
      isReady = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(isReady).toBe(false);
    connect();
    await adding;
  });

  test("refuses in QSD's words", async () => {
    const { chardevs, state } = setUp();
    expect(() => chardevs.get("zz")).toThrow('chardev "zz" not found');
    await chardevs.add("stdio,id=a");
    await expect(chardevs.add("stdio,id=b")).rejects.toThrow(
      "cannot use stdio by multiple character devices",
    );
    chardevs.get("a").attachMonitor(false);
    expect(() => chardevs.get("a").attachMonitor(false)).toThrow("chardev 'a' is already in use");
    await expect(chardevs.add("socket,id=d,fd=99")).rejects.toThrow(
      "File descriptor '99' is not a socket",
    );
    state.failure = Object.assign(new Error("listen"), { code: "ENOENT" });
    await expect(chardevs.add(SERVER)).rejects.toThrow(
      "Failed to bind socket to /x: No such file or directory",
    );
    state.failure = Object.assign(new Error("connect"), { code: "ECONNREFUSED" });
    await expect(chardevs.add("socket,id=d,host=h,port=1")).rejects.toThrow(
      "Failed to connect to 'h:1': Connection refused",
    );
    state.failure = Object.assign(new Error("lookup"), { code: "ENOTFOUND" });
    await expect(chardevs.add("socket,id=d,host=h,port=1")).rejects.toThrow(
      "address resolution failed for h:1: Name or service not known",
    );
  });

  test("closes listeners and clients at the end", async () => {
    const { chardevs, connect, state } = setUp();
    await chardevs.add(SERVER);
    chardevs.get("c").attachMonitor(false);
    const streams = [connect(), connect()];
    chardevs.closeAll();
    expect([state.closed, ...streams.map(({ ended }) => ended)]).toEqual([true, true, true]);
  });
});
