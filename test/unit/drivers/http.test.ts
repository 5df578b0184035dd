import { describe, expect, test } from "bun:test";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { driver } from "../../support/driver.ts";

const address = { type: "unix", path: join(tmpdir(), `http-${process.pid}.sock`) } as const;

/** Sends a raw request; everything that comes back until the connection closes. */
async function exchange(request: string): Promise<string> {
  const stream = await driver.sockets.connect(address);
  return new Promise((resolve) => {
    let text = "";
    stream.onData = (bytes) => {
      text += new TextDecoder().decode(bytes);
    };
    stream.onClose = () => resolve(text);
    stream.write(new TextEncoder().encode(request));
  });
}

describe("http", () => {
  test("serve() gives the handler the request and sends its response", async () => {
    const server = await driver.http.serve(address, async (request) => {
      const { pathname, search } = new URL(request.url);
      const body = await request.text();
      const text = [request.method, pathname, search, request.headers.get("x-a"), body].join(" ");
      return new Response(text, { status: 201, headers: { "x-b": "header" } });
    });
    const head = "POST /path?a=b HTTP/1.1\r\nHost: h\r\nX-A: one\r\nConnection: close\r\n";
    const response = await exchange(`${head}Content-Length: 4\r\n\r\nbody`);
    server.close();
    expect(response).toMatch(/^HTTP\/1\.1 201 Created\r\n/);
    expect(response.toLowerCase()).toContain("x-b: header\r\n");
    expect(response).toContain("POST /path ?a=b one body");
  });

  test("serve() streams a body and cancels it when the client is gone", async () => {
    let cancel = () => {};
    const cancelled = new Promise<void>((resolve) => {
      cancel = resolve;
    });
    const server = await driver.http.serve(address, () => {
      const first = new TextEncoder().encode("data: 1\n\n");
      const body = new ReadableStream({ start: (stream) => stream.enqueue(first), cancel });
      return new Response(body, { headers: { "content-type": "text/event-stream" } });
    });
    const stream = await driver.sockets.connect(address);
    const seen = new Promise<void>((resolve) => {
      stream.onData = (bytes) => {
        if (new TextDecoder().decode(bytes).includes("data: 1")) resolve();
      };
    });
    stream.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    await seen;
    stream.destroy();
    await cancelled;
    server.close();
  });

  test("a handler that throws closes the connection and nothing else", async () => {
    const server = await driver.http.serve(address, () => {
      throw new Error("of the handler");
    });
    expect(await exchange("GET / HTTP/1.1\r\nHost: h\r\n\r\n")).toBe("");
    expect(await exchange("nonsense\r\n\r\n")).toMatch(/^HTTP\/1\.1 400/);
    server.close();
  });
});
