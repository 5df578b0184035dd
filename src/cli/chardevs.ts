/**
 * Character devices: byte streams with a name, for monitors. A socket serves one client at a time;
 * further ones wait until it leaves, as in QEMU. Thread: main.
 * Spec: QEMU docs/tools/qemu-storage-daemon.rst --chardev
 */
import { SO_TYPE, SOL_SOCKET } from "../abi/linux-socket.ts";
import type { Dispatcher } from "../qmp/dispatcher.ts";
import type { EventHub } from "../qmp/events.ts";
import { Monitor } from "../qmp/monitor.ts";
import type { Listener, RuntimeDriver, Stream } from "../runtime/driver.ts";
import { errnoOfName, strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { type ChardevOptions, parseChardev } from "./chardev-options.ts";

/** Clients that wait for a socket; more are turned away. */
const WAITING_CLIENTS_MAX = 256;

export interface ChardevsParts {
  readonly driver: RuntimeDriver;
  readonly linux: Linux;
  readonly dispatcher: Dispatcher;
  readonly events: EventHub;
  readonly log: Log;
}

export class Chardevs {
  #parts: ChardevsParts;
  #chardevs = new Map<string, Chardev>();
  #stdioTaken = false;
  #started = false;

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
    // Known at once, so that an end while it waits for its client closes it.
    this.#chardevs.set(options.id, chardev);
    try {
      await this.#open(chardev, options);
    } catch (error) {
      this.#chardevs.delete(options.id);
      throw error;
    }
    if (this.#started) chardev.start();
  }

  /** Throws an OutportError. */
  get(id: string): Chardev {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) throw new OutportError("not-found", `chardev "${id}" not found`);
    return chardev;
  }

  /** All options are done: from here on monitors take requests. */
  start(): void {
    this.#started = true;
    for (const chardev of this.#chardevs.values()) chardev.start();
  }

  /** At shutdown. */
  closeAll(): void {
    for (const chardev of this.#chardevs.values()) chardev.close();
  }

  async #open(chardev: Chardev, options: ChardevOptions): Promise<void> {
    const { driver, linux, log } = this.#parts;
    if (options.backend === "stdio") {
      this.#stdioTaken = true;
      chardev.addClient(driver.process.stdin());
      return;
    }
    const { address, label, server } = options;
    if (address.type === "fd" && linux.getsockopt(address.fd, SOL_SOCKET, SO_TYPE) < 0) {
      throw new OutportError("invalid", `File descriptor '${address.fd}' is not a socket`);
    }
    if (!server) {
      const stream = await driver.sockets.connect(address).catch((error: unknown) => {
        throw failure(error, label, `Failed to connect to '${label}'`);
      });
      chardev.addClient(stream);
      return;
    }
    const listener = await driver.sockets.listen(address).catch((error: unknown) => {
      throw failure(error, label, `Failed to bind socket to ${label}`);
    });
    const connected = chardev.listen(listener);
    if (!options.wait) return;
    log("warn", `chardev '${options.id}' waits for a connection on ${label}`);
    await connected;
  }
}

/** One character device. */
class Chardev {
  readonly id: string;
  #parts: ChardevsParts;
  #listener: Listener | undefined;
  /** The first is the one served. */
  #clients: Stream[] = [];
  #monitor: Monitor | undefined;
  /** Set once a monitor has been asked for. */
  #pretty: boolean | undefined;
  #onFirstClient: () => void = () => {};
  #started = false;

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

  /** Lets requests come in; the greeting does not wait for it. */
  start(): void {
    this.#started = true;
    if (this.#monitor !== undefined) this.#clients[0]?.resume();
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
    if (this.#started) stream.resume();
  }

  #forget(stream: Stream): void {
    this.#clients = this.#clients.filter((client) => client !== stream);
    // The peer has ended its half only.
    stream.end();
    this.#serve();
  }
}

/** What the runtime says, in the system's words. */
function failure(error: unknown, label: string, what: string): OutportError {
  const code = String((error as { code?: unknown }).code);
  // The resolver's own codes are no errno.
  if (["ENOTFOUND", "EAI_AGAIN", "EAI_NONAME", "EAI_NODATA"].includes(code)) {
    const message = `address resolution failed for ${label}: Name or service not known`;
    return new OutportError("not-found", message, { cause: error });
  }
  const errno = errnoOfName(code);
  const reason = errno === undefined ? (error as Error).message : strerror(errno);
  return new OutportError("io", `${what}: ${reason}`, { cause: error });
}
