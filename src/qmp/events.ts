/**
 * Events on their way to the monitors, rate limits included. Thread: main.
 * Spec: QEMU docs/interop/qmp-spec.rst "event"; monitor/monitor.c
 */
import type { EventMap, QapiEvent } from "../qapi/types.ts";
import { assert } from "../util/error.ts";
import { trace } from "../util/trace.ts";

/** One event as it goes over the wire. */
export interface QmpEvent {
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export interface EventClock {
  realTimeUs(): number;
  setTimeout(action: () => void, ms: number): void;
}

/** Hands every event to every listener, in order, at once or when its rate limit lets it. */
export class EventHub<const Definitions extends readonly QapiEvent[] = readonly QapiEvent[]> {
  #definitions: ReadonlyMap<string, QapiEvent>;
  #clock: EventClock;
  #listeners = new Set<(event: QmpEvent) => void>();
  /** What has gone out less than its limit ago, and the last event that waits behind it. */
  #limited = new Map<string, QmpEvent | undefined>();

  constructor(definitions: Definitions, clock: EventClock) {
    this.#definitions = new Map(definitions.map((definition) => [definition.name, definition]));
    this.#clock = clock;
  }

  /** Returns what ends the subscription. */
  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit<Name extends keyof EventMap<Definitions> & string>(
    event: Name,
    data: EventMap<Definitions>[Name],
  ): void {
    const definition = this.#definitions.get(event);
    assert(definition !== undefined, `the event ${event} is defined`);
    const now = this.#clock.realTimeUs();
    const timestamp = { seconds: Math.floor(now / 1e6), microseconds: Math.floor(now % 1e6) };
    const message = { timestamp, event, data: data as QmpEvent["data"] };
    const { rateLimit } = definition;
    if (trace.monitor_protocol_event_queue.enabled) {
      trace.monitor_protocol_event_queue.write(`event=${event} rate=${rateLimit?.ms ?? 0}`);
    }
    if (rateLimit === undefined) {
      this.#send(message);
      return;
    }
    const key = JSON.stringify([event, ...(rateLimit.by ?? []).map((name) => message.data[name])]);
    if (this.#limited.has(key)) this.#limited.set(key, message);
    else this.#sendLimited(key, message, rateLimit.ms);
  }

  #sendLimited(key: string, message: QmpEvent, ms: number): void {
    this.#send(message);
    this.#limited.set(key, undefined);
    this.#clock.setTimeout(() => {
      const waiting = this.#limited.get(key);
      this.#limited.delete(key);
      if (waiting !== undefined) this.#sendLimited(key, waiting, ms);
    }, ms);
  }

  #send(message: QmpEvent): void {
    if (trace.monitor_protocol_event_emit.enabled) {
      trace.monitor_protocol_event_emit.write(`event=${message.event}`);
    }
    for (const listener of this.#listeners) listener(message);
  }
}
