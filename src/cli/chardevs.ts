/**
 * Character devices: byte streams with a name, for monitors. A socket serves one client at a time;
 * further ones wait until it leaves, as in QEMU. Thread: main.
 * Spec: QEMU docs/tools/qemu-storage-daemon.rst --chardev
 */
import type { Dispatcher } from "../qmp/dispatcher.ts";
import type { EventHub } from "../qmp/events.ts";
import { Monitor } from "../qmp/monitor.ts";
import type { Listener, RuntimeDriver, Stream } from "../runtime/driver.ts";
import { errnoOfName, strerror } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { type ChardevOptions, parseChardev } from "./chardev-options.ts";

/** Clients that wait for a socket; more are turned away. */
const WAITING_CLIENTS_MAX = 256;

export interface ChardevsParts {
  readonly driver: RuntimeDriver;
  readonly dispatcher: Dispatcher;
  readonly events: EventHub;
  readonly log: Log;
}

export class Chardevs {
  #parts: ChardevsParts;
  #chardevs = new Map<string, Chardev>();
  #stdioTaken = false;

  constructor(parts: ChardevsParts) {
    this.#parts = parts;
  }

  /** --chardev. Throws an OutportError. */
  async add(text: string): Promise<void> {
    const options = parseChardev(text);
    if (this.#chardevs.has(options.id)) {
      throw new OutportError("in-use", `Chardev with id '${options.id}' already exists`);
    }
    if (options.backend === "stdio" && this.#stdioTaken) {
      throw new OutportError("in-use", "cannot use stdio by multiple character devices");
    }
    const chardev = new Chardev(options.id, this.#parts);
    await this.#open(chardev, options);
    this.#chardevs.set(options.id, chardev);
  }

  /** Throws an OutportError. */
  get(id: string): Chardev {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) throw new OutportError("not-found", `chardev "${id}" not found`);
    return chardev;
  }

  /** At shutdown. */
  closeAll(): void {
    for (const chardev of this.#chardevs.values()) chardev.close();
  }

  async #open(chardev: Chardev, options: ChardevOptions): Promise<void> {
    const { driver, log } = this.#parts;
    if (options.backend === "stdio") {
      this.#stdioTaken = true;
      chardev.addClient(driver.process.stdin());
      return;
    }
    const { address, label, server } = options;
    if (!server) {
      const stream = await driver.sockets.connect(address).catch((error: unknown) => {
        throw new OutportError("io", `Failed to connect to '${label}': ${reason(error)}`);
      });
      chardev.addClient(stream);
      return;
    }
    const listener = await driver.sockets.listen(address).catch((error: unknown) => {
      throw new OutportError("io", `Failed to bind socket to ${label}: ${reason(error)}`);
    });
    const connected = chardev.listen(listener);
    if (!options.wait) return;
    log("warn", `chardev '${options.id}' waits for a connection on ${label}`);
    await connected;
  }
}

/** One character device. */
export class Chardev {
  readonly id: string;
  #parts: ChardevsParts;
  #listener: Listener | undefined;
  /** The first is the one served. */
  #clients: Stream[] = [];
  #monitor: Monitor | undefined;
  /** Set once a monitor has been asked for. */
  #pretty: boolean | undefined;
  #onFirstClient: () => void = () => {};

  constructor(id: string, parts: ChardevsParts) {
    this.id = id;
    this.#parts = parts;
  }

  /** Resolves with the first client. */
  listen(listener: Listener): Promise<void> {
    this.#listener = listener;
    listener.onConnection = (stream) => this.addClient(stream);
    return new Promise((resolve) => {
      this.#onFirstClient = resolve;
    });
  }

  addClient(stream: Stream): void {
    if (this.#clients.length > WAITING_CLIENTS_MAX) {
      stream.destroy();
      return;
    }
    this.#clients.push(stream);
    stream.pause();
    stream.onClose = () => this.#forget(stream);
    this.#serve();
    this.#onFirstClient();
  }

  /** --monitor: every client of this device meets a QMP monitor. Throws an OutportError. */
  attachMonitor(pretty: boolean): void {
    if (this.#pretty !== undefined) {
      throw new OutportError("in-use", `chardev '${this.id}' is already in use`);
    }
    this.#pretty = pretty;
    this.#serve();
  }

  close(): void {
    this.#listener?.close();
    this.#monitor?.end();
    for (const stream of this.#clients.slice(1)) stream.destroy();
  }

  #serve(): void {
    const [stream] = this.#clients;
    if (stream === undefined || this.#pretty === undefined || this.#monitor !== undefined) return;
    const { dispatcher, events } = this.#parts;
    this.#monitor = new Monitor({
      stream,
      dispatcher,
      events,
      pretty: this.#pretty,
      onClose: () => {
        this.#monitor = undefined;
        this.#forget(stream);
      },
    });
    stream.resume();
  }

  #forget(stream: Stream): void {
    this.#clients = this.#clients.filter((client) => client !== stream);
    // The peer has ended its half only.
    stream.end();
    this.#serve();
  }
}

/** What the runtime says, in the system's words. */
function reason(error: unknown): string {
  const code = (error as { code?: unknown }).code;
  const errno = typeof code === "string" ? errnoOfName(code) : undefined;
  if (errno !== undefined) return strerror(errno);
  return error instanceof Error ? error.message : String(error);
}
