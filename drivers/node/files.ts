/** Open files and FIFOs as Streams. Thread: main. */
import { closeSync, constants, openSync, read } from "node:fs";
import type { Files, Stream } from "../../src/runtime/driver.ts";
import { OutputFile } from "./output.ts";

const FILE_MODE = 0o666;
const READ_BYTES = 65536;
/** Between attempts at a FIFO that has nothing: the runtimes don't wait for readiness of one. */
const EMPTY_RETRY_MS_MIN = 1;
const EMPTY_RETRY_MS_MAX = 32;

export function makeFiles(): Files {
  return {
    open: (path, flags) => openSync(path, flags | constants.O_NONBLOCK, FILE_MODE),
    close: closeSync,
    stream: (inputFd, outputFd) => new FileStream(inputFd, outputFd),
  };
}

/** Owns its descriptors. */
class FileStream implements Stream {
  onData: (bytes: Uint8Array) => void = () => {};
  onEnd: () => void = () => this.end();
  onClose: () => void = () => {};
  readonly #inputFd: number | undefined;
  readonly #outputFd: number;
  readonly #output: OutputFile;
  #flowing = false;
  #reading = false;
  #ended = false;
  #closing = false;
  #closed = false;
  #retryMs = EMPTY_RETRY_MS_MIN;

  constructor(inputFd: number | undefined, outputFd: number) {
    this.#inputFd = inputFd;
    this.#outputFd = outputFd;
    this.#output = new OutputFile(outputFd);
    this.#output.onError = () => this.end();
    this.#output.onDrained = () => this.#closeWhenIdle();
  }

  get pendingBytes(): number {
    return this.#output.pendingBytes;
  }

  write(bytes: Uint8Array): void {
    if (!this.#closing) this.#output.write(bytes);
  }

  pause(): void {
    this.#flowing = false;
  }

  resume(): void {
    this.#flowing = true;
    this.#read();
  }

  end(): void {
    this.#flowing = false;
    this.#closing = true;
    this.#closeWhenIdle();
  }

  destroy(): void {
    this.#output.fail();
    this.end();
  }

  #read(): void {
    const fd = this.#inputFd;
    if (fd === undefined || this.#reading || this.#ended || !this.#flowing) return;
    this.#reading = true;
    const buffer = new Uint8Array(READ_BYTES);
    read(fd, buffer, 0, READ_BYTES, null, (error, count) => {
      this.#reading = false;
      if (this.#closing) this.#closeWhenIdle();
      else if (error?.code === "EAGAIN") this.#readLater();
      else if (error || count === 0) {
        this.#ended = true;
        this.onEnd();
      } else {
        this.#retryMs = EMPTY_RETRY_MS_MIN;
        this.onData(buffer.subarray(0, count));
        this.#read();
      }
    });
  }

  #readLater(): void {
    setTimeout(() => this.#read(), this.#retryMs);
    this.#retryMs = Math.min(this.#retryMs * 2, EMPTY_RETRY_MS_MAX);
  }

  /** Not before the last read and write are back. */
  #closeWhenIdle(): void {
    if (!this.#closing || this.#closed || this.#reading || this.#output.writing) return;
    this.#closed = true;
    this.#ended = true;
    this.#output.fail();
    if (this.#inputFd !== undefined && this.#inputFd !== this.#outputFd) closeSync(this.#inputFd);
    closeSync(this.#outputFd);
    this.onClose();
  }
}
