/**
 * A QMP monitor's talk with one client: greeting, negotiation, requests in order, events.
 * Thread: main. Spec: QEMU docs/interop/qmp-spec.rst, monitor/qmp.c
 */
import type { CommandMonitor } from "../qapi/types.ts";
import type { Stream } from "../runtime/driver.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { trace } from "../util/trace.ts";
import { qemuVersion } from "./commands/misc.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { type QmpErrorReply, toQmpError } from "./error.ts";
import type { EventHub, QmpEvent } from "./events.ts";
import { JsonStream } from "./json-stream.ts";
import { formatJson } from "./json-writer.ts";
import { isOutOfBand, parseRequest } from "./request.ts";

/** Requests taken and not answered, as in QEMU; then no more are read. Without oob it is one. */
const QUEUED_REQUESTS_MAX = 8;
/** Requests answered in one go, so that one client cannot keep all others waiting. */
const REQUESTS_PER_TURN_MAX = 256;
/** Replies collected for one write. */
const WRITE_BYTES_MIN = 64 * 1024;
/** Beyond this much unread output no further request is taken from the client. */
const OUTPUT_PAUSE_BYTES = 256 * 1024;
/** Beyond this much unread output the next event ends the connection. */
const OUTPUT_EVENTS_BYTES_MAX = 4 * 1024 * 1024;
/** How often a client that did not read is looked at. */
const OUTPUT_POLL_MS = 20;

export interface SessionParts {
  /** Of the monitor object. */
  readonly id: string;
  /** Read anew for each message. */
  readonly settings: { readonly pretty: boolean };
  readonly stream: Stream;
  readonly dispatcher: Dispatcher;
  readonly events: Pick<EventHub, "subscribe">;
  readonly log: Log;
}

/** A request, or what is wrong with the input in its place. */
type Input = { readonly value: unknown } | { readonly problem: QmpErrorReply };

export class Session implements CommandMonitor {
  #parts: SessionParts;
  #json: JsonStream;
  #encoder = new TextEncoder();
  #negotiated = false;
  #oob = false;
  /** Arrived, and not parsed yet. */
  #unparsed: Uint8Array[] = [];
  /** Requests that the dispatcher has. */
  #queued = 0;
  #taking = false;
  #scheduled = false;
  /** Replies and events that are not written yet. */
  #output = "";
  /** Set once the client sends no more; called when it has all answers. */
  #onInputDone: (() => void) | undefined;
  #closed = false;
  #unsubscribe: () => void;

  /** Takes over the stream's onData. */
  constructor(parts: SessionParts) {
    this.#parts = parts;
    this.#json = new JsonStream({
      onValue: (value) => this.#onInput({ value }),
      onError: (desc) => this.#onInput({ problem: { class: "GenericError", desc } }),
    });
    this.#unsubscribe = parts.events.subscribe((event) => this.#onEvent(event));
    parts.stream.onData = (bytes) => {
      if (this.#closed) return;
      this.#unparsed.push(bytes);
      this.#take();
    };
    this.#send({ QMP: { version: qemuVersion(), capabilities: ["oob"] } });
  }

  get id(): string {
    return this.#parts.id;
  }

  /** qmp_capabilities succeeds. Throws CommandNotFound the second time. */
  negotiate(capabilities: readonly string[]): void {
    if (this.#negotiated) {
      const message = "Capabilities negotiation is already complete, command ignored";
      throw new OutportError("invalid", message, { qapiClass: "CommandNotFound" });
    }
    this.#negotiated = true;
    this.#oob = capabilities.includes("oob");
  }

  /** The client sends no more. `done` is called when it has all answers. */
  inputEnded(done: () => void): void {
    this.#onInputDone = done;
    this.#take();
  }

  /** The client is gone, or is to hear no more. Requests that wait are dropped. */
  close(): void {
    this.#closed = true;
    this.#unparsed = [];
    this.#output = "";
    this.#unsubscribe();
  }

  /** Takes requests as long as there is room for them; then answers go out in one write. */
  #take(): void {
    if (this.#taking) return;
    this.#taking = true;
    for (let count = 0; this.#unparsed.length > 0 && this.#hasRoom(); count++) {
      if (count === REQUESTS_PER_TURN_MAX) {
        this.#takeLater(0);
        break;
      }
      this.#parseOne();
    }
    this.#taking = false;
    if (this.#closed) return;
    this.#write();
    if (this.#unparsed.length === 0) this.#parts.stream.resume();
    else {
      if (trace.monitor_suspend.enabled) trace.monitor_suspend.write(`mon ${this.id}`);
      this.#parts.stream.pause();
    }
    if (this.#unparsed.length > 0 || this.#queued > 0) return;
    this.#onInputDone?.();
    this.#onInputDone = undefined;
  }

  #takeLater(ms: number): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setTimeout(() => {
      this.#scheduled = false;
      this.#take();
    }, ms);
  }

  /** A client that does not read is not served. */
  #hasRoom(): boolean {
    const pending = this.#parts.stream.pendingBytes + this.#output.length;
    if (pending > OUTPUT_PAUSE_BYTES) {
      this.#write();
      if (this.#parts.stream.pendingBytes > OUTPUT_PAUSE_BYTES) {
        this.#takeLater(OUTPUT_POLL_MS);
        return false;
      }
    }
    return this.#queued < (this.#oob ? QUEUED_REQUESTS_MAX : 1);
  }

  /** Up to the end of one value, or all there is. */
  #parseOne(): void {
    const bytes = this.#unparsed[0] as Uint8Array;
    this.#json.paused = false;
    const taken = this.#json.feed(bytes);
    // Nothing is left when an answer found the client gone.
    if (taken === bytes.length) this.#unparsed.shift();
    else if (this.#unparsed.length > 0) this.#unparsed[0] = bytes.subarray(taken);
  }

  #onInput(input: Input): void {
    this.#json.paused = true;
    if (trace.handle_qmp_command.enabled && "value" in input) {
      trace.handle_qmp_command.write(`mon ${this.id} req: ${formatJson(input.value)}`);
    }
    if ("value" in input && isOutOfBand(input.value)) {
      this.#answerNow(input.value);
      return;
    }
    this.#queued += 1;
    if (trace.monitor_qmp_in_band_enqueue.enabled) {
      trace.monitor_qmp_in_band_enqueue.write(`mon ${this.id} len ${this.#queued}`);
    }
    let id: unknown;
    const job = (): unknown => {
      if (trace.monitor_qmp_in_band_dequeue.enabled) {
        trace.monitor_qmp_in_band_dequeue.write(`mon ${this.id} len ${this.#queued}`);
      }
      if (this.#closed) return undefined;
      if ("problem" in input) {
        if (trace.monitor_qmp_err_in_band.enabled) {
          trace.monitor_qmp_err_in_band.write(input.problem.desc);
        }
        throw new OutportError("invalid", input.problem.desc, { qapiClass: input.problem.class });
      }
      return this.#execute(input.value, (found) => {
        id = found;
      });
    };
    this.#parts.dispatcher.enqueue(
      job,
      (value) => this.#answered({ return: value, id }),
      (error) => this.#answered({ id, error: toQmpError(error) }),
    );
  }

  #answered(reply: Record<string, unknown>): void {
    this.#queued -= 1;
    this.#send(reply);
    if (this.#unparsed.length > 0 || this.#onInputDone !== undefined) this.#take();
  }

  /** exec-oob: overtakes what waits. No command is slow that may be executed so. */
  async #answerNow(value: unknown): Promise<void> {
    let id: unknown;
    try {
      const result = this.#execute(value, (found) => {
        id = found;
      });
      this.#send({ return: result instanceof Promise ? await result : result, id });
    } catch (error) {
      this.#send({ id, error: toQmpError(error) });
    }
  }

  #execute(value: unknown, onId: (id: unknown) => void): unknown {
    const { dispatcher } = this.#parts;
    const { name, args, oob } = parseRequest(value, this.#oob, onId);
    const traced = oob ? trace.monitor_qmp_cmd_out_of_band : trace.monitor_qmp_cmd_in_band;
    if (traced.enabled) traced.write(`mon ${this.id} ${name}`);
    if (!this.#negotiated && name !== "qmp_capabilities") {
      const message = "Expecting capabilities negotiation with 'qmp_capabilities'";
      throw new OutportError("invalid", message, { qapiClass: "CommandNotFound" });
    }
    if (oob && dispatcher.find(name).allowOob !== true) {
      throw new OutportError("invalid", `The command ${name} does not support OOB`);
    }
    return dispatcher.run(name, args, { monitor: this });
  }

  #onEvent(event: QmpEvent): void {
    if (!this.#negotiated || this.#closed) return;
    const { stream, log, id } = this.#parts;
    if (stream.pendingBytes + this.#output.length > OUTPUT_EVENTS_BYTES_MAX) {
      // QSD differs: it keeps events for a client that never reads, without limit.
      log("warn", `monitor '${id}': the client does not read, its connection is closed`);
      this.close();
      stream.destroy();
      return;
    }
    this.#send(event);
  }

  #send(message: unknown): void {
    if (this.#closed) return;
    if (trace.monitor_qmp_respond.enabled) {
      trace.monitor_qmp_respond.write(`mon ${this.id} resp: ${formatJson(message)}`);
    }
    this.#output += `${formatJson(message, this.#parts.settings.pretty)}\r\n`;
    if (!this.#taking || this.#output.length >= WRITE_BYTES_MIN) this.#write();
  }

  #write(): void {
    if (this.#output === "") return;
    const bytes = this.#encoder.encode(this.#output);
    this.#output = "";
    this.#parts.stream.write(bytes);
  }
}
