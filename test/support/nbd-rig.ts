/**
 * An NBD export in the test's own thread, with peers that do what no well-behaved client does:
 * send in any pieces, don't read, vanish. Nothing happens but in turns that the test asks for.
 */
import { readdirSync, readlinkSync } from "node:fs";
import { AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_STREAM } from "../../src/abi/linux-socket.ts";
import {
  NBD_CMD_READ,
  NBD_EXTENDED_REPLY_BYTES,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_BYTES,
  NBD_STRUCTURED_REPLY_MAGIC,
} from "../../src/abi/nbd.ts";
import type { DirtyBitmap } from "../../src/bitmaps/dirty-bitmap.ts";
import { type BackendOptions, BlockBackend } from "../../src/block/backend.ts";
import type { BlockNode } from "../../src/block/node.ts";
import { NbdConnections } from "../../src/exports/nbd/connections.ts";
import { NbdExport } from "../../src/exports/nbd/export.ts";
import type { NbdMetaContext } from "../../src/exports/nbd/meta-context.ts";
import { Memory } from "../../src/io/memory.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { EAGAIN, ECONNRESET, EPIPE } from "../../src/runtime/errno.ts";
import { driver } from "./driver.ts";
import type { Mode } from "./nbd-client.ts";
import { type Chunk, NbdReply, type ReplyShape } from "./nbd-reply.ts";
import { concat, request, viewOf } from "./nbd-wire.ts";
import { type EngineName, makePatientReactor, runOn } from "./reactor.ts";

const SCRATCH_BYTES = 256 * 1024;
/** Longest time that a test waits for something to happen. */
const PATIENCE_MS = 45_000;

/** Files of tests and their kind, sockets, pipes; not what the runtime's threads have in common. */
export function openFds(): number {
  const files: string[] = [];
  const streams = new Set<string>();
  for (const fd of readdirSync("/proc/self/fd")) {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      if (/^\/dev\/zero|\/outport-/.test(target)) files.push(target);
      if (/^(socket|pipe):/.test(target)) streams.add(target);
    } catch {
      // It has been closed meanwhile.
    }
  }
  return files.length + streams.size;
}

export interface RequestOptions {
  readonly flags?: number;
  readonly payload?: Uint8Array;
}

/** The other end of a connection. */
export class Peer {
  readonly mode: Mode;
  /** The server has closed. */
  ended = false;
  /** Takes what the server sends. */
  reads = true;
  /** Looks at what it takes. */
  parses = true;
  /** Bytes sent at most in one go. */
  sendBytesMax = Infinity;
  readonly replies = new Map<number, NbdReply>();
  #reactor: Reactor;
  #fd: number;
  #scratch: Memory;
  #out: Uint8Array[] = [];
  #in: Uint8Array[] = [];
  #inBytes = 0;
  /** With so many there is something to parse. */
  #inWanted = NBD_SIMPLE_REPLY_BYTES;
  #shapes = new Map<number, ReplyShape>();
  #chunks = new Map<number, Chunk[]>();
  #nextCookie = 1;

  constructor(reactor: Reactor, fd: number, mode: Mode) {
    this.#reactor = reactor;
    this.#fd = fd;
    this.mode = mode;
    this.#scratch = new Memory(reactor.linux, SCRATCH_BYTES);
  }

  get unsent(): number {
    return this.#out.reduce((sum, part) => sum + part.length, 0);
  }

  /** Requests without a whole reply. */
  get pending(): number {
    return this.#shapes.size;
  }

  /** Queues raw bytes. */
  push(...parts: Uint8Array[]): void {
    this.#out.push(...parts.filter((part) => part.length > 0));
  }

  /** Forgets what is queued. */
  unsend(): void {
    this.#out = [];
  }

  /** Queues a request; returns its cookie. */
  request(type: number, offset: number, length: number, options: RequestOptions = {}): number {
    const cookie = this.#nextCookie++;
    this.#shapes.set(cookie, { command: type, offset, length });
    const { flags = 0, payload } = options;
    const extended = this.mode === "extended";
    this.push(request({ type, flags, cookie, offset, length }, extended));
    if (payload !== undefined) this.push(payload);
    return cookie;
  }

  /** Sends and takes what is possible now. */
  pump(): void {
    if (this.#fd < 0) return;
    this.#sendSome();
    while (this.reads && this.#receiveSome());
  }

  close(): void {
    if (this.#fd < 0) return;
    this.#reactor.linux.close(this.#fd);
    this.#scratch.unmap();
    this.#fd = -1;
    this.ended = true;
  }

  #sendSome(): void {
    const { linux } = this.#reactor;
    for (let rest = this.sendBytesMax; rest > 0 && this.#out.length > 0; ) {
      const part = this.#out[0]!;
      const count = Math.min(part.length, rest, SCRATCH_BYTES);
      this.#scratch.u8.set(part.subarray(0, count));
      const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
      const sent = linux.send(this.#fd, this.#scratch.address, count, flags);
      if (sent === -EAGAIN) return;
      if (sent === -EPIPE || sent === -ECONNRESET) this.#out = [];
      if (sent < 0) return;
      rest -= sent;
      if (sent === part.length) this.#out.shift();
      else this.#out[0] = part.subarray(sent);
    }
  }

  #receiveSome(): boolean {
    if (this.ended) return false;
    const { linux } = this.#reactor;
    const count = linux.recv(this.#fd, this.#scratch.address, SCRATCH_BYTES, MSG_DONTWAIT);
    if (count === -EAGAIN) return false;
    if (count <= 0) {
      this.ended = true;
      return false;
    }
    if (!this.parses) return true;
    this.#in.push(this.#scratch.u8.slice(0, count));
    this.#inBytes += count;
    if (this.#inBytes >= this.#inWanted) this.#parse();
    return true;
  }

  #parse(): void {
    let rest = concat(...this.#in);
    this.#inWanted = NBD_SIMPLE_REPLY_BYTES;
    while (rest.length >= this.#inWanted) {
      const used = this.#parseOne(viewOf(rest));
      if (used > rest.length) {
        this.#inWanted = used;
      } else {
        rest = rest.subarray(used);
        this.#inWanted = NBD_SIMPLE_REPLY_BYTES;
      }
    }
    this.#in = [rest.slice()];
    this.#inBytes = rest.length;
  }

  /** Takes the chunk at the start of `view` if all of it is there. Returns its bytes. */
  #parseOne(view: DataView): number {
    const magic = view.getUint32(0);
    const cookie = view.getUint32(12);
    const shape = this.#shapes.get(cookie);
    if (shape === undefined) throw new Error(`a reply to unknown cookie ${cookie}`);
    const simple = magic === NBD_SIMPLE_REPLY_MAGIC;
    const extended = magic === NBD_EXTENDED_REPLY_MAGIC;
    if (!simple && !extended && magic !== NBD_STRUCTURED_REPLY_MAGIC) {
      throw new Error(`a reply with magic 0x${magic.toString(16)}`);
    }
    if (extended !== (this.mode === "extended")) throw new Error("a reply of another mode");
    const error = simple ? view.getUint32(4) : 0;
    const header = simple
      ? NBD_SIMPLE_REPLY_BYTES
      : extended
        ? NBD_EXTENDED_REPLY_BYTES
        : NBD_STRUCTURED_REPLY_BYTES;
    if (view.byteLength < header) return header;
    const read = shape.command === NBD_CMD_READ && error === 0;
    let bytes = simple && read ? shape.length : 0;
    if (!simple) bytes = extended ? Number(view.getBigUint64(24)) : view.getUint32(16);
    if (view.byteLength < header + bytes) return header + bytes;
    const flags = simple ? 0 : view.getUint16(4);
    const done = simple || (flags & NBD_REPLY_FLAG_DONE) !== 0;
    const start = view.byteOffset + header;
    const payload = new Uint8Array(view.buffer, start, bytes).slice();
    const type = simple ? -1 : view.getUint16(6);
    const chunk = { magic, type, flags, done, error, offset: shape.offset, payload };
    const chunks = [...(this.#chunks.get(cookie) ?? []), chunk];
    this.#chunks.set(cookie, chunks);
    if (done) {
      this.#chunks.delete(cookie);
      this.#shapes.delete(cookie);
      this.replies.set(cookie, new NbdReply(shape, chunks));
    }
    return header + bytes;
  }
}

export interface RigOptions extends Partial<BackendOptions> {
  readonly contexts?: readonly NbdMetaContext[];
}

export class NbdRig {
  readonly reactor: Reactor;
  readonly connections: NbdConnections;
  backend!: BlockBackend;
  exp!: NbdExport;
  /** For serve(). */
  bitmaps: readonly DirtyBitmap[] = [];
  readonly peers: Peer[] = [];
  #node!: BlockNode;
  #options!: BackendOptions;
  #contexts: readonly NbdMetaContext[] = [];
  #fdsBefore = openFds();
  #ended = false;

  constructor(engine: EngineName) {
    this.reactor = makePatientReactor(engine);
    this.connections = new NbdConnections(this.reactor);
  }

  /** Exports the node. */
  serve(node: BlockNode, options: RigOptions = {}): this {
    const { writable = true, writethrough = false, contexts = [] } = options;
    this.#node = node;
    this.#contexts = contexts;
    this.#options = { writable, writethrough };
    this.#serve();
    return this;
  }

  #serve(): void {
    this.backend = new BlockBackend(this.reactor, this.#node, this.#options);
    const { connections, backend } = this;
    const bytes = this.#node.bytes;
    const readOnly = !this.#options.writable;
    this.exp = new NbdExport({ connections, backend, bytes, readOnly, bitmaps: this.bitmaps });
  }

  /**
   * Takes the export away and makes another one with its clients, as when it moves to another
   * iothread. False: it refuses.
   */
  async move(): Promise<boolean> {
    let moved: boolean | undefined;
    this.reactor.spawn(async () => {
      moved = await this.exp.suspend();
    });
    await this.until(() => moved !== undefined, "the suspension");
    if (moved !== true) return false;
    const clients = this.exp.handOver();
    await runOn(this.reactor, () => this.backend.close());
    const left = [this.connections.count, this.connections.bytesHeld];
    if (left.some((count) => count > 0)) throw new Error(`handOver() leaves ${left}`);
    this.#serve();
    for (const client of clients) this.exp.adopt(client);
    return true;
  }

  /** The same, where a client may be slow to get to the end of its request: a busy machine. */
  async moveSoon(): Promise<void> {
    const endMs = Date.now() + PATIENCE_MS;
    while (!(await this.move())) if (Date.now() > endMs) throw new Error("it does not move");
  }

  /** A client in transmission. `early`: what it sent with its handshake. */
  peer(mode: Mode, early: Uint8Array = new Uint8Array(0)): Peer {
    const pair = this.reactor.linux.socketpair(AF_UNIX, SOCK_STREAM);
    if (typeof pair === "number") throw new Error(`socketpair: ${pair}`);
    const contexts = this.#contexts;
    const session = { exportId: "e", mode, contexts };
    this.exp.adopt({ fd: pair[0], session, early });
    const peer = new Peer(this.reactor, pair[1], mode);
    this.peers.push(peer);
    return peer;
  }

  /** Turns until `done`; throws when nothing comes of it. */
  async until(done: () => boolean, what = "the awaited"): Promise<void> {
    const endMs = Date.now() + PATIENCE_MS;
    while (!done()) {
      if (Date.now() > endMs) throw new Error(`${what} does not happen`);
      await this.turn();
    }
  }

  /** Until nothing moves any more for some turns. */
  async settle(turns = 20): Promise<void> {
    for (let i = 0; i < turns; i++) await this.turn();
  }

  async turn(): Promise<void> {
    for (const peer of this.peers) peer.pump();
    await driver.runMicrotasks();
    this.reactor.turn(200_000);
    await driver.runMicrotasks();
    for (const peer of this.peers) peer.pump();
  }

  /** One request and its whole reply. */
  async ask(
    peer: Peer,
    type: number,
    offset: number,
    length: number,
    options: RequestOptions = {},
  ): Promise<NbdReply> {
    const cookie = peer.request(type, offset, length, options);
    await this.until(() => peer.replies.has(cookie) || peer.ended, `the reply to ${type}`);
    const reply = peer.replies.get(cookie);
    if (reply === undefined) throw new Error("the server has closed");
    return reply;
  }

  /** Ends all. Throws when anything stays behind: a buffer, a slot, an operation, a descriptor. */
  async end(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    const { reactor } = this;
    await runOn(reactor, () => this.exp.closeConnections());
    await runOn(reactor, () => this.backend.close());
    await runOn(reactor, () => this.#node.close());
    for (const peer of this.peers) peer.close();
    await this.until(() => reactor.engine.inFlight === 0, "the end of what is in flight");
    const left = [
      ["bytes of buffers", reactor.buffers.bytesInUse],
      ["request slots", reactor.requests.inUse],
      ["connections", this.connections.count],
      ["bytes of shares", this.connections.bytesHeld],
      ["requests", this.backend.inFlight],
    ] as const;
    reactor.engine.close();
    reactor.memory.unmap();
    for (const [what, count] of left) if (count !== 0) throw new Error(`${count} ${what} left`);
  }

  /** Descriptors more than at the start. */
  get fdsLeft(): number {
    return openFds() - this.#fdsBefore;
  }
}
