/**
 * One QMP monitor on one byte stream: greeting, negotiation, requests in order, events.
 * Thread: main. Spec: QEMU docs/interop/qmp-spec.rst, monitor/qmp.c
 */
import type { CommandMonitor } from "../qapi/types.ts";
import type { Stream } from "../runtime/driver.ts";
import { OutportError } from "../util/error.ts";
import { qemuVersion } from "./commands/misc.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { type QmpErrorReply, toQmpError } from "./error.ts";
import type { EventHub, QmpEvent } from "./events.ts";
import { JsonStream } from "./json-stream.ts";
import { formatJson } from "./json-writer.ts";
import { parseRequest, type QmpRequest } from "./request.ts";

/** Requests that wait in one monitor, as in QEMU; then it reads no more. */
const QUEUED_REQUESTS_MAX = 8;
/** Beyond this much unread output no further request is taken from the client. */
const OUTPUT_PAUSE_BYTES = 256 * 1024;
/** Beyond this much unread output events are dropped for the client. */
const OUTPUT_EVENTS_BYTES_MAX = 4 * 1024 * 1024;
/** How often a client that did not read is looked at. */
const OUTPUT_POLL_MS = 20;

export interface MonitorParts {
  readonly stream: Stream;
  readonly dispatcher: Dispatcher;
  readonly events: EventHub;
  readonly pretty: boolean;
  /** The client is gone. */
  readonly onClose: () => void;
}

/** A request, or what is wrong with the input in its place. */
type Queued = { readonly value: unknown } | { readonly problem: QmpErrorReply };

export class Monitor implements CommandMonitor {
  #parts: MonitorParts;
  #json: JsonStream;
  #encoder = new TextEncoder();
  #negotiated = false;
  #oob = false;
  #queue: Queued[] = [];
  /** Arrived, and not parsed since the queue is full. */
  #unparsed: Uint8Array[] = [];
  #running = false;
  #closed = false;
  #unsubscribe: () => void;

  /** Takes over the stream's callbacks. */
  constructor(parts: MonitorParts) {
    this.#parts = parts;
    this.#json = new JsonStream({
      onValue: (value) => this.#enqueue({ value }),
      onError: (desc) => this.#enqueue({ problem: { class: "GenericError", desc } }),
    });
    this.#unsubscribe = parts.events.subscribe((event) => this.#onEvent(event));
    parts.stream.onData = (bytes) => this.#onData(bytes);
    parts.stream.onClose = () => this.#onClose();
    this.#send({ QMP: { version: qemuVersion(), capabilities: ["oob"] } });
  }

  /** qmp_capabilities succeeds. */
  negotiate(capabilities: readonly string[]): void {
    this.#negotiated = true;
    this.#oob = capabilities.includes("oob");
  }

  /** At shutdown: sends what is pending. */
  end(): void {
    this.#unsubscribe();
    this.#parts.stream.end();
  }

  #onData(bytes: Uint8Array): void {
    this.#unparsed.push(bytes);
    this.#parse();
  }

  #onClose(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#queue = [];
    this.#unparsed = [];
    this.#unsubscribe();
    this.#parts.onClose();
  }

  /** Parses until the queue is full. The stream flows only while nothing waits. */
  #parse(): void {
    while (!this.#json.paused && this.#unparsed.length > 0) {
      const bytes = this.#unparsed[0] as Uint8Array;
      const taken = this.#json.feed(bytes);
      if (taken === bytes.length) this.#unparsed.shift();
      else this.#unparsed[0] = bytes.subarray(taken);
    }
    if (this.#unparsed.length > 0) this.#parts.stream.pause();
    else this.#parts.stream.resume();
  }

  #enqueue(entry: Queued): void {
    this.#queue.push(entry);
    this.#json.paused = this.#queue.length >= QUEUED_REQUESTS_MAX;
    if (!this.#running) this.#run();
  }

  async #run(): Promise<void> {
    this.#running = true;
    for (let entry = this.#queue[0]; entry !== undefined; entry = this.#queue[0]) {
      const reply = "problem" in entry ? { error: entry.problem } : await this.#answer(entry.value);
      this.#send(reply);
      await this.#outputDrained();
      this.#queue.shift();
      this.#json.paused = false;
      // Parsing may add to the queue.
      if (this.#unparsed.length > 0) this.#parse();
    }
    this.#running = false;
  }

  /** One reply. Member order as QSD has it. */
  async #answer(value: unknown): Promise<Record<string, unknown>> {
    let id: unknown;
    try {
      const request = parseRequest(value, this.#oob, (found) => {
        id = found;
      });
      return { return: await this.#execute(request), id };
    } catch (error) {
      return { id, error: toQmpError(error) };
    }
  }

  async #execute({ name, args, oob }: QmpRequest): Promise<unknown> {
    const { dispatcher } = this.#parts;
    const negotiating = name === "qmp_capabilities";
    if (negotiating === this.#negotiated) {
      const message = negotiating
        ? "Capabilities negotiation is already complete, command ignored"
        : "Expecting capabilities negotiation with 'qmp_capabilities'";
      throw new OutportError("invalid", message, { qapiClass: "CommandNotFound" });
    }
    const command = dispatcher.find(name);
    if (oob && command.allowOob !== true) {
      throw new OutportError("invalid", `The command ${name} does not support OOB`);
    }
    return await dispatcher.execute(name, args, { monitor: this });
  }

  #onEvent(event: QmpEvent): void {
    // QSD differs: it keeps events for a client that never reads, without limit.
    const full = this.#parts.stream.pendingBytes > OUTPUT_EVENTS_BYTES_MAX;
    if (this.#negotiated && !full) this.#send(event);
  }

  #send(message: unknown): void {
    if (this.#closed) return;
    const text = formatJson(message, this.#parts.pretty);
    this.#parts.stream.write(this.#encoder.encode(text + "\r\n"));
  }

  /** A client that does not read is not served. */
  async #outputDrained(): Promise<void> {
    while (!this.#closed && this.#parts.stream.pendingBytes > OUTPUT_PAUSE_BYTES) {
      await new Promise((resolve) => setTimeout(resolve, OUTPUT_POLL_MS));
    }
  }
}
