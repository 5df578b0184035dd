/**
 * The connections of one iothread in their transmission phase, whatever export they use: numbers
 * for completions, what a request slot means to them, shares of the buffers. Thread: iothread.
 */
import { makeToken, type Token } from "../../io/engine.ts";
import type { Reactor } from "../../io/reactor.ts";
import { assert } from "../../util/error.ts";
import type { NbdConnection } from "./connection.ts";

/** Commands in flight per connection. */
const COMMANDS_MAX = 128;
/** The same while requests are scarce: as many as QSD always takes. */
const COMMANDS_MAX_SCARCE = 16;
/** Buffers of one connection: enough for deep queues. */
const CONNECTION_BYTES_MAX = 16 * 1024 * 1024;
/** What each connection may always have: one request of the usual size. */
const CONNECTION_BYTES_MIN = 64 * 1024;
/** Between two looks at which connections have fallen silent. */
const SILENCE_NS = 5_000_000_000;

export class NbdConnections {
  readonly reactor: Reactor;
  /**
   * By request slot: the cookie's words, the buffer of the command, its NBD_CMD_*. Integers, not
   * doubles: a position that is a double makes each DataView access a call.
   */
  readonly cookie0: Int32Array;
  readonly cookie1: Int32Array;
  readonly bufferAt: Int32Array;
  readonly type: Uint8Array;
  /** Buffers of all connections, with their headroom; each adds and subtracts its own. */
  bytesHeld = 0;
  #receiveKind: number;
  #sendKind: number;
  #connections: (NbdConnection | null)[] = [];
  #free: number[] = [];
  #dirty: NbdConnection[] = [];
  #flushAll = () => this.#flush();
  #watching = false;

  constructor(reactor: Reactor) {
    this.reactor = reactor;
    assert(reactor.memory.bytes <= 2 ** 31, "positions are i32");
    const { capacity } = reactor.requests;
    this.cookie0 = new Int32Array(capacity);
    this.cookie1 = new Int32Array(capacity);
    this.bufferAt = new Int32Array(capacity);
    this.type = new Uint8Array(capacity);
    this.#receiveKind = reactor.register((index, result) => {
      this.#connections[index]!.onReceived(result);
    });
    this.#sendKind = reactor.register((index, result) => {
      this.#connections[index]!.onSent(result);
    });
  }

  get count(): number {
    return this.#connections.length - this.#free.length;
  }

  /**
   * How many commands one connection may have in flight now. Half of the thread's requests are for
   * all, the other half is shared out: clients of a throttled node leave some to those of others.
   */
  get commandsMaxEach(): number {
    const { inUse, capacity } = this.reactor.requests;
    return inUse > capacity / 2 ? COMMANDS_MAX_SCARCE : COMMANDS_MAX;
  }

  /**
   * What one connection may hold in buffers now: as much as all of them leave of half of the pool.
   * So those whose peers don't read can't take everything, however many they are; and the other
   * half is for what requests need on their way, who would wait for each other otherwise.
   */
  get bytesMaxEach(): number {
    const left = this.reactor.buffers.bytesMax / 2 - this.bytesHeld;
    return Math.min(CONNECTION_BYTES_MAX, Math.max(CONNECTION_BYTES_MIN, left));
  }

  add(): { index: number; receiveToken: Token; sendToken: Token } {
    const index = this.#free.pop() ?? this.#connections.push(null) - 1;
    return {
      index,
      receiveToken: makeToken(this.#receiveKind, index),
      sendToken: makeToken(this.#sendKind, index),
    };
  }

  set(index: number, connection: NbdConnection): void {
    this.#connections[index] = connection;
  }

  remove(index: number): void {
    this.#connections[index] = null;
    this.#free.push(index);
  }

  /** The connection's replies are sent at the end of this turn, all in one. */
  flushLater(connection: NbdConnection): void {
    if (this.#dirty.length === 0) this.reactor.defer(this.#flushAll);
    this.#dirty.push(connection);
  }

  /** A connection holds a large buffer: look now and then whether it still needs it. */
  watchSilence(): void {
    if (this.#watching) return;
    this.#watching = true;
    this.reactor.timers.set(this.reactor.nowNs() + SILENCE_NS, () => {
      this.#watching = false;
      for (const connection of this.#connections) connection?.shrinkWhenSilent();
    });
  }

  #flush(): void {
    const dirty = this.#dirty;
    this.#dirty = [];
    for (const connection of dirty) connection.flush();
  }
}
