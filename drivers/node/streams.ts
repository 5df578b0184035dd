/** Connected sockets as Streams, and the wait for what streams have pending. Thread: main. */
import type { Socket } from "node:net";
import type { Stream } from "../../src/runtime/driver.ts";

/** A peer that takes nothing for this long does not hold up the end of the process. */
const DRAIN_STALL_MS = 1000;
const DRAIN_POLL_MS = 1;

/** A peer that takes nothing after the end is given up after this long. */
const LINGER_MS = 2000;

/** One write of the runtime: what has been taken is known in steps of it. */
const WRITE_BYTES_MAX = 65536;

interface Pending {
  readonly pendingBytes: number;
}
const tracked = new Set<Pending>();

/** drained() waits for it from now on. */
export function trackPending(pending: Pending): void {
  tracked.add(pending);
}

export function untrackPending(pending: Pending): void {
  tracked.delete(pending);
}

/** Resolves when all that was written has been taken, or nothing is being taken any more. */
export async function drained(): Promise<void> {
  let left = pendingTotal();
  let stalledMs = performance.now();
  while (left > 0 && performance.now() - stalledMs < DRAIN_STALL_MS) {
    await new Promise((resolve) => setTimeout(resolve, DRAIN_POLL_MS));
    const now = pendingTotal();
    if (now !== left) stalledMs = performance.now();
    left = now;
  }
}

function pendingTotal(): number {
  let total = 0;
  for (const pending of tracked) total += pending.pendingBytes;
  return total;
}

/** A Stream over a connected socket, which must allow being half open. */
export class SocketStream implements Stream {
  onEnd: () => void = () => this.end();
  onClose: () => void = () => {};
  pendingBytes = 0;
  #socket: Socket;
  #onData: (bytes: Uint8Array) => void = () => {};
  #flowing = false;
  #closed = false;
  #linger: ReturnType<typeof setTimeout> | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    trackPending(this);
    socket.on("end", () => this.onEnd());
    // An error is followed by "close".
    socket.on("error", () => {});
    socket.on("close", () => {
      this.pendingBytes = 0;
      untrackPending(this);
      clearTimeout(this.#linger);
      this.#close();
    });
  }

  get onData(): (bytes: Uint8Array) => void {
    return this.#onData;
  }

  /** Bytes flow once somebody wants them. */
  set onData(receiver: (bytes: Uint8Array) => void) {
    this.#onData = receiver;
    if (this.#flowing) return;
    this.#flowing = true;
    this.#socket.on("data", (chunk: Uint8Array) => this.#onData(new Uint8Array(chunk)));
  }

  write(bytes: Uint8Array): void {
    if (this.#socket.destroyed || !this.#socket.writable) return;
    for (let at = 0; at < bytes.length; at += WRITE_BYTES_MAX) {
      const part = bytes.subarray(at, at + WRITE_BYTES_MAX);
      this.pendingBytes += part.length;
      this.#socket.write(part, () => {
        this.pendingBytes = Math.max(0, this.pendingBytes - part.length);
      });
    }
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    // Without a receiver the runtime would throw the bytes away.
    if (this.#flowing) this.#socket.resume();
  }

  end(): void {
    if (this.#socket.destroyed) return;
    this.#socket.end();
    // While nothing flows, the peer's end would not be seen.
    this.#socket.resume();
    this.#linger ??= setTimeout(() => this.#socket.destroy(), LINGER_MS);
  }

  get names(): { readonly local: string; readonly peer: string } | undefined {
    const { localAddress, localPort, remoteAddress, remotePort } = this.#socket;
    if (localAddress === undefined || remoteAddress === undefined) return undefined;
    return { local: named(localAddress, localPort), peer: named(remoteAddress, remotePort) };
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.onClose();
  }
}

function named(address: string, port: number | undefined): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}
