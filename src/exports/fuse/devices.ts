/**
 * What the FUSE sessions of one iothread share: numbers for completions, what a request slot means
 * to them, and their part of the buffers. Thread: iothread.
 */
import { BUFFER_BYTES_MAX, HEADROOM_BYTES } from "../../io/buffers.ts";
import { makeToken, TOKEN_SLOT_MAX, type Token } from "../../io/engine.ts";
import type { Reactor } from "../../io/reactor.ts";
import { assert } from "../../util/error.ts";
import type { FuseDevice } from "./device.ts";
import type { FuseTransport } from "./transport.ts";

/** Of the pool, for requests that wait: what they need on their way must not run out. */
const SHARE = 1 / 4;

export class FuseDevices {
  readonly reactor: Reactor;
  /** By request slot: `at` of its FuseRequest. Integers: see NbdConnections. */
  readonly at: Int32Array;
  /** By request slot: where it came from. */
  readonly transport: (FuseTransport | null)[];
  #kind: number;
  #devices: (FuseDevice | null)[] = [];
  #free: number[] = [];
  /** Buffers of requests that wait for something. */
  #bytesHeld = 0;
  #waiters: (() => void)[] = [];

  constructor(reactor: Reactor) {
    assert(reactor.memory.bytes <= 2 ** 31, "positions are i32");
    this.reactor = reactor;
    this.at = new Int32Array(reactor.requests.capacity);
    this.transport = new Array(reactor.requests.capacity).fill(null);
    this.#kind = reactor.register((index) => this.#devices[index]!.onPolled());
  }

  /** The token of its poll. */
  add(device: FuseDevice): Token {
    const index = this.#free.pop() ?? this.#devices.length;
    this.#devices[index] = device;
    return makeToken(this.#kind, index);
  }

  /** Its poll has ended. */
  remove(token: Token): void {
    const index = token & TOKEN_SLOT_MAX;
    this.#devices[index] = null;
    this.#free.push(index);
  }

  /** One more may hold the longest buffer. */
  get hasRoom(): boolean {
    const { bytesMax } = this.reactor.buffers;
    return this.#bytesHeld + BUFFER_BYTES_MAX <= bytesMax * SHARE;
  }

  /** Calls back when a buffer of the longest kind may be had, which another may be quicker to. */
  onRoom(callback: () => void): void {
    if (this.hasRoom) this.reactor.buffers.onAvailable(BUFFER_BYTES_MAX, callback);
    else this.#waiters.push(callback);
  }

  hold(at: number): void {
    this.#bytesHeld += this.reactor.buffers.bytesOf(at) + HEADROOM_BYTES;
  }

  /** Frees what is held. */
  release(at: number): void {
    const { buffers } = this.reactor;
    this.#bytesHeld -= buffers.bytesOf(at) + HEADROOM_BYTES;
    buffers.free(at);
    while (this.#waiters.length > 0 && this.hasRoom) this.#waiters.shift()!();
  }
}
