/**
 * HTTP by node:http on sockets of node:net, the same on both runtimes and for every kind of
 * address. Thread: main.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { Readable } from "node:stream";
import type { Http } from "../../src/runtime/driver.ts";
import { listenOn } from "./sockets.ts";

type Handler = Parameters<Http["serve"]>[1];

export function makeHttp(): Http {
  return {
    async serve(address, handler) {
      const http = createServer((incoming, outgoing) => {
        answer(incoming, outgoing, handler).catch(() => outgoing.destroy());
      });
      const sockets = new Set<Socket>();
      const server = await listenOn(address, (socket) => {
        sockets.add(socket);
        socket.on("close", () => sockets.delete(socket));
        http.emit("connection", socket);
      });
      return {
        close() {
          server.close();
          for (const socket of sockets) socket.destroy();
        },
      };
    },
  };
}

async function answer(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  handler: Handler,
): Promise<void> {
  const gone = new AbortController();
  outgoing.on("close", () => gone.abort());
  const response = await handler(toRequest(incoming, gone.signal));
  outgoing.writeHead(response.status, [...response.headers].flat());
  if (response.body === null) {
    outgoing.end();
    return;
  }
  const reader = response.body.getReader();
  gone.signal.addEventListener("abort", () => void reader.cancel().catch(() => {}));
  // The client of an event stream waits for the head before there is an event.
  outgoing.flushHeaders();
  for (;;) {
    const { done, value } = await reader.read();
    if (done || gone.signal.aborted) break;
    if (!outgoing.write(value)) await writable(outgoing);
  }
  outgoing.end();
}

/** Resolves when more can be written, or never will be. */
function writable(outgoing: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    outgoing.once("drain", resolve);
    outgoing.once("close", resolve);
  });
}

function toRequest(incoming: IncomingMessage, signal: AbortSignal): Request {
  const headers = new Headers();
  for (const [name, values] of Object.entries(incoming.headersDistinct)) {
    for (const value of values ?? []) headers.append(name, value);
  }
  const method = incoming.method ?? "GET";
  const url = new URL(incoming.url ?? "/", `http://${headers.get("host") ?? "localhost"}`);
  if (method === "GET" || method === "HEAD")
    return new Request(url.href, { method, headers, signal });
  const body = Readable.toWeb(incoming) as unknown as ReadableStream<Uint8Array>;
  const streamed = { method, headers, signal, body, duplex: "half" };
  return new Request(url.href, streamed as RequestInit);
}
