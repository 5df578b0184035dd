/**
 * One client in the transmission phase. Thread: iothread.
 *
 * The fast path is synchronous and allocates nothing: decode, one request slot, one buffer with
 * the reply header right before its payload, all replies of a turn in one send. Everything that
 * needs several steps is in long-commands.ts.
 *
 * Bounded: commands in flight, bytes of buffers, and what the pool and the request table have. At
 * a bound the connection stops reading; it goes on when something is free again.
 */

import { F_SETFL, O_NONBLOCK, O_RDWR } from "../../abi/linux.ts";
import { SHUT_RDWR } from "../../abi/linux-socket.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_MAX_BUFFER_SIZE,
  NBD_SIMPLE_REPLY_BYTES,
} from "../../abi/nbd.ts";
import type { DirtyBitmap } from "../../bitmaps/dirty-bitmap.ts";
import type { BlockBackend } from "../../block/backend.ts";
import { BUFFER_BYTES_MAX } from "../../io/buffers.ts";
import type { Token } from "../../io/engine.ts";
import type { Reactor } from "../../io/reactor.ts";
import { NONE, type RequestOwner } from "../../io/requests.ts";
import { EAGAIN, ECANCELED, EINTR } from "../../runtime/errno.ts";
import { assert } from "../../util/error.ts";
import { BufferShare } from "./buffer-share.ts";
import { CACHED_BYTES_MIN, CachedReads } from "./cached-reads.ts";
import type { NbdConnections } from "./connections.ts";
import { failureMessage, nbdError } from "./errors.ts";
import type { Session } from "./handshake.ts";
import { IncomingPayload } from "./incoming-payload.ts";
import { LongCommands } from "./long-commands.ts";
import { Receiver } from "./receiver.ts";
import {
  dataHeaderBytes,
  type ReplyTo,
  SMALL_REPLY_BYTES_MAX,
  traceError,
  writeDataHeader,
  writeErrorChunk,
  writeNone,
  writeSimpleReply,
} from "./replies.ts";
import {
  decodeRequest,
  opOf,
  payloadBytes,
  type Refusal,
  type RequestHeader,
  type RequestRules,
  refusalOf,
  requestBytes,
  requestFlags,
  traceRequest,
} from "./request.ts";
import { SendQueue } from "./send-queue.ts";

/** Beyond it a write's payload goes from socket to file if it can; up to it, a copy costs less. */
const SHORT_WRITE_BYTES_MAX = 64 * 1024;
/** Data of one piece: a read or write beyond it goes in several. */
const PIECE_BYTES = 256 * 1024;
/** A connection's share of the buffers is never less. */
const PIECE_BYTES_MIN = 64 * 1024;
/** Buffer of a command without data. */
const REPLY_BYTES = 4096;

export interface ConnectionParts {
  readonly connections: NbdConnections;
  readonly backend: BlockBackend;
  readonly bitmaps: readonly DirtyBitmap[];
  readonly fd: number;
  readonly session: Session;
  readonly rules: RequestRules;
  /** Of Receiver.bytesFor(early.length), from reactor.allocate(). */
  readonly receiveAt: number;
  readonly early: Uint8Array;
  /** Everything of it has ended; the fd is closed. */
  readonly onClosed: (connection: NbdConnection) => void;
}

export class NbdConnection implements RequestOwner {
  readonly reactor: Reactor;
  readonly backend: BlockBackend;
  readonly bitmaps: readonly DirtyBitmap[];
  readonly session: Session;
  readonly extended: boolean;
  readonly structured: boolean;
  #connections: NbdConnections;
  #index: number;
  #fd: number;
  #rules: RequestRules;
  #onClosed: (connection: NbdConnection) => void;
  #receiveToken: Token;
  #receiver: Receiver;
  #queue: SendQueue;
  #long: LongCommands;
  #header: RequestHeader = { flags: 0, type: 0, cookie0: 0, cookie1: 0, offset: 0, bytes: 0 };
  #headerBytes: number;
  #cachedReads: CachedReads;
  /** Reused for replies of slots. */
  #replyTo = { cookie0: 0, cookie1: 0, offset: 0 };
  #commands = 0;
  #share: BufferShare;
  /** What waits for the end of an uninterrupted run; null without one. */
  #held: { at: number; bytes: number; bufferAt: number; last: boolean }[] | null = null;
  #payload: IncomingPayload;
  /** Payload of a refused request, to be thrown away. */
  #skipRest = 0;
  /** Parsing waits for something to become free. */
  #stalled = false;
  #dirty = false;
  /** Set: no more requests; called at each moment when nothing is on its way. */
  #onIdle: (() => void) | null = null;
  /** No more requests; ends when those in flight have been answered. */
  #ending = false;
  #closing = false;
  #clearing = false;
  #closed = false;

  constructor(parts: ConnectionParts) {
    const { connections, backend, fd, session } = parts;
    const { index, receiveToken, sendToken } = connections.add();
    this.reactor = connections.reactor;
    this.backend = backend;
    this.bitmaps = parts.bitmaps;
    this.session = session;
    this.extended = session.mode === "extended";
    this.structured = session.mode !== "simple";
    this.#connections = connections;
    this.#index = index;
    this.#fd = fd;
    this.#rules = parts.rules;
    this.#onClosed = parts.onClosed;
    this.#receiveToken = receiveToken;
    this.#receiver = new Receiver(this.reactor, fd, receiveToken, parts.receiveAt);
    this.#queue = new SendQueue(this.reactor, fd, sendToken, this);
    this.#cachedReads = new CachedReads(this, this.#queue);
    this.#share = new BufferShare(this.reactor, connections);
    this.#long = new LongCommands(this);
    this.#payload = new IncomingPayload(this.reactor, backend);
    this.#headerBytes = requestBytes(session.mode);
    // For sendfile(), which knows no other way of not waiting.
    this.reactor.linux.fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
    connections.set(index, this);
    this.#receiver.prime(parts.early);
  }

  /** Begins to serve. The first thing to call; `onClosed` may come before it returns. */
  start(): void {
    this.parse();
  }

  get closing(): boolean {
    return this.#closing;
  }

  /** Drops the client at once; requests in flight finish, their replies are lost. */
  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    // Whatever waits for the peer ends now.
    this.reactor.linux.shutdown(this.#fd, SHUT_RDWR);
    this.#abandonPayload();
    this.#share.close();
    this.#finishWhenIdle();
  }

  /**
   * Stops at the end of the request that is being received, and calls `onIdle` once everything is
   * answered and sent: then handOver() or resume() may come. A connection that ends meanwhile says
   * so with `onClosed` instead.
   */
  suspend(onIdle: () => void): void {
    assert(this.#onIdle === null, "a connection is suspended once");
    this.#onIdle = onIdle;
    if (this.#receiver.receiving && this.#atBoundary) {
      this.reactor.engine.cancel(this.#receiveToken);
    }
    this.#checkIdle();
  }

  resume(): void {
    this.#onIdle = null;
    if (!this.#closing) this.parse();
  }

  /** Gives the client to the caller: its socket, and what it has sent already. For good. */
  handOver(): { readonly fd: number; readonly session: Session; readonly early: Uint8Array } {
    assert(this.#idle && this.#share.empty, "an idle connection is handed over");
    // Whoever still calls finds it gone.
    this.#closing = true;
    this.#closed = true;
    const early = this.#receiver.take();
    this.#letGo();
    return { fd: this.#fd, session: this.session, early };
  }

  onReceived(result: number): void {
    const count = this.#receiver.onReceived(result);
    if (this.#closing) {
      this.#abandonPayload();
      this.#finishWhenIdle();
      return;
    }
    if (result <= 0) {
      if (result === -EINTR || result === -EAGAIN || result === -ECANCELED) this.parse();
      else this.close();
      return;
    }
    if (count > 0) this.#payload.advance(count);
    this.parse();
  }

  onSent(result: number): void {
    const alive = this.#queue.onSent(result);
    if (!alive) this.close();
    if (this.#closing) this.#finishWhenIdle();
    else this.flush();
  }

  onPieceSent(bufferAt: number, last: boolean): void {
    if (bufferAt !== NONE) this.release(bufferAt);
    if (last) this.endCommand();
  }

  flush(): void {
    this.#dirty = false;
    if (!this.#closing && !this.#queue.flush()) this.close();
    if (this.#closing) return;
    this.#endWhenAnswered();
    this.#checkIdle();
  }

  /** A request of the fast path ended: its reply goes out with the others of this turn. */
  onRequestDone(slot: number, result: number): void {
    const { cookie0, cookie1, bufferAt, type } = this.#connections;
    const { requests } = this.reactor;
    const to = this.#replyTo;
    to.cookie0 = cookie0[slot]!;
    to.cookie1 = cookie1[slot]!;
    to.offset = requests.offset[slot]!;
    const at = bufferAt[slot]!;
    const command = type[slot]!;
    const bytes = requests.bytes[slot]!;
    requests.free(slot);
    if (this.#closing) this.abandon(at);
    else if (result < 0) this.replyError(at, to, result, failureMessage(command));
    else if (command === NBD_CMD_READ) this.#replyData(at, to, bytes);
    else this.replyDone(at, to);
  }

  shrinkWhenSilent(): void {
    this.#long.closePipe();
    if (this.#receiver.isSilent()) this.reactor.engine.cancel(this.#receiveToken);
    else if (this.#receiver.large) this.#connections.watchSilence();
  }

  // What long commands use.

  /**
   * Data of one piece of a long command: PIECE_BYTES, less where many share the buffers. Whole
   * pages, for nodes that need alignment.
   */
  get pieceBytes(): number {
    const bytes = Math.min(PIECE_BYTES, this.#connections.bytesMaxEach);
    return bytes - (bytes % PIECE_BYTES_MIN);
  }

  /** A buffer of this connection, up to BUFFER_BYTES_MAX; waits for its share. */
  allocate(bytes: number): Promise<number> {
    return this.#share.allocate(bytes);
  }

  /** The same for an uninterrupted run of data. */
  allocateForRun(bytes: number): Promise<number> {
    return this.#share.allocateForRun(bytes);
  }

  release(at: number): void {
    this.#share.free(at);
    this.#resumeParsing();
  }

  /** Queues memory [at, at + bytes) of buffer `bufferAt`; `last` ends the command. */
  send(at: number, bytes: number, bufferAt: number, last: boolean): void {
    if (this.#held === null) {
      this.sendNow(at, bytes, bufferAt, last);
      return;
    }
    this.#held.push({ at, bytes, bufferAt, last });
    this.#share.park(bufferAt);
  }

  /** From here on send() waits, and only sendNow() sends: a run of data without interruption. */
  hold(): void {
    this.#held = [];
  }

  endHold(): void {
    const held = this.#held ?? [];
    this.#held = null;
    this.#share.unparkAll();
    for (const { at, bytes, bufferAt, last } of held) this.sendNow(at, bytes, bufferAt, last);
  }

  sendNow(at: number, bytes: number, bufferAt: number, last: boolean): void {
    if (this.#closing) {
      this.onPieceSent(bufferAt, last);
      return;
    }
    this.#queue.push(at, bytes, bufferAt, last);
    if (this.#dirty) return;
    this.#dirty = true;
    this.#connections.flushLater(this);
  }

  /** The bytes of a payload that have come already. */
  get availableBytes(): number {
    return this.#receiver.available;
  }

  /** The socket, for moving a payload out of it; none of it is at hand. */
  get fd(): number {
    return this.#fd;
  }

  /** Receives a payload into memory [at, at + bytes). False: the connection is closing. */
  receive(at: number, bytes: number): Promise<boolean> {
    const received = this.#payload.wait(at, bytes);
    if (this.#closing) this.#abandonPayload();
    else this.parse();
    return received;
  }

  endReceiving(): void {
    this.#long.endReceiving();
  }

  /** Ends the command without a reply. */
  abandon(at: number): void {
    this.release(at);
    this.endCommand();
  }

  /** Answers success without data from the buffer `at`. */
  replyDone(at: number, to: ReplyTo): void {
    const { view } = this.reactor.memory;
    const bytes = this.extended ? writeNone(view, at, true, to) : writeSimpleReply(view, at, to, 0);
    this.send(at, bytes, at, true);
  }

  /**
   * Answers the errno `result` from the buffer `at`.
   * QSD differs: after a failed read it drops the connection when replies are structured.
   */
  replyError(at: number, to: ReplyTo, result: number, message: string): void {
    const { view } = this.reactor.memory;
    const error = nbdError(result);
    traceError(this.structured, to, error, message);
    const bytes = this.structured
      ? writeErrorChunk(view, at, this.extended, to, error, message)
      : writeSimpleReply(view, at, to, error);
    assert(bytes <= SMALL_REPLY_BYTES_MAX, "an error reply fits its buffer");
    this.send(at, bytes, at, true);
  }

  #replyData(at: number, to: ReplyTo, bytes: number): void {
    const header = this.writeReadHeader(at, to, bytes);
    this.send(at - header, header + bytes, at, true);
  }

  /** The only header of a read's reply, right before its data at `at`. Returns its length. */
  writeReadHeader(at: number, to: ReplyTo, bytes: number): number {
    const { view } = this.reactor.memory;
    if (!this.structured) return writeSimpleReply(view, at - NBD_SIMPLE_REPLY_BYTES, to, 0);
    const header = dataHeaderBytes(this.extended);
    return writeDataHeader(view, at - header, this.extended, to, true, to.offset, bytes);
  }

  /** A command ended that sent no last piece. */
  endCommand(): void {
    this.#commands--;
    if (this.#closing) this.#finishWhenIdle();
    else this.#resumeParsing();
    this.#checkIdle();
  }

  // Parsing.

  /** Takes what is at hand, command by command, then asks for more. */
  parse(): void {
    const receiver = this.#receiver;
    while (!this.#closing && !this.#stalled && !this.#ending) {
      if (this.#payload.rest > 0) {
        this.#payload.advance(receiver.moveTo(this.#payload.at, this.#payload.rest));
        if (this.#payload.rest > 0) break;
      } else if (this.#skipRest > 0) {
        const count = Math.min(this.#skipRest, receiver.available);
        receiver.start += count;
        this.#skipRest -= count;
        if (this.#skipRest > 0) break;
      } else if (this.#onIdle || this.#long.receiving || receiver.available < this.#headerBytes) {
        break;
      } else {
        this.#parseOne();
      }
    }
    this.#receiveMore();
    this.#checkIdle();
  }

  #receiveMore(): void {
    const receiver = this.#receiver;
    if (this.#closing || this.#stalled || this.#ending || receiver.receiving) return;
    if (this.#onIdle !== null && this.#atBoundary) return;
    if (this.#payload.rest > 0) {
      receiver.receiveInto(this.#payload.at, this.#payload.rest);
    } else if (!this.#long.receiving) {
      receiver.receive(this.#long.expectsLongWrite ? this.#headerBytes : Infinity);
      if (receiver.large) this.#connections.watchSilence();
    }
  }

  /** One command, whose header is at hand. Without the means to start it, it stays at hand. */
  #parseOne(): void {
    const receiver = this.#receiver;
    const header = this.#header;
    const { memory, requests } = this.reactor;
    if (!decodeRequest(memory.view, receiver.start, this.extended, header)) {
      this.close();
      return;
    }
    if (this.#commands >= this.#connections.commandsMaxEach || this.#share.full) {
      this.#stalled = true;
      return;
    }
    if (requests.inUse === requests.capacity) {
      this.#stalled = true;
      requests.onFree(() => this.#resumeParsing());
      return;
    }
    const refusal =
      header.type === NBD_CMD_DISC ? null : refusalOf(header, this.#rules, this.backend.inactive);
    const fast = refusal === null && this.#isFast(header);
    const cached =
      refusal === null &&
      header.bytes >= CACHED_BYTES_MIN &&
      this.#held === null &&
      this.#cachedReads.has(header);
    if (refusal === null && !fast && !cached && header.type !== NBD_CMD_DISC) {
      this.#commands++;
      receiver.start += this.#headerBytes;
      traceRequest(header);
      this.#long.start({ ...header });
      return;
    }
    const data = header.type === NBD_CMD_READ || header.type === NBD_CMD_WRITE;
    const wanted = fast && data && !cached ? header.bytes : REPLY_BYTES;
    const at = this.#share.tryAllocate(wanted);
    if (at === NONE) {
      this.#stalled = true;
      this.reactor.buffers.onAvailable(wanted, () => this.#resumeParsing());
      return;
    }
    this.#commands++;
    receiver.start += this.#headerBytes;
    traceRequest(header);
    if (header.type === NBD_CMD_DISC) this.#disconnect(at);
    else if (refusal !== null) this.#refuse(at, header, refusal);
    else if (cached) this.#startCached(at, header);
    else this.#start(at, header);
    this.#long.expectsLongWrite = false;
  }

  #startCached(at: number, header: RequestHeader): void {
    if (this.#cachedReads.send(at, header)) return;
    // As an ordinary read.
    this.release(at);
    this.#long.start({ ...header });
  }

  #isFast(header: RequestHeader): boolean {
    const { type, bytes } = header;
    if (type === NBD_CMD_READ) {
      if (bytes === 0 || (header.flags & NBD_CMD_FLAG_FUA) !== 0) return false;
      // A simple reply can't be taken back once it has begun: read all of it first, if possible.
      if (!this.structured) {
        return bytes <= Math.min(BUFFER_BYTES_MAX, this.#connections.bytesMaxEach);
      }
      return bytes <= this.pieceBytes && this.backend.node.isKnownData(header.offset, bytes);
    }
    if (type === NBD_CMD_WRITE) return bytes > 0 && bytes <= SHORT_WRITE_BYTES_MAX;
    return type !== NBD_CMD_BLOCK_STATUS;
  }

  #start(at: number, header: RequestHeader): void {
    const { cookie0, cookie1, bufferAt, type } = this.#connections;
    const { requests, memory } = this.reactor;
    const slot = requests.allocate(this);
    assert(slot !== NONE, "there was a free slot");
    cookie0[slot] = header.cookie0;
    cookie1[slot] = header.cookie1;
    bufferAt[slot] = at;
    type[slot] = header.type;
    requests.op[slot] = opOf(header.type);
    requests.flags[slot] = requestFlags(header);
    requests.offset[slot] = header.offset;
    requests.bytes[slot] = header.type === NBD_CMD_FLUSH ? 0 : header.bytes;
    if (header.type === NBD_CMD_FLUSH) requests.offset[slot] = 0;
    requests.address[slot] = memory.address + at;
    if (header.type !== NBD_CMD_WRITE) {
      this.backend.submit(slot);
      return;
    }
    this.#payload.begin(slot, at, header.bytes);
  }

  #refuse(at: number, header: RequestHeader, refusal: Refusal): void {
    const payload = payloadBytes(header, this.session.mode);
    const to = { cookie0: header.cookie0, cookie1: header.cookie1, offset: header.offset };
    this.replyError(at, to, refusal.error, refusal.message);
    // Too much to skip: the reply goes out, then the connection ends.
    if (payload > NBD_MAX_BUFFER_SIZE) this.#ending = true;
    else this.#skipRest = payload;
  }

  #disconnect(at: number): void {
    this.#ending = true;
    this.abandon(at);
    this.#endWhenAnswered();
  }

  /** The rest of the payload will never come: the write does not happen. */
  #abandonPayload(): void {
    if (this.#receiver.receiving) return;
    const slot = this.#payload.abandon();
    if (slot === NONE) return;
    // Before the slot is free: whoever waits for one fills it in at once.
    const at = this.#connections.bufferAt[slot]!;
    this.reactor.requests.free(slot);
    this.abandon(at);
  }

  /** Something is free again that parsing may have waited for. */
  #resumeParsing(): void {
    if (!this.#stalled || this.#closing) return;
    this.#stalled = false;
    this.parse();
  }

  /** What comes next is a request. */
  get #atBoundary(): boolean {
    return this.#payload.rest === 0 && this.#skipRest === 0 && !this.#long.receiving;
  }

  /** Nothing is on its way, in neither direction. */
  get #idle(): boolean {
    if (this.#commands > 0 || this.#receiver.receiving || this.#ending) return false;
    return this.#atBoundary && this.#queue.empty && !this.#queue.sending;
  }

  #checkIdle(): void {
    if (this.#onIdle !== null && !this.#closing && this.#idle) this.#onIdle();
  }

  // Ending.

  #endWhenAnswered(): void {
    if (this.#ending && this.#commands === 0 && this.#queue.empty) this.close();
  }

  #finishWhenIdle(): void {
    if (this.#closed || this.#clearing) return;
    if (this.#receiver.receiving || this.#queue.sending) return;
    this.#clearing = true;
    this.endHold();
    this.#queue.clear();
    this.#clearing = false;
    if (this.#commands > 0) return;
    this.#closed = true;
    assert(this.#share.empty, "an ended connection holds no buffer");
    this.#letGo();
    this.reactor.linux.close(this.#fd);
    this.#onClosed(this);
  }

  /** Of all but the socket. */
  #letGo(): void {
    this.#queue.clear();
    this.#receiver.close();
    this.#long.closePipe();
    this.#connections.remove(this.#index);
  }
}
