/**
 * The io_uring engine. Thread: iothread, the ring's single issuer.
 * Spec: io_uring_enter(2) for each operation
 */
import * as abi from "../abi/io-uring.ts";
import { POLLIN } from "../abi/linux.ts";
import { SOCK_CLOEXEC } from "../abi/linux-socket.ts";
import { EAGAIN, EBUSY, EINTR, ETIME, strerror } from "../runtime/errno.ts";
import { assert } from "../util/error.ts";
import { CompletionQueue } from "./completions.ts";
import {
  type CompletionHandler,
  type EngineOptions,
  type IoEngine,
  makeToken,
  TOKEN_SLOT_BITS,
  TOKEN_SLOT_MAX,
  type Token,
} from "./engine.ts";
import { InlineFiles } from "./inline-files.ts";
import type { Memory } from "./memory.ts";
import type { OffloadPool } from "./offload.ts";
import { NONE } from "./requests.ts";
import { Ring } from "./ring.ts";
import { Runs } from "./runs.ts";

/** Throws OutportError of kind "unsupported" where io_uring is missing or forbidden. */
export function createUringEngine(options: EngineOptions): IoEngine {
  return new UringEngine(new Ring(options.linux), options);
}

class UringEngine implements IoEngine {
  readonly name = "io_uring";
  #ring: Ring;
  #handlers: CompletionHandler[];
  #inFlight = 0;
  /** CQEs put aside to make room, and results of call(). */
  #aside = new CompletionQueue();
  #makeOffload: () => OffloadPool;
  #offload: OffloadPool | null = null;
  #inline: InlineFiles;
  #memory: Memory;
  #runs: Runs;
  #runKind: number;
  #ignoreToken: Token;
  #offloadToken: Token;

  constructor(ring: Ring, options: EngineOptions) {
    this.#ring = ring;
    this.#handlers = options.handlers;
    this.#makeOffload = options.offload;
    this.#inline = new InlineFiles(options.linux, options.nowNs);
    this.#memory = options.memory;
    this.#runs = new Runs(options.linux);
    this.#runKind = options.handlers.push((run, result) => this.#onRun(run, result)) - 1;
    this.#ignoreToken = makeToken(options.handlers.push(() => {}) - 1, 0);
    this.#offloadToken = makeToken(options.handlers.push(() => this.#onOffload()) - 1, 0);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  read(fd: number, address: number, bytes: number, offset: number, token: Token): void {
    const runs = this.#runs;
    if (!runs.goesOn(0, fd, bytes, offset, 0)) {
      this.#endRun();
      if (!runs.begin(0, fd, offset, 0)) {
        this.#read(fd, address, bytes, offset, token);
        return;
      }
    }
    this.#inFlight++;
    runs.add(address, bytes, token);
  }

  write(
    fd: number,
    address: number,
    bytes: number,
    offset: number,
    rwFlags: number,
    token: Token,
  ): void {
    const runs = this.#runs;
    if (!runs.goesOn(1, fd, bytes, offset, rwFlags)) {
      this.#endRun();
      if (!runs.begin(1, fd, offset, rwFlags)) {
        this.#write(fd, address, bytes, offset, rwFlags, token);
        return;
      }
    }
    this.#inFlight++;
    runs.add(address, bytes, token);
  }

  readv(fd: number, iov: number, iovCount: number, offset: number, token: Token): void {
    const inline = this.#inline;
    const goesToRing = inline.modes.readsNowait(fd);
    const result = goesToRing ? -EAGAIN : inline.readv(fd, iov, iovCount, offset);
    if (result !== -EAGAIN) this.post(token, result);
    else this.#prep(abi.IORING_OP_READV, fd, offset, iov, iovCount, 0, token);
  }

  writev(
    fd: number,
    iov: number,
    iovCount: number,
    offset: number,
    rwFlags: number,
    token: Token,
  ): void {
    const bytes = this.#memory.iovBytes(iov, iovCount);
    this.#writev(fd, iov, iovCount, offset, bytes, rwFlags, token);
  }

  readCached(fd: number, address: number, bytes: number, offset: number): number {
    return this.#inline.read(fd, address, bytes, offset);
  }

  writeFromPipe(pipeFd: number, bytes: number, fd: number, offset: number): number {
    return this.#inline.writeFromPipe(pipeFd, bytes, fd, offset);
  }

  fsync(fd: number, dataOnly: boolean, token: Token): void {
    const flags = dataOnly ? abi.IORING_FSYNC_DATASYNC : 0;
    this.#prep(abi.IORING_OP_FSYNC, fd, 0, 0, 0, flags, token);
  }

  fallocate(fd: number, mode: number, offset: number, bytes: number, token: Token): void {
    // The length travels in the address field, the mode in the length field.
    this.#prep(abi.IORING_OP_FALLOCATE, fd, offset, bytes, mode, 0, token);
  }

  recv(fd: number, address: number, bytes: number, token: Token): void {
    this.#prep(abi.IORING_OP_RECV, fd, 0, address, bytes, 0, token);
  }

  send(fd: number, address: number, bytes: number, flags: number, token: Token): void {
    this.#prep(abi.IORING_OP_SEND, fd, 0, address, bytes, flags, token);
  }

  sendmsg(fd: number, msghdr: number, flags: number, token: Token): void {
    this.#prep(abi.IORING_OP_SENDMSG, fd, 0, msghdr, 1, flags, token);
  }

  recvmsg(fd: number, msghdr: number, flags: number, token: Token): void {
    this.#prep(abi.IORING_OP_RECVMSG, fd, 0, msghdr, 1, flags, token);
  }

  accept(fd: number, token: Token): void {
    this.#prep(abi.IORING_OP_ACCEPT, fd, 0, 0, 0, SOCK_CLOEXEC, token);
  }

  readStream(fd: number, address: number, bytes: number, token: Token): void {
    this.#prep(abi.IORING_OP_READ, fd, 0, address, bytes, 0, token);
  }

  writeStream(fd: number, address: number, bytes: number, token: Token): void {
    this.#prep(abi.IORING_OP_WRITE, fd, 0, address, bytes, 0, token);
  }

  poll(fd: number, events: number, token: Token): void {
    this.#prep(abi.IORING_OP_POLL_ADD, fd, 0, 0, 0, events, token);
  }

  call(number: number, args: readonly number[], token: Token): void {
    this.#inFlight++;
    if (this.#offload === null) {
      this.#offload = this.#makeOffload();
      this.#armOffload();
    }
    this.#offload.submit(number, args, token);
  }

  post(token: Token, result: number): void {
    this.#inFlight++;
    this.#aside.push(token, result);
  }

  cancel(token: Token): void {
    if (this.#offload?.cancel(token) === true) return;
    this.#prep(abi.IORING_OP_ASYNC_CANCEL, -1, 0, token, 0, 0, this.#ignoreToken);
  }

  hasWork(): boolean {
    return this.#aside.length > 0 || this.#ring.ready;
  }

  wait(timeoutNs: number): number {
    this.#endRun();
    const ring = this.#ring;
    const block = timeoutNs > 0 && this.#aside.length === 0 && !ring.ready;
    if (block || ring.queued > 0 || ring.ready) {
      const result = ring.enter(block ? 1 : 0, timeoutNs);
      if (result < 0) this.#checkEnter(result);
    }
    return this.#completeAside() + this.#completeRing();
  }

  close(): void {
    this.#offload?.stop();
    this.#inline.close();
    this.#ring.close();
    this.#runs.close();
  }

  #read(fd: number, address: number, bytes: number, offset: number, token: Token): void {
    const { modes } = this.#inline;
    const result = modes.readsNowait(fd) ? -EAGAIN : this.#inline.read(fd, address, bytes, offset);
    if (result !== -EAGAIN) this.post(token, result);
    else this.#prep(abi.IORING_OP_READ, fd, offset, address, bytes, 0, token);
  }

  #write(
    fd: number,
    address: number,
    bytes: number,
    offset: number,
    rwFlags: number,
    token: Token,
  ): void {
    const result = rwFlags === 0 ? this.#inline.write(fd, address, bytes, offset) : -EAGAIN;
    if (result !== -EAGAIN) this.post(token, result);
    else this.#prep(abi.IORING_OP_WRITE, fd, offset, address, bytes, rwFlags, token);
  }

  /** `bytes` in all, 0 when that isn't known. */
  #writev(
    fd: number,
    iov: number,
    iovCount: number,
    offset: number,
    bytes: number,
    rwFlags: number,
    token: Token,
  ): void {
    const inline = this.#inline;
    const result = rwFlags === 0 ? inline.writev(fd, iov, iovCount, offset, bytes) : -EAGAIN;
    if (result !== -EAGAIN) this.post(token, result);
    else this.#prep(abi.IORING_OP_WRITEV, fd, offset, iov, iovCount, rwFlags, token);
  }

  /** Starts the open run, if there is one. */
  #endRun(): void {
    const runs = this.#runs;
    const run = runs.open;
    if (run === NONE) return;
    runs.open = NONE;
    const count = runs.count[run]!;
    if (count === 1) {
      this.#startPart(run, runs.partOf(run), runs.offset[run]!);
      runs.free(run);
      return;
    }
    const fd = runs.fd[run]!;
    const offset = runs.offset[run]!;
    const flags = runs.rwFlags[run]!;
    const iov = runs.writeIovec(run);
    const token = makeToken(this.#runKind, run);
    if (runs.isWrite[run] === 0) this.readv(fd, iov, count, offset, token);
    else this.#writev(fd, iov, count, offset, runs.bytes[run]!, flags, token);
  }

  /** Starts one part of a run as an operation of its own. */
  #startPart(run: number, part: number, offset: number): void {
    const runs = this.#runs;
    const address = runs.partAddress[part]!;
    const bytes = runs.partBytes[part]!;
    const token = runs.tokens[part]!;
    const fd = runs.fd[run]!;
    this.#inFlight--;
    if (runs.isWrite[run] === 0) this.#read(fd, address, bytes, offset, token);
    else this.#write(fd, address, bytes, offset, runs.rwFlags[run]!, token);
  }

  /** What a run did not reach is done part by part: each gets an answer of its own. */
  #onRun(run: number, result: number): void {
    const runs = this.#runs;
    // A synchronous write tells of what an earlier one has lost, too, and only once.
    const failsAll = result < 0 && runs.rwFlags[run] !== 0;
    const first = runs.partOf(run);
    const end = first + runs.count[run]!;
    let offset = runs.offset[run]!;
    let left = result;
    for (let part = first; part < end; part++) {
      const bytes = runs.partBytes[part]!;
      if (left > 0 || failsAll) {
        const token = runs.tokens[part]!;
        const own = failsAll ? result : Math.min(left, bytes);
        this.#inFlight--;
        this.#handlers[token >>> TOKEN_SLOT_BITS]!(token & TOKEN_SLOT_MAX, own);
      } else {
        this.#startPart(run, part, offset);
      }
      left -= bytes;
      offset += bytes;
    }
    runs.free(run);
  }

  /** Fills one entry, in the words of struct io_uring_sqe. */
  #prep(
    opcode: number,
    fd: number,
    offset: number,
    address: number,
    length: number,
    opFlags: number,
    token: Token,
  ): void {
    const ring = this.#ring;
    if (ring.full) this.#makeRoom();
    this.#inFlight++;
    const sqes = ring.sqes;
    const at = ring.push();
    sqes[at + abi.SQE_OPCODE_U32] = opcode;
    sqes[at + abi.SQE_FD_U32] = fd;
    sqes[at + abi.SQE_OFF_U32] = offset;
    sqes[at + abi.SQE_OFF_U32 + 1] = offset / 0x1_0000_0000;
    sqes[at + abi.SQE_ADDR_U32] = address;
    sqes[at + abi.SQE_ADDR_U32 + 1] = address / 0x1_0000_0000;
    sqes[at + abi.SQE_LEN_U32] = length;
    sqes[at + abi.SQE_OP_FLAGS_U32] = opFlags;
    sqes[at + abi.SQE_USER_DATA_U32] = token;
    for (let i = abi.SQE_USER_DATA_U32 + 1; i < abi.SQE_U32; i++) sqes[at + i] = 0;
  }

  /** Hands the full submission ring to the kernel, without running a handler. */
  #makeRoom(): void {
    const ring = this.#ring;
    while (ring.full) {
      const result = ring.enter(0, 0);
      if (result < 0) this.#checkEnter(result);
      // EBUSY and EAGAIN: the kernel wants its completions taken first.
      if (ring.full) this.#putAside();
    }
  }

  #putAside(): void {
    const { words, cqHeadIndex, cqTailIndex, cqesIndex, cqMask } = this.#ring;
    const tail = Atomics.load(words, cqTailIndex);
    let head = words[cqHeadIndex]!;
    for (; head !== tail; head = (head + 1) >>> 0) {
      const at = cqesIndex + (head & cqMask) * abi.CQE_U32;
      this.#aside.push(words[at + abi.CQE_USER_DATA_U32]!, words[at + abi.CQE_RES_U32]! | 0);
    }
    Atomics.store(words, cqHeadIndex, head);
  }

  /** Runs the handlers of what is in the completion ring now; what they cause comes next time. */
  #completeRing(): number {
    const { words, cqHeadIndex, cqTailIndex, cqesIndex, cqMask } = this.#ring;
    const handlers = this.#handlers;
    // The kernel released the CQEs before this tail.
    const tail = Atomics.load(words, cqTailIndex);
    let count = 0;
    // A handler may make room, which takes CQEs: the head is read again each time.
    for (let head = words[cqHeadIndex]!; ((tail - head) | 0) > 0; head = words[cqHeadIndex]!) {
      const at = cqesIndex + (head & cqMask) * abi.CQE_U32;
      const token = words[at + abi.CQE_USER_DATA_U32]!;
      const result = words[at + abi.CQE_RES_U32]! | 0;
      // The entry is ours until the kernel sees the new head.
      Atomics.store(words, cqHeadIndex, (head + 1) >>> 0);
      this.#inFlight--;
      count++;
      handlers[token >>> TOKEN_SLOT_BITS]!(token & TOKEN_SLOT_MAX, result);
    }
    return count;
  }

  #completeAside(): number {
    const count = this.#aside.length;
    for (let i = 0; i < count; i++) {
      const token = this.#aside.token;
      const result = this.#aside.shift();
      this.#inFlight--;
      this.#handlers[token >>> TOKEN_SLOT_BITS]!(token & TOKEN_SLOT_MAX, result);
    }
    return count;
  }

  /** The engine's own operation: it doesn't count. */
  #armOffload(): void {
    this.poll(this.#offload!.eventFd, POLLIN, this.#offloadToken);
    this.#inFlight--;
  }

  #onOffload(): void {
    this.#inFlight++;
    this.#offload!.drain((token, result) => this.#aside.push(token, result));
    this.#armOffload();
  }

  /** The errors of io_uring_enter() that a correct caller meets; all others are our own fault. */
  #checkEnter(result: number): void {
    switch (-result) {
      case ETIME: // The timeout passed.
      case EINTR: // A signal arrived while waiting.
      case EAGAIN: // Out of memory for a request for the moment.
      case EBUSY: // Completions must be reaped first.
        return;
      default:
        assert(false, `io_uring_enter: ${strerror(result)}`);
    }
  }
}
