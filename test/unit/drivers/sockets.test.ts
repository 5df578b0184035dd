import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AF_INET, AF_UNIX, SOCK_STREAM } from "../../../src/abi/linux-socket.ts";
import type { SocketAddress, Stream } from "../../../src/runtime/driver.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const { sockets } = driver;

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "sockets-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

function unix(name: string): { type: "unix"; path: string } {
  return { type: "unix", path: join(folder, name) };
}

/** All bytes until the stream closes, as text. */
function textOf(stream: Stream): Promise<string> {
  return new Promise((resolve) => {
    let text = "";
    stream.onData = (bytes) => {
      text += new TextDecoder().decode(bytes);
    };
    stream.onClose = () => resolve(text);
  });
}

const bytesOf = (text: string) => new TextEncoder().encode(text);

/** Sends each connection "hello " and what it says, in capitals, then ends it at a dot. */
async function serveShout(address: SocketAddress): Promise<{ close(): void }> {
  const listener = await sockets.listen(address);
  listener.onConnection = (stream) => {
    stream.write(bytesOf("hello "));
    stream.onData = (bytes) => {
      const text = new TextDecoder().decode(bytes);
      stream.write(bytesOf(text.toUpperCase()));
      if (text.endsWith(".")) stream.end();
    };
  };
  return listener;
}

async function shout(address: SocketAddress): Promise<string> {
  const stream = await sockets.connect(address);
  stream.write(bytesOf("text."));
  return textOf(stream);
}

async function codeOf(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
    return "none";
  } catch (error) {
    return (error as { code?: unknown }).code;
  }
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}

/** A port that was free a moment ago. */
function freePort(): number {
  const fd = linux.socket(AF_INET, SOCK_STREAM);
  linux.bind(fd, { type: "inet", family: 4, address: "127.0.0.1", port: 0 });
  const { port } = linux.getsockname(fd) as { port: number };
  linux.close(fd);
  return port;
}

describe("sockets", () => {
  test("listen() and connect() speak over a unix path, which close() removes", async () => {
    const address = unix("plain");
    const listener = await serveShout(address);
    expect(await shout(address)).toBe("hello TEXT.");
    listener.close();
    await until(() => !existsSync(address.path));
    expect(await codeOf(sockets.connect(address))).toBe("ENOENT");
  });

  test("listen() and connect() speak over an abstract name", async () => {
    const address = { type: "unix", path: `\0${folder}/abstract` } as const;
    const listener = await serveShout(address);
    expect(await shout(address)).toBe("hello TEXT.");
    listener.close();
  });

  test("listen() and connect() speak over TCP", async () => {
    const address = { type: "inet", host: "127.0.0.1", port: freePort() } as const;
    const listener = await serveShout(address);
    expect(await shout(address)).toBe("hello TEXT.");
    listener.close();
    expect(await codeOf(sockets.connect(address))).toBe("ECONNREFUSED");
  });

  test("listen() takes an inherited listening socket", async () => {
    const fd = linux.socket(AF_UNIX, SOCK_STREAM);
    const address = unix("inherited");
    linux.bind(fd, address);
    linux.listen(fd, 8);
    const listener = await serveShout({ type: "fd", fd });
    expect(await shout(address)).toBe("hello TEXT.");
    listener.close();
  });

  test("connect() adopts an inherited connected socket", async () => {
    const [left, right] = linux.socketpair(AF_UNIX, SOCK_STREAM) as readonly [number, number];
    const first = await sockets.connect({ type: "fd", fd: left });
    const second = await sockets.connect({ type: "fd", fd: right });
    const received = textOf(second);
    first.write(bytesOf("through the pair"));
    first.end();
    expect(await received).toBe("through the pair");
  });

  test("a paused stream holds its peer back, and pendingBytes tells", async () => {
    const address = unix("paused");
    const listener = await sockets.listen(address);
    const accepted = new Promise<Stream>((resolve) => {
      listener.onConnection = resolve;
    });
    const client = await sockets.connect(address);
    const server = await accepted;
    let received = 0;
    server.onData = (bytes) => {
      received += bytes.length;
      server.pause();
    };
    const bytes = 4 << 20;
    client.write(new Uint8Array(bytes));
    await until(() => received > 0);
    const held = received;
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(received).toBeLessThanOrEqual(held + 65536);
    expect(client.pendingBytes).toBeGreaterThan(0);
    server.onData = (more) => {
      received += more.length;
    };
    server.resume();
    await until(() => received === bytes && client.pendingBytes === 0);
    client.destroy();
    listener.close();
  });

  test("onClose comes once when the peer is gone, and write() does not throw", async () => {
    const address = unix("gone");
    const listener = await sockets.listen(address);
    const accepted = new Promise<Stream>((resolve) => {
      listener.onConnection = resolve;
    });
    const client = await sockets.connect(address);
    const server = await accepted;
    let closed = 0;
    server.onData = () => {};
    server.onClose = () => {
      closed++;
    };
    client.destroy();
    for (let i = 0; i < 5; i++) {
      server.write(new Uint8Array(100_000));
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    await until(() => closed > 0 && server.pendingBytes === 0);
    server.write(bytesOf("late"));
    server.end();
    server.destroy();
    expect(closed).toBe(1);
    expect(server.pendingBytes).toBe(0);
    listener.close();
  });

  test("a peer that closed its sending side still gets what was written before", async () => {
    const address = unix("half");
    const listener = await sockets.listen(address);
    listener.onConnection = (stream) => {
      stream.onData = () => {};
      stream.onEnd = () => {
        stream.write(bytesOf("answer"));
        stream.end();
      };
    };
    const client = await sockets.connect(address);
    const received = textOf(client);
    client.write(bytesOf("question"));
    client.end();
    expect(await received).toBe("answer");
    listener.close();
  });

  test("resolve() gives numeric addresses, and rejects with a code", async () => {
    expect(await sockets.resolve("127.0.0.1")).toEqual([{ address: "127.0.0.1", family: 4 }]);
    const local = await sockets.resolve("localhost");
    expect(local.map(({ address }) => address)).toContain("127.0.0.1");
    expect(await codeOf(sockets.resolve("no-such-host.invalid"))).not.toBe("none");
  });
});
