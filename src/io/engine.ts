/**
 * The small interface behind which the two I/O engines stand: io_uring, and epoll with a pool of
 * threads. Thread: iothread. Everything is submitted with a token and completes exactly once.
 */

import type { Linux } from "../runtime/linux.ts";
import type { Memory } from "./memory.ts";
import type { OffloadPool } from "./offload.ts";

/** What an engine is made of. */
export interface EngineOptions {
  readonly linux: Linux;
  /** The thread's: what readv() and writev() are given is looked at there. */
  readonly memory: Memory;
  /** By kind; an engine may add kinds of its own. */
  readonly handlers: CompletionHandler[];
  /** Called once, at the first operation that may block. */
  readonly offload: () => OffloadPool;
  readonly nowNs: () => number;
}

/** Kinds fit 8 bits, slots 24. */
export const TOKEN_SLOT_BITS = 24;
export const TOKEN_SLOT_MAX = (1 << TOKEN_SLOT_BITS) - 1;
export const TOKEN_KIND_MAX = 255;

/** Names one operation in flight: who handles its completion, and which of theirs it is. u32. */
export type Token = number;

export function makeToken(kind: number, slot: number): Token {
  return ((kind << TOKEN_SLOT_BITS) | slot) >>> 0;
}

/** `result` is what the system call would return: a count, an fd, 0, or a negative errno. */
export type CompletionHandler = (slot: number, result: number) => void;

/**
 * Operations. Between a call and its completion the memory named stays valid and unmoved, the fd
 * open, and the token unique. A call never runs a handler: completions come out of `wait()`. None
 * of them fails at once; even a full submission queue is the engine's own business.
 *
 * Results may be short (`read`, `write`, `recv`, `send`): the caller goes on from there. After
 * -EINTR or -EAGAIN it starts the operation again. Whatever mode a socket is in, no call ever
 * blocks.
 */
export interface IoEngine {
  readonly name: "io_uring" | "epoll";

  /** preadv2/pwritev2. `rwFlags`: RWF_DSYNC or 0. `address` is of `bytes` bytes. */
  read(fd: number, address: number, bytes: number, offset: number, token: Token): void;
  write(
    fd: number,
    address: number,
    bytes: number,
    offset: number,
    rwFlags: number,
    token: Token,
  ): void;
  /** The same with `iovCount` struct iovec at `iov`, which stays valid until completion. */
  readv(fd: number, iov: number, iovCount: number, offset: number, token: Token): void;
  writev(
    fd: number,
    iov: number,
    iovCount: number,
    offset: number,
    rwFlags: number,
    token: Token,
  ): void;
  /**
   * Reads of a file at once, on this thread, what the host has in memory. Returns how many bytes,
   * or -errno; -EAGAIN when it could block.
   */
  readCached(fd: number, address: number, bytes: number, offset: number): number;
  /**
   * Moves `bytes` of a pipe into a file at once, on this thread. Returns how many, or -errno;
   * -EAGAIN when that could block for long. Offset and bytes are multiples of 4096.
   */
  writeFromPipe(pipeFd: number, bytes: number, fd: number, offset: number): number;
  /** fdatasync, or fsync when `dataOnly` is false. */
  fsync(fd: number, dataOnly: boolean, token: Token): void;
  fallocate(fd: number, mode: number, offset: number, bytes: number, token: Token): void;

  /** Sockets, non-blocking in effect: these complete when the peer acted. */
  recv(fd: number, address: number, bytes: number, token: Token): void;
  send(fd: number, address: number, bytes: number, flags: number, token: Token): void;
  /** `msghdr` is the address of a struct msghdr. */
  sendmsg(fd: number, msghdr: number, flags: number, token: Token): void;
  recvmsg(fd: number, msghdr: number, flags: number, token: Token): void;
  /** One connection; the new fd is close-on-exec. */
  accept(fd: number, token: Token): void;
  /**
   * read(2) and write(2) of an eventfd or a pipe that is in non-blocking mode, whose other users
   * may take it out of that at any time. -EAGAIN may mean that it wants a poll() first.
   */
  readStream(fd: number, address: number, bytes: number, token: Token): void;
  writeStream(fd: number, address: number, bytes: number, token: Token): void;
  /** One-shot; the result is the POLL* bits that are ready. */
  poll(fd: number, events: number, token: Token): void;

  /**
   * Any system call that has no operation of its own and may block (an ioctl, for example), run
   * off this thread; or a CODEC_*. Up to six safe integers.
   */
  call(number: number, args: readonly number[], token: Token): void;

  /** Completes `token` with `result` at the next wait(): for what needed no operation. */
  post(token: Token, result: number): void;

  /**
   * Asks for the operation with `token` to end early. It still completes once: with -ECANCELED, or
   * with its result when it was too late. What a thread of `call()` already runs can't be
   * cancelled.
   */
  cancel(token: Token): void;

  /**
   * Submits what is queued, waits until there is a completion, at most `timeoutNs` (0: does not
   * wait; Infinity: no limit), and runs the handlers of what completed, at most a bounded batch.
   * Returns how many. Handlers may start operations.
   */
  wait(timeoutNs: number): number;

  /**
   * Looks without a system call whether wait(0) would complete something; absent where an engine
   * can't. For polling. Operations queued since the last wait() are not submitted by it.
   */
  hasWork?(): boolean;

  /** Operations not yet completed. */
  readonly inFlight: number;

  /**
   * Frees the engine's own fds and memory. Nothing may be in flight that still writes to memory in
   * use.
   */
  close(): void;
}
