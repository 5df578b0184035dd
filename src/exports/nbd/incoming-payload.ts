/**
 * The payload that a connection is receiving: where to, how much is missing, and what happens
 * when all of it is there. Thread: iothread.
 */
import type { BlockBackend } from "../../block/backend.ts";
import type { Reactor } from "../../io/reactor.ts";
import { NONE } from "../../io/requests.ts";
import { assert } from "../../util/error.ts";

export class IncomingPayload {
  /** Memory for the next byte. */
  at = NONE;
  /** Bytes missing; 0 without a payload. */
  rest = 0;
  #reactor: Reactor;
  #backend: BlockBackend;
  /** The request that starts then; NONE when somebody waits. */
  #slot = NONE;
  #done: ((received: boolean) => void) | null = null;

  constructor(reactor: Reactor, backend: BlockBackend) {
    this.#reactor = reactor;
    this.#backend = backend;
  }

  /** To memory [at, at + bytes); then the request in `slot` starts. */
  begin(slot: number, at: number, bytes: number): void {
    assert(this.rest === 0 && bytes > 0, "one payload at a time");
    this.at = at;
    this.rest = bytes;
    this.#slot = slot;
  }

  /** To memory [at, at + bytes); resolves true then, false when abandoned. */
  wait(at: number, bytes: number): Promise<boolean> {
    this.begin(NONE, at, bytes);
    return new Promise((resolve) => {
      this.#done = (received) => {
        this.#reactor.asyncResumed();
        resolve(received);
      };
    });
  }

  /** The next `count` bytes are there. */
  advance(count: number): void {
    this.at += count;
    this.rest -= count;
    if (this.rest === 0) this.#end(true);
  }

  /** The rest will never come. Returns the request that does not start, or NONE. */
  abandon(): number {
    if (this.rest === 0) return NONE;
    this.rest = 0;
    const slot = this.#slot;
    this.#slot = NONE;
    if (slot === NONE) this.#end(false);
    return slot;
  }

  #end(received: boolean): void {
    const slot = this.#slot;
    this.#slot = NONE;
    if (slot !== NONE) {
      this.#backend.submit(slot);
      return;
    }
    const done = this.#done!;
    this.#done = null;
    done(received);
  }
}
