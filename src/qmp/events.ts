/**
 * Events on their way to the monitors. Thread: main. Spec: QEMU docs/interop/qmp-spec.rst "event"
 */

/** One event as it goes over the wire. */
export interface QmpEvent {
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

/** Hands every event to every listener, at once and in order. */
export class EventHub {
  #realTimeUs: () => number;
  #listeners = new Set<(event: QmpEvent) => void>();

  constructor(realTimeUs: () => number) {
    this.#realTimeUs = realTimeUs;
  }

  /** Returns what ends the subscription. */
  subscribe(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit(event: string, data: Readonly<Record<string, unknown>>): void {
    const now = this.#realTimeUs();
    const timestamp = { seconds: Math.floor(now / 1e6), microseconds: Math.floor(now % 1e6) };
    for (const listener of this.#listeners) listener({ timestamp, event, data });
  }
}
