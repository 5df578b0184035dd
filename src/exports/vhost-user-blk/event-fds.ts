/**
 * Eventfds (or pipes) of front-ends: kicks that come, calls that go. A front-end has them open,
 * too, and may do to them what it likes; so no system call that could block is made with one.
 * Thread: iothread.
 */
import { F_GETFL, F_SETFL, O_NONBLOCK, POLLIN } from "../../abi/linux.ts";
import { makeToken } from "../../io/engine.ts";
import { Memory } from "../../io/memory.ts";
import type { Reactor } from "../../io/reactor.ts";
import { EAGAIN, EINTR } from "../../runtime/errno.ts";

const MEMORY_BYTES = 4096;
/** What was read is of no interest to anybody. */
const READ_AT = 0;
const ONE_AT = 8;

/** One descriptor, which is this object's until close(). */
export interface EventSource {
  close(): void;
  /** Instead of close(): gives the descriptor away, once nothing is under way; -1: it failed. */
  detach(): Promise<number>;
}

export interface EventTarget {
  /** Whoever waits on the other side wakes up. */
  signal(): void;
  close(): void;
  detach(): Promise<number>;
}

interface Operation {
  readonly fd: number;
  onResult(result: number): void;
  /** Gets the fd instead of its being closed. */
  onDetached: ((fd: number) => void) | null;
}

export class EventFds {
  #reactor: Reactor;
  #memory: Memory;
  #kind: number;
  #operations: (Operation | null)[] = [];
  #free: number[] = [];

  constructor(reactor: Reactor) {
    this.#reactor = reactor;
    this.#memory = new Memory(reactor.linux, MEMORY_BYTES);
    this.#memory.setU64(ONE_AT, 1);
    this.#kind = reactor.register((slot, result) => this.#operations[slot]!.onResult(result));
  }

  /** Takes the fd. `onEvent(0)` each time it is written to; -errno or EOF, as 1, ends it. */
  listen(fd: number, onEvent: (failure: number) => void): EventSource {
    this.#unblock(fd);
    let isClosed = false;
    let isPolling = false;
    const { engine } = this.#reactor;
    const readAddress = this.#memory.address + READ_AT;
    const read = (): void => {
      isPolling = false;
      engine.readStream(fd, readAddress, 8, token);
    };
    const slot = this.#add({
      fd,
      onDetached: null,
      onResult: (result) => {
        if (isClosed) this.#remove(slot);
        else if (isPolling && result >= 0) read();
        else if (result === -EINTR) read();
        else if (result === -EAGAIN) {
          isPolling = true;
          engine.poll(fd, POLLIN, token);
        } else if (result > 0) {
          read();
          onEvent(0);
        } else {
          isClosed = true;
          this.#remove(slot);
          onEvent(result === 0 ? 1 : result);
        }
      },
    });
    const token = makeToken(this.#kind, slot);
    read();
    const close = (): void => {
      if (isClosed) return;
      isClosed = true;
      engine.cancel(token);
    };
    return { close, detach: async () => (isClosed ? -1 : this.#detach(slot, close)) };
  }

  /** Takes the fd. */
  target(fd: number): EventTarget {
    this.#unblock(fd);
    let isClosed = false;
    let isWriting = false;
    const { engine } = this.#reactor;
    const oneAddress = this.#memory.address + ONE_AT;
    const slot = this.#add({
      fd,
      onDetached: null,
      onResult: () => {
        // It is as good as signalled when it is full, and nobody's when it fails.
        isWriting = false;
        if (isClosed) this.#remove(slot);
        else if (isWanted) signal();
      },
    });
    const token = makeToken(this.#kind, slot);
    let isWanted = false;
    const signal = (): void => {
      if (isClosed) return;
      isWanted = isWriting;
      if (isWriting) return;
      isWriting = true;
      engine.writeStream(fd, oneAddress, 8, token);
    };
    const close = (): void => {
      if (isClosed) return;
      isClosed = true;
      if (isWriting) engine.cancel(token);
      else this.#remove(slot);
    };
    return { signal, close, detach: () => this.#detach(slot, close) };
  }

  /** Of an fd that a front-end gave: its description may be anybody's, too. */
  #unblock(fd: number): void {
    const { linux } = this.#reactor;
    const flags = linux.fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) === 0) linux.fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  }

  #add(operation: Operation): number {
    const slot = this.#free.pop() ?? this.#operations.length;
    this.#operations[slot] = operation;
    return slot;
  }

  /** Of one that is not closed. */
  #detach(slot: number, close: () => void): Promise<number> {
    return new Promise((resolve) => {
      this.#operations[slot]!.onDetached = resolve;
      close();
    });
  }

  /** Nothing is under way. */
  #remove(slot: number): void {
    const { fd, onDetached } = this.#operations[slot]!;
    if (onDetached === null) this.#reactor.linux.close(fd);
    else onDetached(fd);
    this.#reactor.asyncResumed();
    this.#operations[slot] = null;
    this.#free.push(slot);
  }
}
