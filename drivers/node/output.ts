/**
 * A file descriptor that is only written to, in order, one write at a time on a thread of the
 * runtime. The runtime's own streams are not used: on Bun, what a slow reader has not taken when
 * the process exits is lost. Thread: main.
 */
import { write } from "node:fs";
import { trackPending, untrackPending } from "./streams.ts";

/** Between attempts at a descriptor that is full and doesn't block. */
const RETRY_MS = 2;

export class OutputFile {
  readonly #fd: number;
  #queue: Uint8Array[] = [];
  #writing = false;
  #failed = false;
  pendingBytes = 0;
  onError: () => void = () => {};
  /** All that was written is taken. */
  onDrained: () => void = () => {};

  constructor(fd: number) {
    this.#fd = fd;
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
    untrackPending(this);
  }

  /** Whether a write is under way: then the descriptor must stay open. */
  get writing(): boolean {
    return this.#writing;
  }

  #writeNext(): void {
    const bytes = this.#queue[0];
    this.#writing = bytes !== undefined;
    if (bytes === undefined) {
      this.onDrained();
      return;
    }
    write(this.#fd, bytes, 0, bytes.length, null, (error, count) => {
      if (this.#failed) {
        this.#writing = false;
        this.onDrained();
        return;
      }
      if (error?.code === "EAGAIN" || error?.code === "EINTR") {
        setTimeout(() => this.#writeNext(), RETRY_MS);
        return;
      }
      if (error) {
        this.fail();
        this.#writing = false;
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
