/** A QMP client for tests, over any stream. Spec: QEMU docs/interop/qmp-spec.rst. */

import { connect, type NetConnectOpts } from "node:net";
import type { Readable, Writable } from "node:stream";

export interface QmpEvent {
  readonly event: string;
  readonly data?: Record<string, unknown>;
}

export class QmpError extends Error {
  readonly class: string;

  constructor(error: { class: string; desc: string }) {
    super(error.desc);
    this.name = "QmpError";
    this.class = error.class;
  }
}

type Message = Record<string, unknown>;
interface Waiter {
  readonly wanted: (message: Message) => boolean;
  readonly resolve: (message: Message) => void;
  readonly reject: (error: Error) => void;
}

/** One monitor connection. What arrives and nobody took stays until somebody asks for it. */
export class Qmp {
  readonly #input: Writable;
  readonly #messages: Message[] = [];
  readonly #waiters = new Set<Waiter>();
  #text = "";
  #nextId = 0;
  #ended = false;

  constructor(output: Readable, input: Writable) {
    this.#input = input;
    output.setEncoding("utf8");
    output.on("data", (text: string) => this.#onText(text));
    output.on("close", () => this.#onEnd());
    output.on("end", () => this.#onEnd());
    output.on("error", () => this.#onEnd());
    input.on("error", () => this.#onEnd());
  }

  /** Connects to a monitor, a path meaning a unix socket, and negotiates. */
  static async connect(to: string | NetConnectOpts): Promise<Qmp> {
    const qmp = await Qmp.connectRaw(to);
    await qmp.negotiate();
    return qmp;
  }

  /** Connects without reading the greeting. */
  static connectRaw(to: string | NetConnectOpts): Promise<Qmp> {
    return new Promise((resolve, reject) => {
      const socket = connect(typeof to === "string" ? { path: to } : to);
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.off("error", reject);
        resolve(new Qmp(socket, socket));
      });
    });
  }

  async negotiate(): Promise<void> {
    await this.take((message) => "QMP" in message);
    await this.execute("qmp_capabilities");
  }

  /** What the command returns. Throws a QmpError when it fails. */
  async execute<T = unknown>(command: string, args?: Record<string, unknown>): Promise<T> {
    const id = this.#nextId++;
    this.send({ execute: command, ...(args === undefined ? {} : { arguments: args }), id });
    const reply = await this.take((message) => message.id === id);
    if ("error" in reply) throw new QmpError(reply.error as { class: string; desc: string });
    return reply.return as T;
  }

  /** The next event of this name whose data matches. */
  async event(
    name: string,
    matches: (data: Record<string, unknown>) => boolean = () => true,
  ): Promise<QmpEvent> {
    const message = await this.take(
      (each) => each.event === name && matches((each.data ?? {}) as Record<string, unknown>),
    );
    return message as unknown as QmpEvent;
  }

  /** Takes the first message that is wanted, waiting for it if need be. */
  take(wanted: (message: Message) => boolean): Promise<Message> {
    const index = this.#messages.findIndex(wanted);
    if (index >= 0) return Promise.resolve(this.#messages.splice(index, 1)[0] as Message);
    if (this.#ended) return Promise.reject(new Error("the monitor is closed"));
    return new Promise((resolve, reject) => {
      this.#waiters.add({ wanted, resolve, reject });
    });
  }

  send(message: Message): void {
    this.sendText(`${JSON.stringify(message)}\n`);
  }

  sendText(text: string): void {
    this.#input.write(text);
  }

  close(): void {
    this.#input.end();
  }

  #onText(text: string): void {
    const lines = (this.#text + text).split("\n");
    this.#text = lines.pop() ?? "";
    for (const line of lines) {
      if (line.trim() !== "") this.#onMessage(JSON.parse(line) as Message);
    }
  }

  #onMessage(message: Message): void {
    for (const waiter of this.#waiters) {
      if (!waiter.wanted(message)) continue;
      this.#waiters.delete(waiter);
      waiter.resolve(message);
      return;
    }
    this.#messages.push(message);
  }

  #onEnd(): void {
    this.#ended = true;
    for (const waiter of this.#waiters) waiter.reject(new Error("the monitor was closed"));
    this.#waiters.clear();
  }
}
