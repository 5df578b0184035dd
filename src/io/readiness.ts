/**
 * Operations that wait until a descriptor is ready, for the epoll engine: each is tried, and tried
 * again when epoll says that it may succeed. An event is never more than a hint, so late, doubled
 * and foreign ones do no harm. Thread: iothread.
 * Spec: epoll_ctl(2), EPOLLONESHOT
 */
import {
  EPOLL_CTL_ADD,
  EPOLL_CTL_MOD,
  EPOLLONESHOT,
  F_GETFL,
  F_SETFL,
  O_NONBLOCK,
  POLLERR,
  POLLHUP,
  POLLIN,
  POLLOUT,
  POLLRDHUP,
} from "../abi/linux.ts";
import { MSG_DONTWAIT, MSG_NOSIGNAL } from "../abi/linux-socket.ts";
import { EAGAIN, ECANCELED, EEXIST, EINTR, ENOENT } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { assert } from "../util/error.ts";
import type { CompletionQueue } from "./completions.ts";
import type { Token } from "./engine.ts";

export const RECV = 0;
export const RECVMSG = 1;
export const ACCEPT = 2;
export const SEND = 3;
export const SENDMSG = 4;
export const POLL = 5;
/** Of an eventfd or a pipe. */
export const READ = 6;
export const WRITE = 7;
export type ReadinessKind = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7;

const READ_EVENTS = POLLIN | POLLRDHUP | POLLHUP | POLLERR;
const WRITE_EVENTS = POLLOUT | POLLHUP | POLLERR;

/** Reused: the fast path allocates none. */
class Operation {
  kind: ReadinessKind = RECV;
  fd = -1;
  /** Of the bytes, or of a struct msghdr. */
  address = 0;
  bytes = 0;
  /** MSG_*; POLL* of a poll. */
  flags = 0;
  token: Token = 0;
  next: Operation | null = null;
}

/** First in, first out. */
class Waiters {
  head: Operation | null = null;
  #tail: Operation | null = null;

  push(operation: Operation): void {
    operation.next = null;
    if (this.head === null) this.head = operation;
    else this.#tail!.next = operation;
    this.#tail = operation;
  }

  shift(): Operation {
    const first = this.head!;
    this.head = first.next;
    return first;
  }

  /** Takes out those that `leaves` says true of. */
  remove(leaves: (operation: Operation) => boolean): void {
    let operation = this.head;
    this.head = null;
    while (operation !== null) {
      const next: Operation | null = operation.next;
      if (!leaves(operation)) this.push(operation);
      operation = next;
    }
  }
}

/** What waits on one descriptor. */
class Channel {
  readonly fd: number;
  readonly readers = new Waiters();
  readonly writers = new Waiters();
  readonly polls = new Waiters();
  /** epoll has heard of the descriptor; it may have been closed and opened anew since. */
  registered = false;
  /** Events that epoll watches for; certain only while something waits. */
  armed = 0;

  constructor(fd: number) {
    this.fd = fd;
  }

  get idle(): boolean {
    return this.readers.head === null && this.writers.head === null && this.polls.head === null;
  }

  get wanted(): number {
    let events = this.readers.head === null ? 0 : POLLIN;
    if (this.writers.head !== null) events |= POLLOUT;
    for (let poll = this.polls.head; poll !== null; poll = poll.next) events |= poll.flags;
    return events;
  }
}

export class Readiness {
  #linux: Linux;
  #epollFd: number;
  #completions: CompletionQueue;
  /** By descriptor. */
  #channels: (Channel | undefined)[] = [];
  /** Not tried yet: the time until wait() is the peer's to send something. */
  #fresh: Operation[] = [];
  #free: Operation[] = [];

  constructor(linux: Linux, epollFd: number, completions: CompletionQueue) {
    this.#linux = linux;
    this.#epollFd = epollFd;
    this.#completions = completions;
  }

  submit(
    kind: ReadinessKind,
    fd: number,
    address: number,
    bytes: number,
    flags: number,
    token: Token,
  ): void {
    const operation = this.#free.pop() ?? new Operation();
    operation.kind = kind;
    operation.fd = fd;
    operation.address = address;
    operation.bytes = bytes;
    operation.flags = flags;
    operation.token = token;
    if (isWriter(kind)) this.#start(operation);
    else this.#fresh.push(operation);
  }

  /** Tries what was submitted since the last call. */
  tryFresh(): void {
    const fresh = this.#fresh;
    for (let i = 0; i < fresh.length; i++) this.#start(fresh[i]!);
    fresh.length = 0;
  }

  /** epoll says that `events` of a descriptor are ready, and watches it no more. */
  onEvent(fd: number, events: number): void {
    const channel = this.#channels[fd];
    // Its operations were cancelled meanwhile.
    if (channel === undefined || channel.idle) return;
    channel.armed = 0;
    if ((events & READ_EVENTS) !== 0) this.#retry(channel.readers);
    if ((events & WRITE_EVENTS) !== 0) this.#retry(channel.writers);
    if (channel.polls.head !== null) {
      // The event may be of an earlier file with this number: ask.
      channel.polls.remove((poll) => this.#completeUnlessBusy(poll));
    }
    if (!channel.idle) this.#arm(channel);
  }

  /** The operation completes with -ECANCELED. Returns whether there is one. */
  cancel(token: Token): boolean {
    const fresh = this.#fresh.findIndex((operation) => operation.token === token);
    if (fresh >= 0) {
      this.#complete(this.#fresh.splice(fresh, 1)[0]!, -ECANCELED);
      return true;
    }
    let found = false;
    const leaves = (operation: Operation) => {
      if (operation.token !== token) return false;
      found = true;
      this.#complete(operation, -ECANCELED);
      return true;
    };
    for (const channel of this.#channels) {
      if (channel === undefined || channel.idle) continue;
      for (const waiters of [channel.readers, channel.writers, channel.polls]) {
        waiters.remove(leaves);
      }
      if (found) return true;
    }
    return false;
  }

  #start(operation: Operation): void {
    const { kind } = operation;
    if (kind === ACCEPT || kind >= READ) this.#unblock(operation.fd);
    const channel = this.#channel(operation.fd);
    const waiters = waitersFor(channel, operation.kind);
    // Those before it on the same stream come first; polls don't take anything from each other.
    const mayTry = waiters.head === null || operation.kind === POLL;
    if (mayTry && this.#completeUnlessBusy(operation)) return;
    // The descriptor may have been closed and opened anew while nothing waited.
    if (channel.idle) channel.armed = 0;
    waiters.push(operation);
    this.#arm(channel);
  }

  #retry(waiters: Waiters): void {
    while (waiters.head !== null) {
      if (!this.#completeUnlessBusy(waiters.head)) return;
      waiters.shift();
    }
  }

  /** Returns false when the operation has to wait. */
  #completeUnlessBusy(operation: Operation): boolean {
    let result = this.#try(operation);
    while (result === -EINTR) result = this.#try(operation);
    if (result === -EAGAIN) return false;
    this.#complete(operation, result);
    return true;
  }

  #try({ kind, fd, address, bytes, flags }: Operation): number {
    const linux = this.#linux;
    switch (kind) {
      case RECV:
        return linux.recv(fd, address, bytes, MSG_DONTWAIT);
      case RECVMSG:
        return linux.recvmsg(fd, address, flags | MSG_DONTWAIT);
      case ACCEPT:
        return linux.accept(fd);
      case SEND:
        return linux.send(fd, address, bytes, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
      case SENDMSG:
        return linux.sendmsg(fd, address, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
      case POLL:
        return linux.poll(fd, flags, 0) || -EAGAIN;
      case READ:
        return linux.read(fd, address, bytes);
      case WRITE:
        return linux.write(fd, address, bytes);
    }
  }

  #complete(operation: Operation, result: number): void {
    this.#completions.push(operation.token, result);
    this.#free.push(operation);
  }

  /** Makes epoll report what the channel waits for, once. */
  #arm(channel: Channel): void {
    const wanted = channel.wanted;
    if ((wanted & ~channel.armed) === 0) return;
    const { fd } = channel;
    const events = (wanted | EPOLLONESHOT) >>> 0;
    const first = channel.registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    let result = this.#linux.epollCtl(this.#epollFd, first, fd, events, fd);
    // ENOENT: another file has the number now. EEXIST: it was registered by another name for it.
    if (result === -ENOENT || result === -EEXIST) {
      const second = result === -ENOENT ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
      result = this.#linux.epollCtl(this.#epollFd, second, fd, events, fd);
    }
    if (result < 0) {
      this.#refuse(channel, result);
      return;
    }
    channel.registered = true;
    channel.armed = wanted;
  }

  /** epoll can't watch the descriptor: nothing may wait on it. */
  #refuse(channel: Channel, error: number): void {
    for (const waiters of [channel.readers, channel.writers, channel.polls]) {
      while (waiters.head !== null) {
        this.#complete(waiters.shift(), error);
      }
    }
    channel.registered = false;
    channel.armed = 0;
  }

  /** accept(), read() and write() have no flag for it: what is gone again must not block us. */
  #unblock(fd: number): void {
    const flags = this.#linux.fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) === 0) {
      this.#linux.fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    }
  }

  #channel(fd: number): Channel {
    assert(fd >= 0, "an operation names an open descriptor");
    let channel = this.#channels[fd];
    if (channel === undefined) {
      channel = new Channel(fd);
      this.#channels[fd] = channel;
    }
    return channel;
  }
}

function waitersFor(channel: Channel, kind: ReadinessKind): Waiters {
  if (kind === POLL) return channel.polls;
  return isWriter(kind) ? channel.writers : channel.readers;
}

function isWriter(kind: ReadinessKind): boolean {
  return kind === SEND || kind === SENDMSG || kind === WRITE;
}
