/** Standard streams, signals and exit, the same on both runtimes. Thread: main; stderr(): any. */
import { write, writeSync } from "node:fs";
import process from "node:process";
import type { Process, Stream } from "../../src/runtime/driver.ts";
import { drained, trackPending } from "./streams.ts";

const STDOUT_FD = 1;
const STDERR_FD = 2;
/** Between attempts at a standard stream that is full and doesn't block. */
const RETRY_MS = 2;

export function makeProcess(): Process {
  const stdout = new Stdout();
  return {
    args: process.argv.slice(2),
    pid: process.pid,
    env,
    onSignal: (name, handler) => void process.on(name, handler),
    stdin: () => stdio(stdout),
    stdout: (text) => stdout.write(new TextEncoder().encode(text)),
    stderr,
    exit(code) {
      process.exitCode = code;
      void drained().then(() => process.exit(code));
    },
    exitNow: (code) => process.exit(code),
  };
}

export function env(name: string): string | undefined {
  return process.env[name];
}

/** At once, from any thread: no event loop has to turn. What stderr does not take is lost. */
export function stderr(text: string): void {
  let bytes = new TextEncoder().encode(text);
  try {
    while (bytes.length > 0) bytes = bytes.subarray(writeSync(STDERR_FD, bytes));
  } catch {
    // Closed, or full and not blocking: there is nowhere to say so.
  }
}

/**
 * Standard output in order, one write at a time on a thread of the runtime. The runtime's own
 * stream is not used: on Bun, what a slow reader has not taken when the process exits is lost.
 */
class Stdout {
  #queue: Uint8Array[] = [];
  #writing = false;
  #failed = false;
  pendingBytes = 0;
  onError: () => void = () => {};

  constructor() {
    trackPending(this);
  }

  write(bytes: Uint8Array): void {
    if (this.#failed || bytes.length === 0) return;
    this.#queue.push(bytes);
    this.pendingBytes += bytes.length;
    if (!this.#writing) this.#writeNext();
  }

  /** What is pending is not written any more, nor is anything later. */
  fail(): void {
    this.#failed = true;
    this.#queue = [];
    this.pendingBytes = 0;
  }

  #writeNext(): void {
    const bytes = this.#queue[0];
    this.#writing = bytes !== undefined;
    if (bytes === undefined) return;
    write(STDOUT_FD, bytes, 0, bytes.length, null, (error, count) => {
      if (this.#failed) return;
      if (error?.code === "EAGAIN" || error?.code === "EINTR") {
        setTimeout(() => this.#writeNext(), RETRY_MS);
        return;
      }
      if (error) {
        this.fail();
        this.onError();
        return;
      }
      this.pendingBytes -= count;
      if (count === bytes.length) this.#queue.shift();
      else this.#queue[0] = bytes.subarray(count);
      this.#writeNext();
    });
  }
}

/** Standard input and output as one stream. */
function stdio(stdout: Stdout): Stream {
  let closed = false;
  const close = (): void => {
    if (closed) return;
    closed = true;
    stream.onClose();
  };
  const stream: Stream = {
    onData: () => {},
    onClose: () => {},
    write: (bytes) => stdout.write(bytes),
    get pendingBytes() {
      return stdout.pendingBytes;
    },
    pause: () => void process.stdin.pause(),
    resume: () => void process.stdin.resume(),
    end: () => void process.stdin.destroy(),
    destroy() {
      stdout.fail();
      process.stdin.destroy();
    },
  };
  stdout.onError = close;
  process.stdin.on("data", (chunk: Uint8Array) => stream.onData(new Uint8Array(chunk)));
  process.stdin.on("end", close);
  process.stdin.on("close", close);
  process.stdin.on("error", close);
  return stream;
}
