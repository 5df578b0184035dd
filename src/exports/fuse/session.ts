/**
 * One mounted FUSE export: takes the kernel's requests on its one file and answers them.
 * Thread: iothread.
 * Spec: linux/fuse.h; QEMU block/export/fuse.c for what each of them does and fails with
 *
 * READ, WRITE and the flushes are the fast path: one slot of reactor.requests each, nothing
 * allocated; their data lie where the transport has them. What takes several steps is in
 * long-requests.ts. Each request is checked as if it came from anybody.
 */
import * as fuse from "../../abi/fuse.ts";
import * as file from "../../abi/fuse-file.ts";
import { O_DSYNC, O_TRUNC } from "../../abi/linux.ts";
import type { BlockBackend } from "../../block/backend.ts";
import { OP_FLUSH, OP_READ, OP_WRITE, type Op, REQ_FUA } from "../../block/node.ts";
import type { Reactor } from "../../io/reactor.ts";
import { NONE, type RequestOwner } from "../../io/requests.ts";
import { EACCES, EINVAL, EIO, ENOENT, ENOSYS, EPROTO } from "../../runtime/errno.ts";
import { Attributes, type Ownership } from "./attributes.ts";
import { FuseDevice, TRANSFER_BYTES_MAX } from "./device.ts";
import type { FuseDevices } from "./devices.ts";
import { writeOpen, writeStatfs } from "./fixed-answers.ts";
import { type Agreed, type InitExtras, negotiate } from "./init.ts";
import { LongRequests, type Resize } from "./long-requests.ts";
import { type Passthrough, PLAIN_OPEN } from "./passthrough.ts";
import type { FuseRequest, FuseSink, FuseTransport } from "./transport.ts";

/** Requests of one session that wait for something; the kernel keeps the others. */
const IN_FLIGHT_MAX = 128;
/** An answer without data to speak of. */
const SMALL_BYTES = 4096;

/** What a session takes along to another thread. */
export interface SessionState extends Ownership {
  readonly agreed: Agreed | null;
}

export interface SessionParts {
  readonly devices: FuseDevices;
  readonly backend: BlockBackend;
  readonly fd: number;
  readonly growable: boolean;
  readonly allowOther: boolean;
  /** At first an owner only. */
  readonly state: Omit<SessionState, "mode" | "agreed"> & Partial<SessionState>;
  readonly resize: Resize;
  readonly extras: InitExtras | null;
  readonly passthrough?: Passthrough;
  /** The kernel has taken FUSE_INIT: other transports may be made now. */
  readonly onAgreed: (agreed: Agreed) => void;
  /** There will be no request any more. */
  readonly onEnd: (error: number) => void;
}

export class FuseSession implements RequestOwner, FuseSink {
  readonly reactor: Reactor;
  readonly backend: BlockBackend;
  readonly growable: boolean;
  readonly attributes: Attributes;
  readonly passthrough: Passthrough | undefined;
  #parts: SessionParts;
  #devices: FuseDevices;
  /** The device first. */
  #transports: FuseTransport[];
  #long: LongRequests;
  #agreed: Agreed | null;
  #inFlight = 0;
  #isPaused = false;
  /** Transports have to be told when there is room again. */
  #hasRefused = false;
  #onChange: (() => void)[] = [];

  constructor(parts: SessionParts) {
    const { devices, backend, fd, growable, allowOther, state } = parts;
    this.reactor = devices.reactor;
    this.backend = backend;
    this.growable = growable;
    this.passthrough = parts.passthrough;
    this.#parts = parts;
    this.#devices = devices;
    this.#agreed = state.agreed ?? null;
    const options = {
      // An overlay may take its place.
      get node() {
        return backend.node;
      },
      writable: backend.writable,
      allowOther,
      nowSeconds: () => Math.floor(Date.now() / 1000),
    };
    this.attributes = new Attributes(options, state);
    this.#long = new LongRequests(this, parts.resize);
    this.#transports = [new FuseDevice(devices, fd, this)];
  }

  get state(): SessionState {
    return { ...this.attributes.ownership, agreed: this.#agreed };
  }

  /** A request waits for main to give the node another length. */
  get isResizing(): boolean {
    return this.#long.isResizing;
  }

  /** A request waits for something. */
  get isBusy(): boolean {
    return this.#inFlight > 0;
  }

  get accepts(): boolean {
    const { requests } = this.reactor;
    const may = this.#inFlight < IN_FLIGHT_MAX && requests.mayTake(this.#inFlight);
    this.#hasRefused ||= !may;
    return may && !this.#isPaused;
  }

  /** At first, and after pause(). */
  start(): void {
    this.#isPaused = false;
    for (const transport of this.#transports) transport.start();
  }

  /** Takes requests from there as well. */
  addTransport(transport: FuseTransport): void {
    this.#transports.push(transport);
    if (!this.#isPaused) transport.start();
  }

  /**
   * Takes no more requests. True: all are answered. False: one waits for main, which may wait for
   * this; start() it again.
   */
  async pause(): Promise<boolean> {
    this.#isPaused = true;
    for (const transport of this.#transports) await transport.pause();
    while (this.#inFlight > 0 && !this.isResizing) await this.#change();
    return this.#inFlight === 0;
  }

  /** Takes no more requests; resolves when those in flight are answered. For good. */
  async stop(): Promise<void> {
    this.#isPaused = true;
    for (const transport of this.#transports) await transport.pause();
    while (this.#inFlight > 0) await this.#change();
    for (const transport of this.#transports) transport.close();
  }

  onEnd(error: number): void {
    this.#parts.onEnd(error);
  }

  onRequest(request: FuseRequest, transport: FuseTransport): void {
    const { opcode } = request;
    if (this.#agreed === null && opcode !== fuse.FUSE_INIT) transport.reply(request.at, -EIO, 0);
    else if (!this.#isOfFile(request)) transport.reply(request.at, -ENOENT, 0);
    else if (opcode === fuse.FUSE_READ) this.#read(request, transport);
    else if (opcode === fuse.FUSE_WRITE) this.#write(request, transport);
    else this.#handleOther(request, transport);
  }

  /** A request of the fast path ended. */
  onRequestDone(slot: number, result: number): void {
    const { requests, memory } = this.reactor;
    const at = this.#devices.at[slot]!;
    const transport = this.#devices.transport[slot]!;
    const op = requests.op[slot] as Op;
    if (result === -EIO && op <= OP_WRITE && this.#isBeyondEnd(slot)) {
      this.#submitAgain(slot, at, transport);
      return;
    }
    let bytes = 0;
    if (result === 0 && op === OP_READ) {
      bytes = requests.bytes[slot]!;
    } else if (result === 0 && op === OP_WRITE) {
      memory.u32[(at + file.FUSE_WRITE_OUT_SIZE_OF) >>> 2] = requests.bytes[slot]!;
      memory.u32[(at >>> 2) + 1] = 0;
      bytes = file.FUSE_WRITE_OUT_SIZE;
    }
    requests.free(slot);
    this.finish(transport, at, result, bytes);
  }

  // What long requests use.

  /** The request stays, with room for a small answer; finish() follows. Returns its `at`. */
  keep(transport: FuseTransport, bytes = SMALL_BYTES): number {
    this.#inFlight++;
    return transport.keep(bytes);
  }

  /** Answers a request that was kept. */
  finish(transport: FuseTransport, at: number, error: number, bytes: number): void {
    transport.reply(at, error, bytes);
    this.#inFlight--;
    if (this.#hasRefused) {
      this.#hasRefused = false;
      for (const one of this.#transports) one.takeMore();
    }
    if (this.#onChange.length > 0) this.changed();
  }

  /** Something that pause() or stop() waits for may have come. */
  changed(): void {
    this.reactor.asyncResumed();
    for (const resolve of this.#onChange.splice(0)) resolve();
  }

  /** Starts what onRequestDone() answers. */
  submit(
    transport: FuseTransport,
    at: number,
    op: Op,
    offset: number,
    bytes: number,
    flags: number,
  ): void {
    const { requests, memory } = this.reactor;
    const slot = requests.allocate(this);
    if (slot === NONE) {
      requests.onFree(() => this.submit(transport, at, op, offset, bytes, flags));
      return;
    }
    this.#devices.at[slot] = at;
    this.#devices.transport[slot] = transport;
    requests.op[slot] = op;
    requests.flags[slot] = flags;
    requests.offset[slot] = offset;
    requests.bytes[slot] = bytes;
    requests.address[slot] = memory.address + at;
    this.backend.submit(slot);
  }

  /** Takes the file away from those who read and write it past us, once the kernel asks of it. */
  revoke(): void {
    this.attributes.revoke();
    this.attributesChanged();
  }

  /** The length of the node, for example: who asks for it is to hear of it. */
  attributesChanged(): void {
    if (this.#agreed !== null) this.#transports[0]!.forgetAttributes?.();
  }

  /** There is one file, and there are requests of none. */
  #isOfFile({ headerAt, opcode }: FuseRequest): boolean {
    const { u32 } = this.reactor.memory;
    const at = (headerAt + fuse.FUSE_IN_HEADER_NODEID) >>> 2;
    if (u32[at] === fuse.FUSE_ROOT_ID && u32[at + 1] === 0) return true;
    return REQUESTS_OF_NO_FILE.includes(opcode);
  }

  #read({ argsAt, argsBytes, at }: FuseRequest, transport: FuseTransport): void {
    const { u32 } = this.reactor.memory;
    const asked = u32[(argsAt + file.FUSE_READ_IN_SIZE_OF) >>> 2]!;
    if (argsBytes < file.FUSE_READ_IN_SIZE || asked > TRANSFER_BYTES_MAX) {
      transport.reply(at, -EINVAL, 0);
      return;
    }
    const offset = this.reactor.memory.getU64(argsAt + file.FUSE_READ_IN_OFFSET);
    const bytes = Math.min(asked, this.backend.node.bytes - offset);
    if (bytes <= 0) {
      transport.reply(at, 0, 0);
    } else if (this.backend.readCached(offset, bytes, this.reactor.memory.address + at)) {
      transport.reply(at, 0, bytes);
    } else {
      this.submit(transport, this.keep(transport, bytes), OP_READ, offset, bytes, 0);
    }
  }

  #write(request: FuseRequest, transport: FuseTransport): void {
    const { argsAt, argsBytes, at, payloadBytes } = request;
    const { u32 } = this.reactor.memory;
    const asked = u32[(argsAt + file.FUSE_WRITE_IN_SIZE_OF) >>> 2]!;
    if (argsBytes < file.FUSE_WRITE_IN_SIZE || asked > payloadBytes || asked > TRANSFER_BYTES_MAX) {
      transport.reply(at, -EINVAL, 0);
      return;
    }
    if (!this.backend.writable) {
      transport.reply(at, -EACCES, 0);
      return;
    }
    // QSD differs: it forgets that the file was opened with O_SYNC or O_DSYNC.
    const isSync = (u32[(argsAt + file.FUSE_WRITE_IN_FLAGS) >>> 2]! & O_DSYNC) !== 0;
    const flags = isSync ? REQ_FUA : 0;
    const offset = this.reactor.memory.getU64(argsAt + file.FUSE_WRITE_IN_OFFSET);
    const inside = Math.min(asked, this.backend.node.bytes - offset);
    if (inside === asked && asked > 0) {
      const kept = this.keep(transport, file.FUSE_WRITE_OUT_SIZE);
      this.submit(transport, kept, OP_WRITE, offset, asked, flags);
    } else {
      this.#long.write(transport, { offset, bytes: asked, flags });
    }
  }

  #isBeyondEnd(slot: number): boolean {
    const { offset, bytes } = this.reactor.requests;
    return offset[slot]! + bytes[slot]! > this.backend.node.bytes;
  }

  /** The disk has become shorter while the request waited. */
  #submitAgain(slot: number, at: number, transport: FuseTransport): void {
    const { requests } = this.reactor;
    const offset = requests.offset[slot]!;
    const bytes = requests.bytes[slot]!;
    const flags = requests.flags[slot]!;
    const isRead = requests.op[slot] === OP_READ;
    requests.free(slot);
    const inside = this.backend.node.bytes - offset;
    if (!isRead) this.#long.writeKept(transport, at, { offset, bytes, flags });
    else if (inside > 0) this.submit(transport, at, OP_READ, offset, inside, flags);
    else this.finish(transport, at, 0, 0);
  }

  #handleOther(request: FuseRequest, transport: FuseTransport): void {
    const { opcode, argsBytes, at } = request;
    const { memory } = this.reactor;
    if (argsBytes < (ARGS_BYTES_MIN[opcode] ?? 0)) {
      transport.reply(at, -EINVAL, 0);
      return;
    }
    switch (opcode) {
      case fuse.FUSE_INIT:
        this.#init(request, transport);
        return;
      case fuse.FUSE_GETATTR:
        transport.reply(at, 0, this.attributes.write(memory, at));
        return;
      case fuse.FUSE_STATX:
        transport.reply(at, 0, this.attributes.writeStatx(memory, at));
        return;
      case fuse.FUSE_STATFS:
        transport.reply(at, 0, writeStatfs(memory, at));
        return;
      case fuse.FUSE_LOOKUP:
        transport.reply(at, -ENOENT, 0);
        return;
      case fuse.FUSE_OPEN:
        this.#open(request, transport);
        return;
      case fuse.FUSE_FLUSH:
      case fuse.FUSE_FSYNC:
        this.#flush(request, transport);
        return;
      case fuse.FUSE_RELEASE:
        this.passthrough?.release(this.#handleOf(request));
        transport.reply(at, 0, 0);
        return;
      case fuse.FUSE_DESTROY:
        transport.reply(at, 0, 0);
        return;
      case fuse.FUSE_FORGET:
      case fuse.FUSE_BATCH_FORGET:
      case fuse.FUSE_NOTIFY_REPLY:
        transport.drop(at);
        return;
      case fuse.FUSE_SETATTR:
        this.#long.setAttributes(request, transport);
        return;
      case fuse.FUSE_FALLOCATE:
        this.#long.fallocate(request, transport);
        return;
      case fuse.FUSE_LSEEK:
        this.#long.seek(request, transport);
        return;
      default:
        // The kernel asks once, and knows what to tell programs. Of INTERRUPT, too: what is under
        // way ends by itself.
        transport.reply(at, -ENOSYS, 0);
    }
  }

  #init(request: FuseRequest, transport: FuseTransport): void {
    const { at } = request;
    // Once per mount: whoever asks again may want anything.
    const result =
      this.#agreed !== null
        ? -EPROTO
        : negotiate(this.reactor.memory, request, TRANSFER_BYTES_MAX, this.#parts.extras);
    if (typeof result === "number") {
      transport.reply(at, result, 0);
      return;
    }
    transport.reply(at, 0, result.bytes);
    if (result.agreed === null) return;
    this.#agreed = result.agreed;
    this.passthrough?.agree(result.agreed.flags2);
    this.#parts.onAgreed(result.agreed);
  }

  #flush(request: FuseRequest, transport: FuseTransport): void {
    const error = this.passthrough?.takeError(this.#handleOf(request)) ?? 0;
    if (error < 0 || !this.backend.writable) transport.reply(request.at, error, 0);
    else this.submit(transport, this.keep(transport), OP_FLUSH, 0, 0, 0);
  }

  /** Of a request that begins with one. */
  #handleOf({ argsAt, argsBytes }: FuseRequest): number {
    return argsBytes < file.FUSE_FH_SIZE ? 0 : this.reactor.memory.u32[argsAt >>> 2]!;
  }

  #open({ headerAt, argsAt, at }: FuseRequest, transport: FuseTransport): void {
    const { memory } = this.reactor;
    const flags = memory.view.getUint32(argsAt + file.FUSE_OPEN_IN_FLAGS, true);
    const uid = memory.view.getUint32(headerAt + fuse.FUSE_IN_HEADER_UID, true);
    const answer = this.passthrough?.open({ flags, uid }) ?? PLAIN_OPEN;
    if (typeof answer === "number") {
      transport.reply(at, answer, 0);
      return;
    }
    // A disk whose length is fixed stays as it is, for programs that write it in their usual way.
    if ((flags & O_TRUNC) !== 0 && this.growable && this.backend.writable) {
      this.#long.openEmpty(transport, answer);
    } else {
      transport.reply(at, 0, writeOpen(memory, at, answer));
    }
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#onChange.push(resolve));
  }
}

const REQUESTS_OF_NO_FILE: readonly number[] = [
  fuse.FUSE_INIT,
  fuse.FUSE_FORGET,
  fuse.FUSE_BATCH_FORGET,
  fuse.FUSE_NOTIFY_REPLY,
  fuse.FUSE_INTERRUPT,
  fuse.FUSE_DESTROY,
];

/** By opcode: what a request must carry. */
const ARGS_BYTES_MIN: Readonly<Record<number, number>> = {
  [fuse.FUSE_OPEN]: file.FUSE_OPEN_IN_SIZE,
  [fuse.FUSE_SETATTR]: file.FUSE_SETATTR_IN_SIZE,
  [fuse.FUSE_FALLOCATE]: file.FUSE_FALLOCATE_IN_SIZE,
  [fuse.FUSE_LSEEK]: file.FUSE_LSEEK_IN_SIZE,
};
