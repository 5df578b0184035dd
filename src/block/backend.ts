/**
 * The side of a block node that an export or a job works through: bounds, alignment, splitting,
 * FUA and writethrough, in-flight and drain, statistics; each once, here. Thread: iothread.
 *
 * A request is a slot of reactor.requests. The fast path maps its whole range to a host file and
 * submits one operation; all else goes through SlowPath.
 */
import { RWF_DSYNC } from "../abi/linux.ts";
import { makeToken } from "../io/engine.ts";
import type { Reactor } from "../io/reactor.ts";
import { NONE, type RequestCarrier, type RequestOwner, type RequestTable } from "../io/requests.ts";
import { EAGAIN, EINTR, EIO, EOPNOTSUPP, EPERM, ESHUTDOWN } from "../runtime/errno.ts";
import { assert } from "../util/error.ts";
import { trace } from "../util/trace.ts";
import { backendsOf } from "./drains.ts";
import { isInactive } from "./inactive-nodes.ts";
import {
  type BlockNode,
  MAPPED,
  OP_CACHE,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_FUA,
  type Resolution,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "./node.ts";
import { isPayloadAligned, runBounced, zeroPayload } from "./payload.ts";
import { isAligned, SlowPath } from "./slow-path.ts";
import { type Statistics, statisticsOf } from "./statistics.ts";
import { type WriteGate, writeGateOf } from "./write-gate.ts";

const traceRead = trace.blk_co_preadv;
const traceWrite = trace.blk_co_pwritev;
const traceFailure = trace.blk_request_failed;

/** What cachestat() counts. */
const PAGE_BYTES = 4096;

export interface BackendOptions {
  readonly writable: boolean;
  /** Every write is flushed before it completes. */
  readonly writethrough: boolean;
  /** It stays at its node when another one takes its place. Default: false. */
  readonly stays?: boolean;
}

export class BlockBackend implements RequestCarrier {
  readonly reactor: Reactor;
  /** Changes in drained sections only: see replaceNode(). */
  node: BlockNode;
  readonly writable: boolean;
  readonly writethrough: boolean;
  readonly stays: boolean;
  #statistics: Statistics;
  #requests: RequestTable;
  #flagsAlways: number;
  #kinds: { readonly io: number; readonly posted: number };
  #resolution: Resolution = { fd: -1, offset: 0, bytes: 0 };
  #slowPath: SlowPath;
  /** Only while the node has an alignment. */
  #gate: WriteGate | null = null;
  /** Grows with each drained section: numbers from findCached() may be other files' after one. */
  epoch = 0;
  /** The node's image may be another process's to change: nothing but reads is to be asked. */
  inactive = false;
  /** The node has another length, after a drained section. */
  onResized: () => void = () => {};
  #bytes: number;
  #mayWrite = false;
  #inFlight = 0;
  /** Callers of drain() that have not called resume(). */
  #drains = 0;
  #waiting: number[] = [];
  #onIdle: (() => void)[] = [];
  /** Tasks that wait for the end of a drained section. */
  #onResume: (() => void)[] = [];
  #hurried = false;
  #closed = false;

  constructor(reactor: Reactor, node: BlockNode, options: BackendOptions) {
    this.reactor = reactor;
    this.node = node;
    this.writable = options.writable;
    this.#requests = reactor.requests;
    this.writethrough = options.writethrough;
    this.stays = options.stays ?? false;
    this.#flagsAlways = options.writethrough ? REQ_FUA : 0;
    this.#kinds = kindsOf(reactor);
    this.#slowPath = new SlowPath(reactor, node);
    this.#statistics = statisticsOf(node);
    this.#bytes = node.bytes;
    this.#lookAtNode();
    backendsOf(reactor).add(this);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Starts the request in `slot`; its owner hears of its end, never before this returns. */
  submit(slot: number): void {
    const requests = this.#requests;
    requests.carrier[slot] = this;
    requests.doneBytes[slot] = 0;
    requests.startNs[slot] = this.reactor.turnNs;
    if (traceRead.enabled || traceWrite.enabled) this.#traceStart(slot);
    if (this.#drains > 0) this.#waiting.push(slot);
    else this.#start(slot);
  }

  /** The same as a Promise of 0 or -errno, for slow paths; waits for a slot when it must. */
  request(op: Op, offset: number, bytes: number, address: number, flags: number): Promise<number> {
    const requests = this.#requests;
    return new Promise((resolve) => {
      const owner = new PromiseOwner(this.reactor, resolve);
      const start = () => {
        const slot = requests.allocate(owner);
        if (slot === NONE) {
          requests.onFree(start);
          return;
        }
        requests.op[slot] = op;
        requests.offset[slot] = offset;
        requests.bytes[slot] = bytes;
        requests.address[slot] = address;
        requests.flags[slot] = flags;
        this.submit(slot);
      };
      start();
    });
  }

  /**
   * True when the range is one run of a host file and in the host's memory: `out` says where, and a
   * transport may send it from there: countCached() then.
   */
  findCached(offset: number, bytes: number, out: Resolution): boolean {
    const { node, reactor } = this;
    if (this.#drains > 0 || node.limits.requestAlignment > 1) return false;
    // What is sent from there is the file's until the peer has it.
    if (offset + bytes > node.bytes || this.#requests.moverCount > 0) return false;
    if (node.resolve(OP_READ, offset, bytes, out) !== MAPPED || out.bytes < bytes) return false;
    const status = reactor.linux.cachestat(out.fd, out.offset, bytes);
    if (typeof status === "number") return false;
    const first = Math.floor(out.offset / PAGE_BYTES);
    const last = Math.floor((out.offset + bytes - 1) / PAGE_BYTES);
    return status.cached >= last - first + 1;
  }

  /**
   * Reads at once what is one run of a host file and in the host's memory. False: it has to be an
   * ordinary request.
   */
  readCached(offset: number, bytes: number, address: number): boolean {
    const { node, reactor } = this;
    const out = this.#resolution;
    if (this.#drains > 0 || traceRead.enabled || node.limits.requestAlignment > 1) return false;
    if (!(offset >= 0 && offset + bytes <= node.bytes)) return false;
    if (node.resolve(OP_READ, offset, bytes, out) !== MAPPED || out.bytes < bytes) return false;
    if (reactor.engine.readCached(out.fd, address, bytes, out.offset) !== bytes) return false;
    this.countCached(bytes);
    return true;
  }

  /**
   * Writes `bytes` of a pipe at `offset` at once. Returns how many, or -errno; -EAGAIN when it
   * has to be an ordinary request. Multiples of 4096. The caller flushes in the end if it must:
   * see `writethrough`.
   */
  writeFromPipe(pipeFd: number, bytes: number, offset: number): number {
    const { node, reactor } = this;
    const out = this.#resolution;
    if (this.#drains > 0 || !this.#mayWrite || node.limits.requestAlignment > 1) return -EAGAIN;
    if (offset + bytes > node.bytes) return -EAGAIN;
    if (node.resolve(OP_WRITE, offset, bytes, out) !== MAPPED || out.bytes < bytes) return -EAGAIN;
    const startNs = reactor.nowNs();
    const result = reactor.engine.writeFromPipe(pipeFd, bytes, out.fd, out.offset);
    if (result === -EAGAIN) return result;
    const nowNs = reactor.nowNs();
    this.#statistics.count(OP_WRITE, result, result, nowNs - startNs, nowNs);
    if (result < 0) return node.onMappedError(OP_WRITE, result);
    this.#statistics.countEnd(offset + result);
    return result;
  }

  /** `bytes` that findCached() found are sent: a read that takes no time. */
  countCached(bytes: number): void {
    this.#statistics.count(OP_READ, bytes, 0, 0, this.reactor.turnNs);
  }

  /**
   * Asks the node for something that is no request as if it were one: never in a drained section.
   * The result is the task's, or -ESHUTDOWN.
   */
  async ask(task: () => number | Promise<number>): Promise<number> {
    while (this.#drains > 0 && !this.#closed) {
      await new Promise<void>((resolve) => this.#onResume.push(resolve));
    }
    if (this.#closed) return -ESHUTDOWN;
    this.#inFlight++;
    const result = await task();
    this.#inFlight--;
    this.#checkIdle();
    return result;
  }

  /** New requests wait; resolves when none is in flight. Pair with resume(). */
  drain(): Promise<void> {
    this.#drains++;
    if (this.#inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onIdle.push(resolve));
  }

  resume(): void {
    assert(this.#drains > 0, "resume() follows drain()");
    if (--this.#drains > 0) return;
    this.#lookAtNode();
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const slot of waiting) this.#start(slot);
    this.#resumeTasks();
    if (this.node.bytes === this.#bytes) return;
    this.#bytes = this.node.bytes;
    this.onResized();
  }

  /** Goes on with another node, with all requests that wait. In a drained section. */
  replaceNode(node: BlockNode): void {
    assert(this.#drains > 0 && this.#inFlight === 0, "nothing is on its way to the old node");
    if (this.#hurried) this.node.drainEnd?.();
    this.node = node;
    this.#slowPath = new SlowPath(this.reactor, node);
    this.#statistics = statisticsOf(node);
    if (this.#hurried) node.drainBegin?.();
  }

  /** Before close(), which may wait for clients first: nothing waits for a limit from here on. */
  hurry(): void {
    if (this.#hurried) return;
    this.#hurried = true;
    this.node.drainBegin?.();
  }

  /** Drains for good; what still waits ends with -ESHUTDOWN. Flushes. Returns 0 or -errno. */
  async close(): Promise<number> {
    assert(!this.#closed, "a backend is closed once");
    this.#closed = true;
    this.hurry();
    await this.drain();
    this.node.drainEnd?.();
    backendsOf(this.reactor).delete(this);
    for (const slot of this.#waiting) {
      this.#inFlight++;
      this.#post(slot, -ESHUTDOWN);
    }
    this.#waiting = [];
    this.#resumeTasks();
    return this.writable ? this.#slowPath.run(OP_FLUSH, 0, 0, 0, 0) : 0;
  }

  /** An operation on a mapped range ended. */
  onIo(slot: number, result: number): void {
    const requests = this.#requests;
    if (result === -EINTR || result === -EAGAIN) {
      this.#map(slot);
      return;
    }
    const op = requests.op[slot] as Op;
    if (op > OP_WRITE) {
      this.#finish(slot, result < 0 ? this.node.onMappedError(op, result) : 0);
      return;
    }
    if (result < 0) {
      this.#onMappedError(slot, op, result);
      return;
    }
    const done = requests.doneBytes[slot]! + result;
    requests.doneBytes[slot] = done;
    if (done === requests.bytes[slot]) this.#finish(slot, 0);
    else if (requests.iovCount[slot] !== 0) this.#runPiecesSlow(slot, op);
    // Not whole blocks: the file ends here, and can't be asked for more there.
    else if (op === OP_READ && (result === 0 || result % this.node.limits.requestAlignment !== 0))
      this.#finishPastEnd(slot);
    else if (result > 0) this.#map(slot);
    else this.#finish(slot, -EIO);
  }

  onPosted(slot: number, result: number): void {
    this.#complete(slot, result);
  }

  /** What changes in drained sections only. */
  #lookAtNode(): void {
    const { node, reactor } = this;
    this.epoch++;
    this.#gate = node.limits.requestAlignment > 1 ? writeGateOf(reactor, node) : null;
    this.inactive = isInactive(node);
    this.#mayWrite = this.writable && !this.inactive;
  }

  #start(slot: number): void {
    this.#inFlight++;
    const requests = this.#requests;
    const op = requests.op[slot] as Op;
    const offset = requests.offset[slot]!;
    const bytes = requests.bytes[slot]!;
    if (op !== OP_READ && op !== OP_FLUSH && op !== OP_CACHE && !this.#mayWrite) {
      this.#post(slot, -EPERM);
    } else if (!(offset >= 0 && bytes >= 0 && offset + bytes <= this.node.bytes)) {
      this.#post(slot, -EIO);
    } else if (op === OP_FLUSH || op === OP_CACHE) {
      this.#map(slot);
    } else if (op <= OP_WRITE && this.#isDirect(slot, offset, bytes)) {
      if (op === OP_WRITE && this.#gate !== null && !this.#gate.tryEnter()) this.#runSlow(slot);
      else this.#map(slot);
    } else {
      this.#runSlow(slot);
    }
  }

  /** The node takes this READ or WRITE as it is. */
  #isDirect(slot: number, offset: number, bytes: number): boolean {
    const { limits } = this.node;
    const requests = this.#requests;
    if (bytes > limits.transferBytesMax || bytes === 0) return false;
    if (!isAligned(limits, offset, bytes, requests.address[slot]!)) return false;
    return requests.iovCount[slot] === 0 || isPayloadAligned(this.reactor, slot, limits);
  }

  /** Submits what is left of the request as one operation, or hands it to the slow path. */
  #map(slot: number): void {
    const requests = this.#requests;
    const op = requests.op[slot] as Op;
    const done = requests.doneBytes[slot]!;
    const bytes = requests.bytes[slot]! - done;
    const out = this.#resolution;
    const kind = this.node.resolve(op, requests.offset[slot]! + done, bytes, out);
    if (kind === MAPPED && op === OP_WRITE && this.#flushKind(slot) === SLOW) {
      // Where it lies would be lost: what tells of it has to be flushed, too.
      this.#gate?.leave();
      this.#runSlow(slot);
    } else if (kind === MAPPED && (out.bytes >= bytes || op === OP_FLUSH)) {
      const engine = this.reactor.engine;
      const token = makeToken(this.#kinds.io, slot);
      const address = requests.address[slot]! + done;
      if (op === OP_FLUSH) engine.fsync(out.fd, true, token);
      else if (requests.iovCount[slot] !== 0) this.#transferPieces(slot, op, token);
      else if (op === OP_READ) engine.read(out.fd, address, bytes, out.offset, token);
      else this.#write(slot, address, bytes, token);
    } else if (kind === ZERO && op > OP_WRITE) {
      this.#post(slot, 0);
    } else if (kind === ZERO && op === OP_READ && out.bytes >= bytes) {
      zeroPayload(this.reactor, slot, done);
      this.#post(slot, 0);
    } else {
      if (op === OP_WRITE) this.#gate?.leave();
      this.#runSlow(slot);
    }
  }

  #transferPieces(slot: number, op: Op, token: number): void {
    const { fd, offset } = this.#resolution;
    const { engine } = this.reactor;
    const iov = this.#requests.address[slot]!;
    const count = this.#requests.iovCount[slot]!;
    if (op === OP_READ) engine.readv(fd, iov, count, offset, token);
    else engine.writev(fd, iov, count, offset, this.#mustFlush(slot) ? RWF_DSYNC : 0, token);
  }

  #write(slot: number, address: number, bytes: number, token: number): void {
    const { fd, offset } = this.#resolution;
    const rwFlags = this.#mustFlush(slot) ? RWF_DSYNC : 0;
    this.reactor.engine.write(fd, address, bytes, offset, rwFlags, token);
  }

  #mustFlush(slot: number): boolean {
    return this.#flushKind(slot) !== ZERO;
  }

  /** How the flush that is part of this write would be done; ZERO: there is none. */
  #flushKind(slot: number): ResolutionKind {
    if (((this.#requests.flags[slot]! | this.#flagsAlways) & REQ_FUA) === 0) return ZERO;
    // QSD differs: it does not flush a write with FUA that directly follows a flush.
    // Where a flush is nothing (cache.no-flush), so is FUA.
    const out = this.#resolution;
    const { fd, offset, bytes } = out;
    const kind = this.node.resolve(OP_FLUSH, 0, 0, out);
    out.fd = fd;
    out.offset = offset;
    out.bytes = bytes;
    return kind;
  }

  #onMappedError(slot: number, op: Op, result: number): void {
    if (op === OP_WRITE && result === -EOPNOTSUPP && this.#mustFlush(slot)) {
      // The file system has no RWF_DSYNC: write, then flush.
      this.#gate?.leave();
      this.#runSlow(slot);
      return;
    }
    // What a failed synchronous write says of the cache, a later flush would no longer say.
    const flushFailed = op === OP_WRITE && result === -EIO && this.#mustFlush(slot);
    this.#finish(slot, this.node.onMappedError(flushFailed ? OP_FLUSH : op, result));
  }

  /** The host file ends before the node does: the rest reads as zeroes. */
  #finishPastEnd(slot: number): void {
    zeroPayload(this.reactor, slot, this.#requests.doneBytes[slot]!);
    this.#finish(slot, 0);
  }

  #finish(slot: number, result: number): void {
    if (this.#gate !== null && this.#requests.op[slot] === OP_WRITE) this.#gate.leave();
    this.#complete(slot, result);
  }

  /** A transfer of several pieces ended early: once more, all of it. */
  #runPiecesSlow(slot: number, op: Op): void {
    if (op === OP_WRITE) this.#gate?.leave();
    this.#runSlow(slot);
  }

  #runSlow(slot: number): void {
    const requests = this.#requests;
    const flags = requests.flags[slot]! | this.#flagsAlways;
    this.reactor.spawn(async () => {
      const isOurs = requests.payload[slot] === null;
      const result = await (isOurs
        ? this.#slowPath.run(
            requests.op[slot] as Op,
            requests.offset[slot]!,
            requests.bytes[slot]!,
            requests.address[slot]!,
            flags,
          )
        : runBounced(this.reactor, this.#slowPath, slot, flags));
      this.#complete(slot, result);
    });
  }

  /** Ends the request from the loop, so that no owner hears of it inside submit(). */
  #post(slot: number, result: number): void {
    this.reactor.engine.post(makeToken(this.#kinds.posted, slot), result);
  }

  #traceStart(slot: number): void {
    const { op, offset, bytes, flags } = this.#requests;
    const point = op[slot] === OP_READ ? traceRead : op[slot] === OP_WRITE ? traceWrite : null;
    if (point?.enabled !== true) return;
    const range = `offset ${offset[slot]} bytes ${bytes[slot]}`;
    point.write(`node ${this.node.nodeName} ${range} flags 0x${flags[slot]!.toString(16)}`);
  }

  #complete(slot: number, result: number): void {
    const requests = this.#requests;
    const op = requests.op[slot] as Op;
    if (result < 0 && traceFailure.enabled) {
      const range = `offset ${requests.offset[slot]} bytes ${requests.bytes[slot]}`;
      traceFailure.write(`node ${this.node.nodeName} op ${op} ${range} errno ${-result}`);
    }
    const bytes = requests.bytes[slot]!;
    const startNs = requests.startNs[slot]!;
    let nowNs = this.reactor.turnNs;
    // Begun and ended in one turn, but not in no time.
    if (nowNs === startNs) nowNs = this.reactor.renewTurnNs();
    this.#statistics.count(op, bytes, result, nowNs - startNs, nowNs);
    if (result === 0 && (op === OP_WRITE || op === OP_WRITE_ZEROES)) {
      this.#statistics.countEnd(requests.offset[slot]! + bytes);
    }
    const owner = requests.owner[slot]!;
    this.#inFlight--;
    owner.onRequestDone(slot, result);
    this.#checkIdle();
  }

  #checkIdle(): void {
    if (this.#inFlight > 0 || this.#onIdle.length === 0) return;
    this.reactor.asyncResumed();
    for (const resolve of this.#onIdle.splice(0)) resolve();
  }

  #resumeTasks(): void {
    if (this.#onResume.length === 0) return;
    this.reactor.asyncResumed();
    for (const resolve of this.#onResume.splice(0)) resolve();
  }
}

class PromiseOwner implements RequestOwner {
  #reactor: Reactor;
  #resolve: (result: number) => void;

  constructor(reactor: Reactor, resolve: (result: number) => void) {
    this.#reactor = reactor;
    this.#resolve = resolve;
  }

  onRequestDone(slot: number, result: number): void {
    this.#reactor.requests.free(slot);
    this.#reactor.asyncResumed();
    this.#resolve(result);
  }
}

const kinds = new WeakMap<Reactor, { io: number; posted: number }>();

/** Two completion kinds serve all backends of a reactor: the slot names its carrier. */
function kindsOf(reactor: Reactor): { io: number; posted: number } {
  let pair = kinds.get(reactor);
  if (pair === undefined) {
    const { carrier } = reactor.requests;
    pair = {
      io: reactor.register((slot, result) => carrier[slot]!.onIo(slot, result)),
      posted: reactor.register((slot, result) => carrier[slot]!.onPosted(slot, result)),
    };
    kinds.set(reactor, pair);
  }
  return pair;
}
