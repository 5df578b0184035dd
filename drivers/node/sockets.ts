/** Stream sockets of the control plane by node:net, the same on both runtimes. Thread: main. */
import { lookup } from "node:dns/promises";
import { connect, createServer, type ListenOptions, type Server, type Socket } from "node:net";
import type { Listener, SocketAddress, Sockets } from "../../src/runtime/driver.ts";
import { SocketStream } from "./streams.ts";

/** `adopt` makes a socket of a connected fd: the one thing that each runtime does its own way. */
export function makeSockets(adopt: (fd: number) => Socket): Sockets {
  return {
    async listen(address) {
      const listener: Listener = {
        get port() {
          const name = server.address();
          return typeof name === "object" ? name?.port : undefined;
        },
        onConnection: () => {},
        close: () => server.close(),
      };
      const server = await listenOn(address, (socket) =>
        listener.onConnection(new SocketStream(socket)),
      );
      return listener;
    },
    async connect(address, options) {
      const socket = address.type === "fd" ? adopt(address.fd) : await connected(address);
      if (options?.noDelay === true) socket.setNoDelay(true);
      return new SocketStream(socket);
    },
    async resolve(host) {
      const found = await lookup(host, { all: true, verbatim: true });
      return found.map(({ address, family }) => ({ address, family: family === 6 ? 6 : 4 }));
    },
  };
}

export function listenOn(
  address: SocketAddress,
  onConnection: (socket: Socket) => void,
): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer({ allowHalfOpen: true }, onConnection);
    server.once("error", reject);
    server.listen(listenOptions(address), () => {
      server.off("error", reject);
      // Running out of descriptors, for example: the connection waits, or its client gives up.
      server.on("error", () => {});
      resolve(server);
    });
  });
}

function listenOptions(address: SocketAddress): ListenOptions & { fd?: number } {
  switch (address.type) {
    case "unix":
      return { path: address.path };
    case "inet":
      return address.host === ""
        ? { port: address.port }
        : { host: address.host, port: address.port };
    case "fd":
      return { fd: address.fd };
  }
}

type NamedAddress = Exclude<SocketAddress, { type: "fd" }>;

function connected(address: NamedAddress): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket =
      address.type === "unix"
        ? connect({ path: address.path, allowHalfOpen: true })
        : connect({ host: address.host, port: address.port, allowHalfOpen: true });
    socket.once("error", reject);
    socket.once("connect", () => {
      socket.off("error", reject);
      resolve(socket);
    });
  });
}
