/**
 * What one connection has to send, in order: pieces of native memory with the buffer that each
 * gives back once the peer's kernel has it, and pieces of host files, which the kernel hands to
 * the socket page by page without a copy. Thread: iothread.
 * Spec: sendmsg(2), sendfile(2)
 */
import { F_DUPFD_CLOEXEC, IOVEC_SIZE, O_RDONLY, POLLOUT } from "../../abi/linux.ts";
import {
  MSG_MORE,
  MSG_NOSIGNAL,
  MSGHDR_IOV,
  MSGHDR_IOVLEN,
  MSGHDR_SIZE,
} from "../../abi/linux-socket.ts";
import type { Token } from "../../io/engine.ts";
import type { Reactor } from "../../io/reactor.ts";
import { NONE } from "../../io/requests.ts";
import { EAGAIN, EINTR } from "../../runtime/errno.ts";
import { assert } from "../../util/error.ts";

/** Pieces of one sendmsg(); the struct msghdr and they fit a page. */
const PIECES_PER_SEND = 250;
const CONTROL_BYTES = 4096;
const IOV_AT = MSGHDR_SIZE + 8;
const CAPACITY_START = 64;
/** Of files, in one go: then the other clients have their turn. */
const FILE_BYTES_PER_TURN = 4 * 1024 * 1024;

/** Hears when a piece has left. */
export interface SendQueueOwner {
  /** The buffer is free again; `last`: the piece ended a reply. */
  onPieceSent(bufferAt: number, last: boolean): void;
}

export class SendQueue {
  #reactor: Reactor;
  #fd: number;
  #token: Token;
  #owner: SendQueueOwner;
  /** Position of the struct msghdr and the iovecs; made with the first burst. */
  #controlAt = NONE;
  #positions = new Float64Array(CAPACITY_START);
  #bytes = new Float64Array(CAPACITY_START);
  #buffers = new Float64Array(CAPACITY_START);
  #lasts = new Float64Array(CAPACITY_START);
  /** The piece's file, NONE for memory; its position is an offset in the file then. */
  #files = new Float64Array(CAPACITY_START);
  /** The file that most pieces are of: one descriptor for all that are queued. */
  readonly #shared = { of: NONE, epoch: 0, fd: NONE, pieces: 0 };
  #head = 0;
  #count = 0;
  /** Bytes of the head piece that have left. */
  #headSent = 0;
  #sending = false;
  /** What is under way is a wait for room in the socket. */
  #polling = false;

  constructor(reactor: Reactor, fd: number, token: Token, owner: SendQueueOwner) {
    this.#reactor = reactor;
    this.#fd = fd;
    this.#token = token;
    this.#owner = owner;
  }

  /** A send is with the kernel: its pieces must stay. */
  get sending(): boolean {
    return this.#sending;
  }

  get empty(): boolean {
    return this.#count === 0;
  }

  /** Queues memory [at, at + bytes); `bufferAt` (or NONE) is given back when it has left. */
  push(at: number, bytes: number, bufferAt: number, last: boolean): void {
    this.#push(at, bytes, bufferAt, last, NONE);
  }

  /**
   * A descriptor for one pushFile() of what `file` names now; the caller may close its own. The
   * number names the same file throughout an `epoch`. Returns -errno when there is none.
   */
  openFile(file: number, epoch: number): number {
    const shared = this.#shared;
    if (shared.pieces > 0 && shared.of === file && shared.epoch === epoch) {
      shared.pieces++;
      return shared.fd;
    }
    const fd = this.#reactor.linux.fcntl(file, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || shared.pieces > 0) return fd;
    shared.of = file;
    shared.epoch = epoch;
    shared.fd = fd;
    shared.pieces = 1;
    return fd;
  }

  /**
   * Queues bytes [offset, offset + bytes) of `file`, from openFile(). Where the file has ended,
   * zeroes are sent.
   */
  pushFile(file: number, offset: number, bytes: number, last: boolean): void {
    this.#push(offset, bytes, NONE, last, file);
  }

  #closeFile(file: number): void {
    const shared = this.#shared;
    if (file === shared.fd && --shared.pieces > 0) return;
    if (file === shared.fd) shared.fd = NONE;
    this.#reactor.linux.close(file);
  }

  #push(at: number, bytes: number, bufferAt: number, last: boolean, file: number): void {
    if (this.#count === this.#positions.length) this.#grow();
    const index = (this.#head + this.#count++) & (this.#positions.length - 1);
    this.#positions[index] = at;
    this.#bytes[index] = bytes;
    this.#buffers[index] = bufferAt;
    this.#lasts[index] = last ? 1 : 0;
    this.#files[index] = file;
  }

  /** Sends what is queued, unless a send is under way. False: the peer is gone. */
  flush(): boolean {
    let fileBytes = 0;
    while (!this.#sending && this.#count > 0) {
      if (this.#files[this.#head] === NONE) {
        this.#sendMemory();
      } else if (fileBytes >= FILE_BYTES_PER_TURN) {
        this.#awaitRoom();
      } else {
        const sent = this.#sendFile();
        if (sent < 0) return false;
        fileBytes += sent;
      }
    }
    return true;
  }

  /** The send ended. Returns false when the peer is gone. */
  onSent(result: number): boolean {
    assert(this.#sending, "only a send under way ends");
    this.#sending = false;
    if (result === -EINTR || result === -EAGAIN) return true;
    if (result <= 0) return false;
    // The socket is ready for more of the file.
    if (this.#polling) this.#polling = false;
    else this.#advance(result);
    return true;
  }

  #advance(bytes: number): void {
    let rest = this.#headSent + bytes;
    while (this.#count > 0 && rest >= this.#bytes[this.#head]!) {
      rest -= this.#bytes[this.#head]!;
      this.#shift();
    }
    this.#headSent = rest;
  }

  /** Memory pieces up to the next file. */
  #sendMemory(): void {
    const { engine, memory } = this.#reactor;
    const mask = this.#positions.length - 1;
    const countMax = Math.min(this.#count, PIECES_PER_SEND);
    let count = 1;
    while (count < countMax && this.#files[(this.#head + count) & mask] === NONE) count++;
    const flags = count < countMax ? MSG_NOSIGNAL | MSG_MORE : MSG_NOSIGNAL;
    this.#sending = true;
    if (count === 1 || !this.#prepareControl()) {
      const at = this.#positions[this.#head]! + this.#headSent;
      const bytes = this.#bytes[this.#head]! - this.#headSent;
      engine.send(this.#fd, memory.address + at, bytes, flags, this.#token);
      return;
    }
    let iov = this.#controlAt + IOV_AT;
    let skip = this.#headSent;
    for (let i = 0; i < count; i++, iov += IOVEC_SIZE) {
      const index = (this.#head + i) & mask;
      memory.setU64(iov, memory.address + this.#positions[index]! + skip);
      memory.setU64(iov + 8, this.#bytes[index]! - skip);
      skip = 0;
    }
    memory.setU64(this.#controlAt + MSGHDR_IOVLEN, count);
    engine.sendmsg(this.#fd, memory.address + this.#controlAt, flags, this.#token);
  }

  /**
   * As much as the socket takes now of the file at the head. Returns the bytes; -errno when the
   * reply can't be completed.
   */
  #sendFile(): number {
    const { linux } = this.#reactor;
    const file = this.#files[this.#head]!;
    const offset = this.#positions[this.#head]! + this.#headSent;
    const bytes = this.#bytes[this.#head]! - this.#headSent;
    const result = linux.sendfile(this.#fd, file, offset, bytes);
    if (result > 0) {
      this.#advance(result);
    } else if (result === -EAGAIN) {
      this.#awaitRoom();
    } else if (result === 0) {
      // The file became shorter since its size was looked at: the rest reads as zeroes.
      const zeroes = linux.open("/dev/zero", O_RDONLY);
      if (zeroes < 0) return zeroes;
      this.#closeFile(file);
      this.#files[this.#head] = zeroes;
    } else if (result !== -EINTR) {
      return result;
    }
    return Math.max(result, 0);
  }

  #awaitRoom(): void {
    this.#sending = true;
    this.#polling = true;
    this.#reactor.engine.poll(this.#fd, POLLOUT, this.#token);
  }

  /** Gives all buffers back, sent or not. Nothing is being sent. */
  clear(): void {
    assert(!this.#sending, "the kernel no longer reads the pieces");
    while (this.#count > 0) this.#shift();
    this.#headSent = 0;
    if (this.#controlAt !== NONE) this.#reactor.buffers.free(this.#controlAt);
    this.#controlAt = NONE;
  }

  #shift(): void {
    const bufferAt = this.#buffers[this.#head]!;
    const last = this.#lasts[this.#head]! === 1;
    const file = this.#files[this.#head]!;
    if (file !== NONE) this.#closeFile(file);
    this.#head = (this.#head + 1) & (this.#positions.length - 1);
    this.#count--;
    this.#owner.onPieceSent(bufferAt, last);
  }

  /** False when there is no buffer for it now: then one piece is sent at a time. */
  #prepareControl(): boolean {
    if (this.#controlAt !== NONE) return true;
    const { buffers, memory } = this.#reactor;
    const at = buffers.allocate(CONTROL_BYTES);
    if (at === NONE) return false;
    this.#controlAt = at;
    memory.u8.fill(0, at, at + MSGHDR_SIZE);
    memory.setU64(at + MSGHDR_IOV, memory.address + at + IOV_AT);
    return true;
  }

  #grow(): void {
    const capacity = this.#positions.length;
    const from = this.#head;
    const unroll = (source: Float64Array) => {
      const target = new Float64Array(capacity * 2);
      for (let i = 0; i < capacity; i++) target[i] = source[(from + i) & (capacity - 1)]!;
      return target;
    };
    this.#positions = unroll(this.#positions);
    this.#bytes = unroll(this.#bytes);
    this.#buffers = unroll(this.#buffers);
    this.#lasts = unroll(this.#lasts);
    this.#files = unroll(this.#files);
    this.#head = 0;
  }
}
