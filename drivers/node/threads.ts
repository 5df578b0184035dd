/**
 * Threads by node:worker_threads, the same on both runtimes. Messages go over a port of our own:
 * its receiver can take them without an event loop, and it can be handed on.
 */
import { MessageChannel, receiveMessageOnPort, Worker, workerData } from "node:worker_threads";
import type { Thread, ThreadKind, ThreadStart } from "../../src/runtime/driver.ts";

interface WorkerData {
  readonly data: unknown;
  readonly port: MessageChannel["port2"];
}

/**
 * The starter of threads whose entry files, `${kind}.ts`, are next to the module `url`. A bundle
 * has them as .js; a compiled executable has its modules in one folder, so "next to" holds there.
 */
export function threadStarter(url: string): (kind: ThreadKind, data: unknown) => Thread {
  const extension = url.endsWith(".ts") ? "ts" : "js";
  return (kind, data) => startThread(new URL(`./${kind}.${extension}`, url), data);
}

function startThread(entry: URL, data: unknown): Thread {
  const { port1, port2 } = new MessageChannel();
  const worker = new Worker(entry, {
    workerData: { data, port: port2 } satisfies WorkerData,
    transferList: [port2],
  });
  const thread: Thread = {
    send: (message) => port1.postMessage(message),
    onMessage: () => {},
    onError: () => {},
    onExit: () => {},
    unref() {
      worker.unref();
      port1.unref();
    },
  };
  port1.on("message", (message) => thread.onMessage(message));
  worker.on("error", (error) => thread.onError(toError(error)));
  worker.on("exit", () => {
    // What the thread sent last may still be on its way: it comes before the end.
    for (let next = receiveMessageOnPort(port1); next; next = receiveMessageOnPort(port1)) {
      thread.onMessage(next.message);
    }
    port1.close();
    thread.onExit();
  });
  return thread;
}

/** What this thread got at its start. Only in a thread that startThread() made, once. */
export function threadStart(): ThreadStart {
  const { data, port } = workerData as WorkerData;
  return {
    data,
    receive: () => receiveMessageOnPort(port)?.message,
    send: (message) => port.postMessage(message),
  };
}

function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
