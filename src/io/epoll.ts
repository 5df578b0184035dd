/**
 * The epoll engine, for hosts where io_uring is missing or forbidden. What the page cache can serve
 * is done at once on this thread; what may block goes to the offload threads; sockets are tried,
 * then watched. Thread: iothread.
 * Spec: epoll_pwait2(2)
 */
import { EPOLL_CTL_ADD, EPOLL_EVENT, POLLIN, TIMESPEC_NSEC, TIMESPEC_SEC } from "../abi/linux.ts";
import { EAGAIN, EINTR, ENOSYS, EPERM, strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { assert, OutportError } from "../util/error.ts";
import { CompletionQueue } from "./completions.ts";
import {
  type CompletionHandler,
  type EngineOptions,
  type IoEngine,
  TOKEN_SLOT_BITS,
  TOKEN_SLOT_MAX,
  type Token,
} from "./engine.ts";
import { InlineFiles } from "./inline-files.ts";
import { Memory } from "./memory.ts";
import type { OffloadPool } from "./offload.ts";
import { ACCEPT, POLL, READ, RECV, RECVMSG, Readiness, SEND, SENDMSG, WRITE } from "./readiness.ts";

/** Events taken by one system call. */
const EVENTS_MAX = 256;
/** Completions per wait(): then the reactor publishes, and looks at its timers. */
const BATCH_MAX = 256;
/** While there are completions without, epoll is asked in one wait() of so many. */
const LOOK_INTERVAL = 4;
const EVENTS_DATA_OFFLOAD = 0xffff_ffff;
const NS_PER_MS = 1_000_000;
const NS_PER_S = 1_000_000_000;
/** Twelve days: as good as no limit, and an int holds its milliseconds. */
const TIMEOUT_NS_MAX = 2 ** 30 * NS_PER_MS;

// The engine's own memory.
const EVENTS_AT = 0;
const TIMESPEC_AT = 4096;
const MEMORY_BYTES = 8192;

/** Throws OutportError of kind "limit" when there is no descriptor or memory left. */
export function createEpollEngine(options: EngineOptions): IoEngine {
  return new EpollEngine(options);
}

class EpollEngine implements IoEngine {
  readonly name = "epoll";
  #linux: Linux;
  #handlers: CompletionHandler[];
  #makeOffload: () => OffloadPool;
  #offload: OffloadPool | null = null;
  #epollFd: number;
  #threadMemory: Memory;
  #memory: Memory;
  #completions = new CompletionQueue();
  #readiness: Readiness;
  #inline: InlineFiles;
  #inFlight = 0;
  #waitsWithoutLook = 0;
  #hasPwait2 = true;
  #onOffloaded = (token: Token, result: number) => this.#completions.push(token, result);
  #eventSize: number;
  #eventData: number;

  constructor({ linux, memory, handlers, offload, nowNs }: EngineOptions) {
    this.#linux = linux;
    this.#threadMemory = memory;
    this.#handlers = handlers;
    this.#makeOffload = offload;
    this.#epollFd = linux.epollCreate();
    if (this.#epollFd < 0) {
      throw new OutportError("limit", `Cannot create an epoll: ${strerror(-this.#epollFd)}`);
    }
    this.#memory = new Memory(linux, MEMORY_BYTES);
    this.#readiness = new Readiness(linux, this.#epollFd, this.#completions);
    this.#inline = new InlineFiles(linux, nowNs);
    this.#eventSize = EPOLL_EVENT[linux.arch].size;
    this.#eventData = EPOLL_EVENT[linux.arch].data;
    assert(EVENTS_MAX * this.#eventSize <= TIMESPEC_AT, "the events have room");
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  read(fd: number, address: number, bytes: number, offset: number, token: Token): void {
    this.#inFlight++;
    const result = this.#inline.read(fd, address, bytes, offset);
    if (result !== -EAGAIN) this.#completions.push(token, result);
    else this.#blocking().submit(this.#linux.sys.pread64, [fd, address, bytes, offset], token);
  }

  readv(fd: number, iov: number, iovCount: number, offset: number, token: Token): void {
    this.#inFlight++;
    const result = this.#inline.readv(fd, iov, iovCount, offset);
    if (result !== -EAGAIN) this.#completions.push(token, result);
    else this.#blocking().submit(this.#linux.sys.preadv2, [fd, iov, iovCount, offset], token);
  }

  write(
    fd: number,
    address: number,
    bytes: number,
    offset: number,
    rwFlags: number,
    token: Token,
  ): void {
    this.#inFlight++;
    const result = rwFlags === 0 ? this.#inline.write(fd, address, bytes, offset) : -EAGAIN;
    if (result !== -EAGAIN) {
      this.#completions.push(token, result);
      return;
    }
    const args = [fd, address, 1, offset, 0, rwFlags];
    this.#blocking().submitVector(this.#linux.sys.pwritev2, args, bytes, token);
  }

  writev(
    fd: number,
    iov: number,
    iovCount: number,
    offset: number,
    rwFlags: number,
    token: Token,
  ): void {
    this.#inFlight++;
    const bytes = this.#threadMemory.iovBytes(iov, iovCount);
    const result = rwFlags === 0 ? this.#inline.writev(fd, iov, iovCount, offset, bytes) : -EAGAIN;
    if (result !== -EAGAIN) {
      this.#completions.push(token, result);
      return;
    }
    const args = [fd, iov, iovCount, offset, 0, rwFlags];
    this.#blocking().submit(this.#linux.sys.pwritev2, args, token);
  }

  readCached(fd: number, address: number, bytes: number, offset: number): number {
    return this.#inline.read(fd, address, bytes, offset);
  }

  writeFromPipe(pipeFd: number, bytes: number, fd: number, offset: number): number {
    return this.#inline.writeFromPipe(pipeFd, bytes, fd, offset);
  }

  fsync(fd: number, dataOnly: boolean, token: Token): void {
    const { fdatasync, fsync } = this.#linux.sys;
    this.call(dataOnly ? fdatasync : fsync, [fd], token);
  }

  fallocate(fd: number, mode: number, offset: number, bytes: number, token: Token): void {
    this.call(this.#linux.sys.fallocate, [fd, mode, offset, bytes], token);
  }

  recv(fd: number, address: number, bytes: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(RECV, fd, address, bytes, 0, token);
  }

  send(fd: number, address: number, bytes: number, flags: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(SEND, fd, address, bytes, flags, token);
  }

  sendmsg(fd: number, msghdr: number, flags: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(SENDMSG, fd, msghdr, 0, flags, token);
  }

  recvmsg(fd: number, msghdr: number, flags: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(RECVMSG, fd, msghdr, 0, flags, token);
  }

  accept(fd: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(ACCEPT, fd, 0, 0, 0, token);
  }

  readStream(fd: number, address: number, bytes: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(READ, fd, address, bytes, 0, token);
  }

  writeStream(fd: number, address: number, bytes: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(WRITE, fd, address, bytes, 0, token);
  }

  poll(fd: number, events: number, token: Token): void {
    this.#inFlight++;
    this.#readiness.submit(POLL, fd, 0, 0, events, token);
  }

  call(number: number, args: readonly number[], token: Token): void {
    this.#inFlight++;
    this.#blocking().submit(number, args, token);
  }

  post(token: Token, result: number): void {
    this.#inFlight++;
    this.#completions.push(token, result);
  }

  cancel(token: Token): void {
    if (!this.#readiness.cancel(token)) this.#offload?.cancel(token);
  }

  wait(timeoutNs: number): number {
    this.#readiness.tryFresh();
    const idle = this.#completions.length === 0;
    if (idle || ++this.#waitsWithoutLook >= LOOK_INTERVAL) {
      this.#waitsWithoutLook = 0;
      this.#look(idle ? timeoutNs : 0);
    }
    return this.#complete();
  }

  close(): void {
    this.#linux.close(this.#epollFd);
    this.#memory.unmap();
    this.#inline.close();
    this.#offload?.stop();
  }

  #blocking(): OffloadPool {
    if (this.#offload === null) {
      const pool = this.#makeOffload();
      const data = EVENTS_DATA_OFFLOAD;
      const result = this.#linux.epollCtl(this.#epollFd, EPOLL_CTL_ADD, pool.eventFd, POLLIN, data);
      assert(result === 0, "epoll watches the offload threads");
      this.#offload = pool;
    }
    return this.#offload;
  }

  /** Takes events; sleeps for them at most `timeoutNs`. */
  #look(timeoutNs: number): void {
    const count = this.#epollWait(Math.min(timeoutNs, TIMEOUT_NS_MAX));
    if (count === -EINTR) return;
    assert(count >= 0, "epoll_wait() is given what is its own");
    const view = this.#memory.view;
    for (let i = 0; i < count; i++) {
      const at = EVENTS_AT + i * this.#eventSize;
      const data = view.getUint32(at + this.#eventData, true);
      if (data === EVENTS_DATA_OFFLOAD) {
        this.#offload!.drain(this.#onOffloaded);
      } else {
        this.#readiness.onEvent(data, view.getUint32(at, true));
      }
    }
  }

  #epollWait(timeoutNs: number): number {
    const linux = this.#linux;
    const events = this.#memory.address + EVENTS_AT;
    if (this.#hasPwait2 && timeoutNs > 0) {
      const seconds = Math.floor(timeoutNs / NS_PER_S);
      this.#memory.setU64(TIMESPEC_AT + TIMESPEC_SEC, seconds);
      this.#memory.setU64(TIMESPEC_AT + TIMESPEC_NSEC, Math.ceil(timeoutNs - seconds * NS_PER_S));
      const timespec = this.#memory.address + TIMESPEC_AT;
      const number = linux.sys.epoll_pwait2;
      const result = linux.ffi.syscall(number, this.#epollFd, events, EVENTS_MAX, timespec, 0, 8);
      if (result !== -ENOSYS && result !== -EPERM) return result;
      // Linux before 5.11, or a seccomp filter from before it.
      this.#hasPwait2 = false;
    }
    // Rounded up: an early return would make the reactor spin until its timer is due.
    return linux.epollWait(this.#epollFd, events, EVENTS_MAX, Math.ceil(timeoutNs / NS_PER_MS));
  }

  #complete(): number {
    const completions = this.#completions;
    const handlers = this.#handlers;
    let count = 0;
    for (; count < BATCH_MAX && completions.length > 0; count++) {
      const token = completions.token;
      const result = completions.shift();
      this.#inFlight--;
      handlers[token >>> TOKEN_SLOT_BITS]!(token & TOKEN_SLOT_MAX, result);
    }
    return count;
  }
}
