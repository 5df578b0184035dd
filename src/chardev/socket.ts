/**
 * Devices over stream sockets. A server has one client at a time, further ones wait until it
 * leaves; a client connects again after `reconnect-ms`. Thread: main.
 * Spec: QEMU chardev/char-socket.c
 */
import type { SocketAddress as Wire } from "../qapi/sockets.ts";
import type { Listener, Stream } from "../runtime/driver.ts";
import { filenameOf } from "./address.ts";
import { Chardev } from "./chardev.ts";

/** Clients that wait for a server; more are turned away. */
const WAITING_CLIENTS_MAX = 256;

export abstract class SocketChardev extends Chardev {
  readonly address: Wire;
  readonly #listening: boolean;

  constructor(id: string, address: Wire, listening: boolean) {
    super(id);
    this.address = address;
    this.#listening = listening;
  }

  get filename(): string {
    const name = filenameOf(this.address, this.#listening);
    if (this.stream === undefined) return `disconnected:${name}`;
    const { names } = this.stream;
    if (names === undefined) return name;
    return `tcp:${names.local}${this.#listening ? ",server=on" : ""} <-> ${names.peer}`;
  }
}

export class ServerChardev extends SocketChardev {
  readonly #listeners: readonly Listener[];
  #waiting: Stream[] = [];
  #onFirstClient: () => void = () => {};
  readonly #firstClient: Promise<void>;

  readonly #wait: boolean;

  /**
   * The listeners are its own from now on, `address` is what they listen on. `wait`: it is ready
   * when its first client is there.
   */
  constructor(id: string, address: Wire, listeners: readonly Listener[], wait: boolean) {
    super(id, address, true);
    this.#listeners = listeners;
    this.#wait = wait;
    this.#firstClient = new Promise((resolve) => {
      this.#onFirstClient = resolve;
    });
    for (const listener of listeners) listener.onConnection = (stream) => this.#accept(stream);
  }

  /** Also when the device is closed before anybody came. */
  override async ready(): Promise<void> {
    if (this.#wait) await this.#firstClient;
  }

  protected closeBackend(): void {
    for (const listener of this.#listeners) listener.close();
    for (const stream of this.#waiting) stream.destroy();
    this.#waiting = [];
    this.stream?.end();
    this.#onFirstClient();
  }

  protected override disconnected(): void {
    const next = this.#waiting.shift();
    if (next !== undefined) this.opened(next);
  }

  #accept(stream: Stream): void {
    this.#onFirstClient();
    if (this.stream === undefined) this.opened(stream);
    else if (this.#waiting.length < WAITING_CLIENTS_MAX) this.#enqueue(stream);
    else stream.destroy();
  }

  #enqueue(stream: Stream): void {
    this.#waiting.push(stream);
    stream.pause();
    const forget = (): void => {
      this.#waiting = this.#waiting.filter((each) => each !== stream);
      stream.end();
    };
    stream.onEnd = forget;
    stream.onClose = forget;
  }
}

export interface ClientParts {
  readonly address: Wire;
  /** Rejects with an Error in QSD's words. */
  readonly connect: () => Promise<Stream>;
  /** 0: never. */
  readonly reconnectMs: number;
  readonly onFailure: (error: unknown) => void;
}

export class ClientChardev extends SocketChardev {
  readonly #parts: ClientParts;
  #failed = false;
  #closed = false;

  constructor(id: string, parts: ClientParts) {
    super(id, parts.address, false);
    this.#parts = parts;
  }

  /** The first connection. Fails only where nothing would try again. */
  async connect(): Promise<void> {
    if (this.#parts.reconnectMs === 0) this.#connected(await this.#parts.connect());
    else void this.#tryConnect();
  }

  protected closeBackend(): void {
    this.#closed = true;
    this.stream?.end();
  }

  protected override disconnected(): void {
    this.#tryLater();
  }

  async #tryConnect(): Promise<void> {
    if (this.#closed) return;
    try {
      this.#connected(await this.#parts.connect());
      this.#failed = false;
    } catch (error) {
      if (this.#closed) return;
      // Once, not at each attempt.
      if (!this.#failed) this.#parts.onFailure(error);
      this.#failed = true;
      this.#tryLater();
    }
  }

  #connected(stream: Stream): void {
    if (this.#closed) stream.destroy();
    else this.opened(stream);
  }

  #tryLater(): void {
    const { reconnectMs } = this.#parts;
    if (this.#closed || reconnectMs === 0) return;
    setTimeout(() => void this.#tryConnect(), reconnectMs);
  }
}
