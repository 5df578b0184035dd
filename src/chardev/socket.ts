/**
 * Devices over stream sockets. A server has one client at a time, further ones wait until it
 * leaves; a client connects again after `reconnect-ms`. Thread: main.
 * Spec: QEMU chardev/char-socket.c
 */
import type { SocketAddress as Wire } from "../qapi/sockets.ts";
import type { Listener, Stream } from "../runtime/driver.ts";
import { Chardev } from "./chardev.ts";

/** Clients that wait for a server; more are turned away. */
const WAITING_CLIENTS_MAX = 256;
/** Longest time that a timer takes; one beyond fires at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;

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

/** As options have it; `listening` adds what servers have. */
function filenameOf(address: Wire, listening: boolean): string {
  const server = listening ? ",server=on" : "";
  switch (address.type) {
    case "inet":
      return `tcp:${address.host}:${address.port}${server}`;
    case "unix": {
      const tight = address.tight === false ? "" : ",tight=on";
      const abstract = address.abstract === true ? `,abstract=on${tight}` : "";
      return `unix:${address.path}${abstract}${server}`;
    }
    case "fd":
      return `fd:${address.str}${server}`;
    case "vsock":
      return `vsock:${address.cid}:${address.port}`;
  }
}

export interface ServerParts {
  /** What it listens on. */
  readonly address: Wire;
  /** Its own from now on. */
  readonly listeners: readonly Listener[];
  /** Those that the listeners have in the file system. */
  readonly removeFiles: () => void;
  /** It is ready when its first client is there. */
  readonly wait: boolean;
}

export class ServerChardev extends SocketChardev {
  readonly #parts: ServerParts;
  #waiting: Stream[] = [];
  #onFirstClient: () => void = () => {};
  readonly #firstClient: Promise<void>;

  constructor(id: string, parts: ServerParts) {
    super(id, parts.address, true);
    this.#parts = parts;
    this.#firstClient = new Promise((resolve) => {
      this.#onFirstClient = resolve;
    });
    for (const listener of parts.listeners)
      listener.onConnection = (stream) => this.#accept(stream);
  }

  /** Also when the device is closed before anybody came. */
  override async ready(): Promise<void> {
    if (this.#parts.wait) await this.#firstClient;
  }

  protected closeBackend(): void {
    const { listeners, removeFiles } = this.#parts;
    for (const listener of listeners) listener.close();
    removeFiles();
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
  #timer: ReturnType<typeof setTimeout> | undefined;

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
    clearTimeout(this.#timer);
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
    const ms = Math.min(reconnectMs, TIMER_MS_MAX);
    this.#timer = setTimeout(() => void this.#tryConnect(), ms);
  }
}
