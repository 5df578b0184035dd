/**
 * A character device: byte streams, one after the other, for the one front-end that uses it.
 * Thread: main. Spec: QEMU include/chardev/char.h
 */
import type { Stream } from "../runtime/driver.ts";
import { OutportError } from "../util/error.ts";
import { withLog } from "./log-file.ts";

/** Who uses a device. */
export interface Frontend {
  /** Somebody is connected. The stream's onData is the front-end's; it does not flow yet. */
  opened(stream: Stream): void;
  /** The peer sends no more: `done` is to be called when all that it sent is dealt with. */
  inputEnded(done: () => void): void;
  /** The connection is gone. */
  closed(): void;
  /** The device is no longer the front-end's; a connection stays, for the next one. */
  detached(): void;
}

/** One kind of device is one subclass. */
export abstract class Chardev {
  readonly id: string;
  #frontend: Frontend | undefined;
  #stream: Stream | undefined;
  #log: Stream | undefined;
  #flowing = false;
  /** Of the stream. */
  #inputEnded = false;

  constructor(id: string) {
    this.id = id;
  }

  /** What it is connected to, as query-chardev shows it. */
  abstract readonly filename: string;
  protected abstract closeBackend(): void;

  /** Ends everything; what is pending is still sent. */
  close(): void {
    this.closeBackend();
    this.#log?.end();
  }

  /** From now on output goes there, too; the device closes it. */
  logTo(log: Stream): void {
    this.#log = log;
  }

  /** When options that come later may count on it. */
  async ready(): Promise<void> {}

  /** The one that is connected. */
  get stream(): Stream | undefined {
    return this.#stream;
  }

  /** Somebody uses it. */
  get busy(): boolean {
    return this.#frontend !== undefined;
  }

  /** Throws an OutportError when it has a front-end. */
  attach(frontend: Frontend): void {
    if (this.#frontend !== undefined) {
      throw new OutportError("in-use", `chardev '${this.id}' is already in use`);
    }
    this.#frontend = frontend;
    if (this.#stream !== undefined) this.#meet(frontend, this.#stream);
  }

  detach(): void {
    this.#frontend?.detached();
    this.#frontend = undefined;
    const stream = this.#stream;
    stream?.pause();
    // Who has sent all, and is answered no more, has nothing to stay for.
    if (stream !== undefined && this.#inputEnded) this.inputDone(stream);
  }

  /** From now on input flows to the front-end; output does not wait for it. */
  start(): void {
    this.#flowing = true;
    if (this.#frontend !== undefined) this.#stream?.resume();
  }

  /** A connection begins. */
  protected opened(stream: Stream): void {
    this.#stream = stream;
    stream.pause();
    this.#inputEnded = false;
    stream.onEnd = () => {
      this.#inputEnded = true;
      if (this.#frontend === undefined) this.inputDone(stream);
      else this.#frontend.inputEnded(() => this.inputDone(stream));
    };
    stream.onClose = () => this.#closed(stream);
    if (this.#frontend !== undefined) this.#meet(this.#frontend, stream);
  }

  /** All input is dealt with: a socket's connection ends, as in QEMU. */
  protected inputDone(stream: Stream): void {
    stream.end();
    this.#closed(stream);
  }

  /** The connection is gone, and the front-end knows. */
  protected disconnected(): void {}

  #meet(frontend: Frontend, stream: Stream): void {
    frontend.opened(this.#log === undefined ? stream : withLog(stream, this.#log));
    if (this.#flowing) stream.resume();
  }

  #closed(stream: Stream): void {
    if (this.#stream !== stream) return;
    this.#stream = undefined;
    stream.onEnd = () => stream.end();
    stream.onClose = () => {};
    this.#frontend?.closed();
    this.disconnected();
  }
}
