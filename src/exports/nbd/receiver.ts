/**
 * What one connection receives: a small buffer for requests, which grows while the peer fills it
 * and shrinks when it falls silent, and payloads straight into the buffers where they belong.
 * Thread: iothread.
 */
import type { Token } from "../../io/engine.ts";
import type { Reactor } from "../../io/reactor.ts";
import { NONE } from "../../io/requests.ts";
import { assert } from "../../util/error.ts";

/** Of an idle connection; enough for a hundred requests without payload. */
const SMALL_BYTES = 4096;
/** Of one that sends data: many small writes come in one system call. */
const LARGE_BYTES = 256 * 1024;

export class Receiver {
  /** Bytes at hand: memory [start, end). */
  start = 0;
  end = 0;
  #reactor: Reactor;
  #fd: number;
  #token: Token;
  #at: number;
  #capacity: number;
  #receiving = false;
  /** Where the receive under way puts its bytes, when not into the own buffer. */
  #direct = false;
  #filled = false;
  #silent = false;
  #shrinkNext = false;

  /** Owns the buffer at `at`, from reactor.allocate(Receiver.bytesFor(early)). */
  constructor(reactor: Reactor, fd: number, token: Token, at: number) {
    this.#reactor = reactor;
    this.#fd = fd;
    this.#token = token;
    this.#at = at;
    this.#capacity = reactor.buffers.bytesOf(at);
    this.start = at;
    this.end = at;
  }

  /** Bytes of the buffer to begin with, when `early` bytes came with the handshake. */
  static bytesFor(early: number): number {
    return Math.max(SMALL_BYTES, early);
  }

  /** Holds more than an idle connection needs. */
  get large(): boolean {
    return this.#capacity > SMALL_BYTES;
  }

  /** A receive is with the kernel: its memory must stay. */
  get receiving(): boolean {
    return this.#receiving;
  }

  get available(): number {
    return this.end - this.start;
  }

  /** Puts bytes at hand that came before; the buffer is empty. */
  prime(early: Uint8Array): void {
    assert(this.available === 0 && early.length <= this.#capacity, "early bytes fit the buffer");
    this.#reactor.memory.u8.set(early, this.#at);
    this.start = this.#at;
    this.end = this.#at + early.length;
  }

  /** A copy of what is at hand, which is gone then. */
  take(): Uint8Array {
    const taken = this.#reactor.memory.u8.slice(this.start, this.end);
    this.start = this.end;
    return taken;
  }

  /** Receives more behind what is at hand, at most `bytesMax`. */
  receive(bytesMax: number): void {
    assert(!this.#receiving, "one receive at a time");
    this.#makeRoom();
    this.#submit(this.end, Math.min(bytesMax, this.#at + this.#capacity - this.end), false);
  }

  /** Receives into memory [at, at + bytes); nothing is at hand. */
  receiveInto(at: number, bytes: number): void {
    assert(!this.#receiving && this.available === 0, "bytes are taken in order");
    this.#submit(at, bytes, true);
  }

  /** Moves up to `bytes` at hand to memory at `at`; returns how many. */
  moveTo(at: number, bytes: number): number {
    const count = Math.min(bytes, this.available);
    this.#reactor.memory.u8.copyWithin(at, this.start, this.start + count);
    this.start += count;
    return count;
  }

  /** The receive ended. Returns the bytes that went into a buffer of the caller, else 0. */
  onReceived(result: number): number {
    this.#receiving = false;
    this.#silent = false;
    const count = Math.max(result, 0);
    if (count > 0) this.#shrinkNext = false;
    if (this.#direct) return count;
    this.end += count;
    this.#filled = this.end === this.#at + this.#capacity;
    return 0;
  }

  /**
   * Called now and then. True once nothing came since the last call and a large buffer is held
   * for it: the caller cancels the receive, and the next one takes a small buffer.
   */
  isSilent(): boolean {
    const idle = this.#receiving && !this.#direct && this.available === 0;
    this.#shrinkNext = this.#silent && this.large && idle;
    this.#silent = true;
    return this.#shrinkNext;
  }

  /** Nothing is being received. */
  close(): void {
    assert(!this.#receiving, "the kernel no longer writes the buffer");
    this.#reactor.buffers.free(this.#at);
    this.#at = NONE;
  }

  #submit(at: number, bytes: number, direct: boolean): void {
    this.#receiving = true;
    this.#direct = direct;
    const { engine, memory } = this.#reactor;
    engine.recv(this.#fd, memory.address + at, bytes, this.#token);
  }

  #makeRoom(): void {
    if (this.#filled && this.#capacity < LARGE_BYTES && this.#mayGrow()) this.#resize(LARGE_BYTES);
    else if (this.#shrinkNext) this.#resize(SMALL_BYTES);
    const count = this.available;
    if (this.start > this.#at) {
      this.#reactor.memory.u8.copyWithin(this.#at, this.start, this.end);
      this.start = this.#at;
      this.end = this.#at + count;
    }
    assert(this.end < this.#at + this.#capacity, "a request header fits the buffer");
  }

  /** Convenience ends where requests may come to need the pool. */
  #mayGrow(): boolean {
    const { bytesInUse, bytesMax } = this.#reactor.buffers;
    return bytesInUse < bytesMax / 4;
  }

  /** Stays with the old buffer when there is no other, or what is at hand would not fit. */
  #resize(capacity: number): void {
    const { buffers, memory } = this.#reactor;
    if (this.available >= capacity) return;
    const at = buffers.allocate(capacity);
    if (at === NONE) return;
    memory.u8.copyWithin(at, this.start, this.end);
    this.end = at + this.available;
    this.start = at;
    buffers.free(this.#at);
    this.#at = at;
    this.#capacity = capacity;
    this.#filled = false;
    this.#shrinkNext = false;
  }
}
