/** Chardevs with fake sockets: who is served, who waits, what is refused. Words of QSD 11.1. */
import { describe, expect, test } from "bun:test";
import type { Frontend } from "../../../src/chardev/chardev.ts";
import { Chardevs } from "../../../src/chardev/manager.ts";
import type { ChardevBackend } from "../../../src/qapi/chardev.ts";
import type { Listener, RuntimeDriver } from "../../../src/runtime/driver.ts";
import { EACCES, ENOENT, ENOTSOCK } from "../../../src/runtime/errno.ts";
import type { Linux } from "../../../src/runtime/linux.ts";
import { FakeStream } from "../../support/stream.ts";

/** Sends a greeting, and logs what happens to it. */
class FakeFrontend implements Frontend {
  readonly log: string[] = [];
  stream: FakeStream | undefined;
  done: (() => void) | undefined;

  opened(stream: FakeStream): void {
    this.stream = stream;
    stream.write(new TextEncoder().encode("hello"));
  }
  inputEnded(done: () => void): void {
    this.log.push("ended");
    this.done = done;
  }
  closed(): void {
    this.log.push("closed");
  }
  detached(): void {
    this.log.push("detached");
  }
}

function setUp() {
  const state = {
    closed: 0,
    bindResult: 0,
    connectFailure: undefined as unknown,
    connected: [] as FakeStream[],
  };
  const listener: Listener = {
    port: undefined,
    onConnection: () => {},
    close: () => {
      state.closed++;
    },
  };
  const stdin = new FakeStream();
  const log: string[] = [];
  const driver = {
    sockets: {
      listen: async () => listener,
      resolve: () => Promise.reject(new Error("no such host")),
      connect: async () => {
        if (state.connectFailure !== undefined) throw state.connectFailure;
        const stream = new FakeStream();
        state.connected.push(stream);
        return stream;
      },
    },
    process: { stdin: () => stdin },
  } as unknown as RuntimeDriver;
  const linux = {
    socket: () => 9,
    // What statPlace() begins with: nothing is at any path.
    mmap: () => -ENOENT,
    bind: () => state.bindResult,
    listen: () => 0,
    getsockopt: () => -ENOTSOCK,
    close: () => 0,
  } as unknown as Linux;
  const chardevs = new Chardevs({
    driver,
    linux,
    background: false,
    log: (_, text) => log.push(text),
  });
  const connect = (): FakeStream => {
    const stream = new FakeStream();
    listener.onConnection(stream);
    return stream;
  };
  const add = (id: string, backend: ChardevBackend) => chardevs.add(id, backend, "command-line");
  return { chardevs, add, connect, state, stdin, log };
}

type SocketData = Extract<ChardevBackend, { type: "socket" }>["data"];
const addr = { type: "unix", data: { path: "/x" } } as const;
const socket = (data: Partial<SocketData> = {}): ChardevBackend => ({
  type: "socket",
  data: { addr, ...data } as SocketData,
});
const nothing: ChardevBackend = { type: "null", data: {} };
const turn = () => new Promise((resolve) => setTimeout(resolve, 5));

describe("Chardevs", () => {
  test("serve one client of a socket at a time, in their order", async () => {
    const { chardevs, add, connect } = setUp();
    await add("c", socket());
    chardevs.get("c").attach(new FakeFrontend());
    chardevs.start();
    const [first, second, third] = [connect(), connect(), connect()];
    expect(first.take()).toBe("hello");
    expect([second.take(), second.paused]).toEqual(["", true]);
    second.onEnd();
    first.onClose();
    expect([second.take(), second.ended]).toEqual(["", true]);
    expect([third.take(), third.paused]).toEqual(["hello", false]);
  });

  test("let requests in when all options are done", async () => {
    const { chardevs, add, connect, stdin } = setUp();
    await add("c", socket());
    await add("s", { type: "stdio", data: {} });
    chardevs.get("c").attach(new FakeFrontend());
    chardevs.get("s").attach(new FakeFrontend());
    const stream = connect();
    expect([stream.take(), stream.paused, stdin.paused]).toEqual(["hello", true, true]);
    chardevs.start();
    expect([stream.paused, stdin.paused]).toEqual([false, false]);
  });

  test("keep a connection for the next front-end", async () => {
    const { chardevs, add, connect } = setUp();
    await add("c", socket());
    chardevs.start();
    const stream = connect();
    expect([stream.take(), stream.paused]).toEqual(["", true]);
    const [first, second] = [new FakeFrontend(), new FakeFrontend()];
    chardevs.get("c").attach(first);
    expect([stream.take(), stream.paused]).toEqual(["hello", false]);
    chardevs.get("c").detach();
    expect([first.log, stream.paused, stream.ended]).toEqual([["detached"], true, false]);
    chardevs.get("c").attach(second);
    stream.onClose();
    expect([first.log, second.log]).toEqual([["detached"], ["closed"]]);
  });

  test("end a socket's connection when what its client sent is dealt with", async () => {
    const { chardevs, add, connect, stdin } = setUp();
    const frontend = new FakeFrontend();
    await add("c", socket());
    chardevs.get("c").attach(frontend);
    const [first, second] = [connect(), connect()];
    first.onEnd();
    expect([frontend.log, first.ended, second.take()]).toEqual([["ended"], false, ""]);
    frontend.done?.();
    expect([frontend.log, first.ended]).toEqual([["ended", "closed"], true]);
    expect(second.take()).toBe("hello");
    first.onClose();
    expect(frontend.log).toEqual(["ended", "closed"]);
    // Standard output goes on.
    const other = new FakeFrontend();
    await add("s", { type: "stdio", data: {} });
    chardevs.get("s").attach(other);
    stdin.onEnd();
    other.done?.();
    expect([other.log, stdin.ended]).toEqual([["ended"], false]);
  });

  test("end the connection of a client that has sent all and is answered no more", async () => {
    const { chardevs, add, connect } = setUp();
    const frontend = new FakeFrontend();
    await add("c", socket());
    chardevs.get("c").attach(frontend);
    const stream = connect();
    stream.onEnd();
    chardevs.get("c").detach();
    expect([frontend.log, stream.ended]).toEqual([["ended", "detached"], true]);
    expect(chardevs.query()[0]?.filename).toBe("disconnected:unix:/x,server=on");
  });

  test("turn clients away when too many wait", async () => {
    const { add, connect } = setUp();
    await add("c", socket());
    const streams = Array.from({ length: 300 }, connect);
    expect(streams.filter(({ ended }) => ended)).toHaveLength(300 - 257);
  });

  test("wait for the first client when told so", async () => {
    const { add, connect, log } = setUp();
    let isReady = false;
    const adding = add("c", socket({ wait: true })).then(() => {
      isReady = true;
    });
    await turn();
    expect([isReady, log]).toEqual([
      false,
      ["waiting for connection on: disconnected:unix:/x,server=on"],
    ]);
    connect();
    await adding;
  });

  test("connect again after a connection is lost, and complain once", async () => {
    const { chardevs, add, state, log } = setUp();
    const frontend = new FakeFrontend();
    state.connectFailure = Object.assign(new Error("connect"), { code: "ECONNREFUSED" });
    await add("c", socket({ server: false, "reconnect-ms": 1 }));
    chardevs.get("c").attach(frontend);
    await turn();
    const reason = "Failed to connect to '/x': Connection refused";
    expect(log).toEqual([`Unable to connect character device c: ${reason}`]);
    expect(chardevs.query()[0]?.filename).toBe("disconnected:unix:/x");
    state.connectFailure = undefined;
    await turn();
    expect(state.connected).toHaveLength(1);
    expect(chardevs.query()).toEqual([{ "frontend-open": true, filename: "unix:/x", label: "c" }]);
    state.connected[0]?.onClose();
    expect(frontend.log).toEqual(["closed"]);
    await turn();
    expect(state.connected).toHaveLength(2);
    chardevs.closeAll();
    state.connected[1]?.onClose();
    await turn();
    expect(state.connected).toHaveLength(2);
  });

  test("do not try again at once when they are told to wait for months", async () => {
    const { chardevs, add, state, log } = setUp();
    state.connectFailure = new Error("connect");
    await add("c", socket({ server: false, "reconnect-ms": Number.MAX_SAFE_INTEGER }));
    await turn();
    state.connectFailure = undefined;
    await turn();
    expect([log.length, state.connected.length]).toEqual([1, 0]);
    chardevs.closeAll();
  });

  test("are removed and changed when nobody uses them", async () => {
    const { chardevs, connect, state } = setUp();
    await chardevs.add("c", socket(), "monitor");
    const stream = connect();
    chardevs.get("c").attach(new FakeFrontend());
    expect(() => chardevs.remove("c")).toThrow("Chardev 'c' is busy");
    await expect(chardevs.change("c", nothing)).rejects.toThrow(
      "Chardev user does not support chardev hotswap",
    );
    chardevs.get("c").detach();
    await chardevs.change("c", nothing);
    expect([stream.ended, state.closed]).toEqual([true, 1]);
    expect(chardevs.query()).toEqual([{ "frontend-open": false, filename: "null", label: "c" }]);
    state.bindResult = -EACCES;
    await expect(chardevs.change("c", socket())).rejects.toThrow(
      "Failed to add chardev 'c': Failed to bind socket to /x: Permission denied",
    );
    chardevs.remove("c");
    expect(chardevs.query()).toEqual([]);
  });

  test("refuse in QSD's words", async () => {
    const { chardevs, add, state } = setUp();
    expect(() => chardevs.get("zz")).toThrow('chardev "zz" not found');
    expect(() => chardevs.remove("zz")).toThrow("Chardev 'zz' not found");
    expect(() => chardevs.sendBreak("zz")).toThrow("Chardev 'zz' not found");
    await expect(chardevs.change("zz", nothing)).rejects.toThrow("Chardev 'zz' does not exist");
    const cases: [ChardevBackend, string][] = [
      [
        socket({ "reconnect-ms": 5 }),
        "'reconnect-ms' option is incompatible with socket in server",
      ],
      [
        socket({ server: false, wait: true }),
        "'wait' option is incompatible with socket in client",
      ],
      [socket({ "tls-authz": "a" }), "'tls_authz' option requires 'tls_creds' option"],
      [socket({ telnet: true }), "'telnet' is not supported"],
      [
        socket({ addr: { type: "inet", data: { host: "no-such-host", port: "1" } } }),
        "address resolution failed for no-such-host:1: Name or service not known",
      ],
    ];
    for (const [backend, message] of cases) {
      await expect(add("a", backend)).rejects.toThrow(message);
      await expect(chardevs.add("a", backend, "monitor")).rejects.toThrow(
        `Failed to add chardev 'a': ${message}`,
      );
    }
    const byNumber = socket({ addr: { type: "fd", data: { str: "9" } } });
    await expect(add("a", byNumber)).rejects.toThrow("File descriptor '9' is not a socket");
    await expect(chardevs.add("a", byNumber, "monitor")).rejects.toThrow(
      "only QEMU supports file descriptor passing",
    );
    await add("a", { type: "stdio", data: {} });
    await expect(add("b", { type: "stdio", data: {} })).rejects.toThrow(
      "cannot use stdio by multiple character devices",
    );
    await expect(chardevs.add("a", nothing, "monitor")).rejects.toThrow(
      "Chardev with id 'a' already exists",
    );
    await expect(add("a", nothing)).rejects.toThrow(
      "attempt to add duplicate property 'a' to object (type 'container')",
    );
    chardevs.get("a").attach(new FakeFrontend());
    expect(() => chardevs.get("a").attach(new FakeFrontend())).toThrow(
      "chardev 'a' is already in use",
    );
    state.connectFailure = Object.assign(new Error("connect"), { code: "ECONNREFUSED" });
    await expect(add("d", socket({ server: false }))).rejects.toThrow(
      "Failed to connect to '/x': Connection refused",
    );
  });

  test("close listeners and clients at the end", async () => {
    const { chardevs, add, connect, state } = setUp();
    await add("c", socket());
    chardevs.get("c").attach(new FakeFrontend());
    const streams = [connect(), connect()];
    chardevs.closeAll();
    expect([state.closed, ...streams.map(({ ended }) => ended)]).toEqual([1, true, true]);
  });
});
