/**
 * The transport over /dev/fuse: one read(2) per request, one write(2) per answer, both at once on
 * this thread, as neither blocks. Thread: iothread.
 * Spec: fuse(4); Linux fs/fuse/dev.c
 *
 * A request is read into a buffer that can hold the longest, so that the data of a WRITE lie on
 * whole pages, right behind its headers. Small requests are moved from there to small buffers when
 * they have to wait for something; long ones keep the buffer.
 */
import {
  FUSE_IN_HEADER_LEN,
  FUSE_IN_HEADER_OPCODE,
  FUSE_IN_HEADER_SIZE,
  FUSE_IN_HEADER_UNIQUE,
  FUSE_NOTIFY_INVAL_INODE,
  FUSE_OUT_HEADER_ERROR,
  FUSE_OUT_HEADER_LEN,
  FUSE_OUT_HEADER_SIZE,
  FUSE_OUT_HEADER_UNIQUE,
  FUSE_ROOT_ID,
  FUSE_WRITE,
} from "../../abi/fuse.ts";
import {
  FUSE_NOTIFY_INVAL_INODE_OUT_INO,
  FUSE_NOTIFY_INVAL_INODE_OUT_OFF,
  FUSE_NOTIFY_INVAL_INODE_OUT_SIZE,
  FUSE_WRITE_IN_SIZE,
} from "../../abi/fuse-file.ts";
import { F_GETFL, F_SETFL, O_NONBLOCK, POLLIN } from "../../abi/linux.ts";
import { BUFFER_BYTES_MAX, BUFFER_BYTES_MIN } from "../../io/buffers.ts";
import type { Token } from "../../io/engine.ts";
import type { Memory } from "../../io/memory.ts";
import type { PollSource } from "../../io/polling.ts";
import type { Reactor } from "../../io/reactor.ts";
import { NONE } from "../../io/requests.ts";
import { EAGAIN, EINTR, EIO, ENOENT } from "../../runtime/errno.ts";
import type { FuseDevices } from "./devices.ts";
import type { FuseRequest, FuseSink, FuseTransport } from "./transport.ts";

/** The headers of a WRITE, before its data. */
const HEADERS_BYTES = FUSE_IN_HEADER_SIZE + FUSE_WRITE_IN_SIZE;
/** The longest data of one READ or WRITE. */
export const TRANSFER_BYTES_MAX = BUFFER_BYTES_MAX;
/** Requests taken at once; then the completions of others have their turn. */
const BATCH_MAX = 32;
/** The data of a WRITE that are moved rather than keep a long buffer. */
const MOVED_BYTES_MAX = 32 * 1024;
/** Looks in a row that found nothing; then the kernel has to say when there is something. */
const EMPTY_LOOKS_MAX = 1000;

export class FuseDevice implements FuseTransport, PollSource {
  #reactor: Reactor;
  #devices: FuseDevices;
  #memory: Memory;
  #fd: number;
  #sink: FuseSink;
  #pollToken: Token;
  /** Where the next request goes; NONE while there is no buffer. */
  #receiveAt = NONE;
  #waitsForBuffer = false;
  #polling = false;
  #taking = false;
  /** One of the sources that the thread looks at as long as it is awake. */
  #isSource = false;
  #emptyLooks = 0;
  /** Takes requests: from start() until pause(), or the end. */
  #open = false;
  #ended = false;
  #onPaused: (() => void) | null = null;
  #request: FuseRequest = {
    opcode: 0,
    at: 0,
    headerAt: 0,
    argsAt: 0,
    argsBytes: 0,
    payloadBytes: 0,
  };

  constructor(devices: FuseDevices, fd: number, sink: FuseSink) {
    const { reactor } = devices;
    this.#reactor = reactor;
    this.#devices = devices;
    this.#memory = reactor.memory;
    this.#fd = fd;
    this.#sink = sink;
    this.#pollToken = devices.add(this);
    // Without it a read would block, and with it this thread.
    const flags = reactor.linux.fcntl(fd, F_GETFL);
    reactor.linux.fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  }

  start(): void {
    this.#open = !this.#ended;
    this.takeMore();
  }

  async pause(): Promise<void> {
    this.#open = false;
    this.#leaveSources();
    if (!this.#polling) return;
    this.#reactor.engine.cancel(this.#pollToken);
    await new Promise<void>((resolve) => {
      this.#onPaused = resolve;
    });
  }

  close(): void {
    this.#devices.remove(this.#pollToken);
  }

  takeMore(): void {
    if (!this.#polling && !this.#taking) this.#take();
  }

  keep(bytes: number): number {
    const { payloadBytes } = this.#request;
    const at = this.#receiveAt;
    const needed = Math.max(bytes, payloadBytes);
    let to = NONE;
    if (payloadBytes <= MOVED_BYTES_MAX && needed < BUFFER_BYTES_MAX) {
      to = this.#reactor.buffers.allocate(needed);
    }
    if (to === NONE) {
      this.#receiveAt = NONE;
      to = at;
    } else {
      const { address } = this.#memory;
      const length = HEADERS_BYTES + payloadBytes;
      this.#memory.copy(address + to - HEADERS_BYTES, address + at - HEADERS_BYTES, length);
    }
    this.#devices.hold(to);
    return to;
  }

  reply(at: number, error: number, bytes: number): void {
    const { u32, i32, address } = this.#memory;
    const to = at - FUSE_OUT_HEADER_SIZE;
    const from = at - HEADERS_BYTES + FUSE_IN_HEADER_UNIQUE;
    const length = FUSE_OUT_HEADER_SIZE + bytes;
    u32[(to + FUSE_OUT_HEADER_LEN) >>> 2] = length;
    i32[(to + FUSE_OUT_HEADER_ERROR) >>> 2] = error;
    u32[(to + FUSE_OUT_HEADER_UNIQUE) >>> 2] = u32[from >>> 2]!;
    u32[((to + FUSE_OUT_HEADER_UNIQUE) >>> 2) + 1] = u32[(from >>> 2) + 1]!;
    // ENOENT: nobody waits for it any more. ENODEV: the mount has gone, which a read tells, too.
    // All others say that the answer is not one; whoever waits is told at least so much.
    const result = this.#reactor.linux.write(this.#fd, address + to, length);
    if (result < 0 && result !== -ENOENT && bytes > 0) this.reply(at, -EIO, 0);
    else this.drop(at);
  }

  drop(at: number): void {
    if (at !== this.#receiveAt) this.#devices.release(at);
  }

  forgetAttributes(): void {
    const { buffers, linux } = this.#reactor;
    const at = buffers.allocate(BUFFER_BYTES_MIN);
    // The kernel asks again after a second anyway.
    if (at === NONE) return;
    const { u32, i32, u8, address } = this.#memory;
    const to = at - FUSE_OUT_HEADER_SIZE;
    const length = FUSE_OUT_HEADER_SIZE + FUSE_NOTIFY_INVAL_INODE_OUT_SIZE;
    u8.fill(0, to, to + length);
    u32[(to + FUSE_OUT_HEADER_LEN) >>> 2] = length;
    i32[(to + FUSE_OUT_HEADER_ERROR) >>> 2] = FUSE_NOTIFY_INVAL_INODE;
    u32[(at + FUSE_NOTIFY_INVAL_INODE_OUT_INO) >>> 2] = FUSE_ROOT_ID;
    // No pages: throwing out dirty ones would wait for this thread to write them. The new length
    // makes the kernel do that.
    i32.fill(-1, (at + FUSE_NOTIFY_INVAL_INODE_OUT_OFF) >>> 2, (to + length) >>> 2);
    linux.write(this.#fd, address + to, length);
    buffers.free(at);
  }

  poll(): boolean {
    if (this.#polling || this.#taking) return false;
    if (this.#take() > 0) return true;
    if (++this.#emptyLooks === EMPTY_LOOKS_MAX) {
      // Not now: somebody goes through the sources.
      this.#reactor.defer(() => {
        this.#leaveSources();
        this.takeMore();
      });
    }
    return false;
  }

  allowSleep(): boolean {
    this.#listen();
    return false;
  }

  /** The descriptor is readable, or the poll was cancelled. */
  onPolled(): void {
    this.#polling = false;
    if (this.#onPaused === null) {
      this.#take();
      return;
    }
    const resolve = this.#onPaused;
    this.#onPaused = null;
    this.#reactor.asyncResumed();
    resolve();
  }

  /** Returns how many requests there were. */
  #take(): number {
    this.#taking = true;
    let count = 0;
    while (this.#open && count < BATCH_MAX && this.#sink.accepts && this.#hasBuffer()) {
      const result = this.#receive();
      if (result >= 0) {
        count++;
        this.#dispatch(result);
      } else if (result === -EAGAIN) {
        break;
      } else if (result !== -EINTR && result !== -ENOENT) {
        // ENOENT: its sender gave up while it was being read.
        this.#end(result);
      }
    }
    // Many may be idle.
    if (this.#receiveAt !== NONE) this.#reactor.buffers.free(this.#receiveAt);
    this.#receiveAt = NONE;
    this.#taking = false;
    if (count > 0) this.#joinSources();
    if (!this.#isSource) this.#listen();
    return count;
  }

  /** Makes the kernel say when there is a request. */
  #listen(): void {
    if (this.#polling || this.#waitsForBuffer || !this.#open || !this.#sink.accepts) return;
    this.#polling = true;
    this.#reactor.engine.poll(this.#fd, POLLIN, this.#pollToken);
  }

  #joinSources(): void {
    this.#emptyLooks = 0;
    if (this.#isSource || !this.#open) return;
    this.#isSource = true;
    this.#reactor.polling.sources.push(this);
  }

  #leaveSources(): void {
    if (!this.#isSource) return;
    this.#isSource = false;
    const { sources } = this.#reactor.polling;
    sources.splice(sources.indexOf(this), 1);
  }

  #receive(): number {
    const address = this.#memory.address + this.#receiveAt - HEADERS_BYTES;
    return this.#reactor.linux.read(this.#fd, address, HEADERS_BYTES + TRANSFER_BYTES_MAX);
  }

  #hasBuffer(): boolean {
    if (this.#receiveAt !== NONE) return true;
    if (this.#waitsForBuffer) return false;
    if (this.#devices.hasRoom) this.#receiveAt = this.#reactor.buffers.allocate(BUFFER_BYTES_MAX);
    if (this.#receiveAt !== NONE) return true;
    this.#waitsForBuffer = true;
    this.#devices.onRoom(() => {
      this.#waitsForBuffer = false;
      this.takeMore();
    });
    return false;
  }

  #dispatch(length: number): void {
    const at = this.#receiveAt;
    const headerAt = at - HEADERS_BYTES;
    const { u32 } = this.#memory;
    // The kernel sends whole requests only.
    if (length < FUSE_IN_HEADER_SIZE || u32[(headerAt + FUSE_IN_HEADER_LEN) >>> 2] !== length) {
      this.#end(-EIO);
      return;
    }
    const request = this.#request;
    request.opcode = u32[(headerAt + FUSE_IN_HEADER_OPCODE) >>> 2]!;
    request.at = at;
    request.headerAt = headerAt;
    request.argsAt = headerAt + FUSE_IN_HEADER_SIZE;
    request.argsBytes = length - FUSE_IN_HEADER_SIZE;
    request.payloadBytes = request.opcode === FUSE_WRITE ? Math.max(0, length - HEADERS_BYTES) : 0;
    this.#sink.onRequest(request, this);
  }

  #end(error: number): void {
    this.#open = false;
    this.#ended = true;
    this.#reactor.defer(() => this.#leaveSources());
    this.#sink.onEnd(error);
  }
}
