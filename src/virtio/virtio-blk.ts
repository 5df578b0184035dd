/**
 * A virtio block device: takes requests from its virtqueues, gives them to a BlockBackend with the
 * guest's memory as their buffers, and publishes what has ended in batches. Thread: iothread.
 * Spec: VIRTIO 1.3 §5.2 "Block Device"
 *
 * A transport starts queues, calls processQueue() when the driver kicks, and gets onCall() when
 * the driver wants to be told.
 */

import { IOVEC_SIZE } from "../abi/linux.ts";
import * as abi from "../abi/virtio-blk.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
} from "../abi/virtio-ring.ts";
import type { BlockBackend } from "../block/backend.ts";
import {
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  REQ_FUA,
  REQ_MAY_UNMAP,
} from "../block/node.ts";
import type { Reactor } from "../io/reactor.ts";
import { NONE, type RequestOwner, type RequestTable } from "../io/requests.ts";
import { EBUSY, EINVAL } from "../runtime/errno.ts";
import { assert } from "../util/error.ts";
import {
  type BlkConfigOptions,
  configSpace,
  offeredFeatures,
  RANGE_SECTORS_MAX,
} from "./blk-config.ts";
import { BlkRequest, NOWHERE, SEGMENT_BYTES } from "./blk-request.ts";
import { Chain } from "./chain.ts";
import type { GuestMemory, Window } from "./guest-memory.ts";
import { PackedRing } from "./packed-ring.ts";
import { BROKEN, EMPTY, type RingAddresses, type Virtqueue } from "./queue.ts";
import { SplitRing } from "./split-ring.ts";

export interface VirtioBlkOptions extends BlkConfigOptions {
  readonly reactor: Reactor;
  readonly backend: BlockBackend;
  readonly memory: GuestMemory;
  /** At most 20 bytes of it are told. */
  readonly serial: string;
  /** The driver of the queue wants a notification. At the end of a turn. */
  readonly onCall: (index: number) => void;
  /** The driver broke the rules, or the queue's memory is gone: it is done with. Once a queue. */
  readonly onBroken: (index: number) => void;
}

export interface QueueOptions {
  readonly size: number;
  readonly addresses: RingAddresses;
  /** Of SET_VRING_BASE. */
  readonly base: number;
  readonly inflight: ArrayBuffer | null;
}

/** Requests that one look at a polled queue takes: more would wait too long for each other. */
const PASS_MAX = 64;

/** What the device asks of its backend. */
type BlkOp =
  | typeof OP_READ
  | typeof OP_WRITE
  | typeof OP_FLUSH
  | typeof OP_DISCARD
  | typeof OP_WRITE_ZEROES;

/** One queue of the device, started. */
class BlkQueue {
  readonly index: number;
  readonly ring: Virtqueue;
  /** Takes no more than what was in flight before. */
  isStopping = false;
  /** Waits for a slot or a buffer, and goes on by itself. */
  isWaiting = false;
  isDirty = false;
  /** The transport was told that it is broken. */
  isReported = false;
  /** Its driver need not kick, as the queue is polled. */
  isSilent = false;
  onIdle: (() => void)[] = [];

  constructor(index: number, ring: Virtqueue) {
    this.index = index;
    this.ring = ring;
  }
}

export class VirtioBlk implements RequestOwner {
  readonly features: bigint;
  /** The transport calls poll() while the thread is awake, and allowKicks() before it sleeps. */
  pollsQueues = false;
  #options: VirtioBlkOptions;
  #reactor: Reactor;
  #requests: RequestTable;
  #backend: BlockBackend;
  #memory: GuestMemory;
  #serial: Uint8Array;
  #negotiated = 0n;
  /** The driver's choice, with CONFIG_WCE. */
  #writeCache: boolean;
  #writeCacheKnown = true;
  /** REQ_FUA when every write has to be stable as it completes. */
  #writeFlags = 0;
  #queues: (BlkQueue | null)[];
  #chain = new Chain();
  #request: BlkRequest;
  #dirty: BlkQueue[] = [];
  /** Slots that it holds, and queues that wait for it to hold fewer. */
  #heldCount = 0;
  #short: BlkQueue[] = [];
  #publishAll = () => this.#publish();
  /** By queue: processQueue(), made once. */
  #resumes: (() => void)[];
  // By slot.
  #queueOf: Uint16Array;
  #ticketOf: Uint16Array;
  #usedBytes: Float64Array;
  #epochOf: Uint8Array;
  #statusWindow: (Window | null)[];
  #statusAt: Float64Array;
  #statusGuestAddress: Float64Array;
  /** Position of its struct iovec in the reactor's memory, or NONE. */
  #iovAt: Float64Array;

  constructor(options: VirtioBlkOptions) {
    const { reactor, queueCount } = options;
    const { capacity } = reactor.requests;
    this.#options = options;
    this.#reactor = reactor;
    this.#requests = reactor.requests;
    this.#backend = options.backend;
    this.#memory = options.memory;
    this.#writeCache = !options.backend.writethrough;
    this.features = offeredFeatures(options);
    this.#serial = new Uint8Array(abi.VIRTIO_BLK_ID_BYTES);
    new TextEncoder().encodeInto(options.serial, this.#serial);
    this.#request = new BlkRequest(options.memory);
    this.#queues = new Array(queueCount).fill(null);
    this.#resumes = this.#queues.map((_, index) => () => this.#resume(index));
    this.#queueOf = new Uint16Array(capacity);
    this.#ticketOf = new Uint16Array(capacity);
    this.#usedBytes = new Float64Array(capacity);
    this.#epochOf = new Uint8Array(capacity);
    this.#statusWindow = new Array(capacity).fill(null);
    this.#statusAt = new Float64Array(capacity);
    this.#statusGuestAddress = new Float64Array(capacity);
    this.#iovAt = new Float64Array(capacity);
    options.memory.onChange = () => this.#remap();
    this.setFeatures(0n);
  }

  /** What the driver accepted, of the device's bits. For queues started from now on. */
  setFeatures(features: bigint): void {
    this.#negotiated = features & this.features;
    this.#updateWriteFlags();
  }

  /** The configuration space as it is now: the disk may have been resized. */
  config(): Uint8Array {
    return configSpace(this.#options, this.#backend.node.bytes, this.#writeCache);
  }

  /** The driver's choice; null: the driver may believe what it set elsewhere. */
  get writeCache(): boolean | null {
    return this.#writeCacheKnown ? this.#writeCache : null;
  }

  /** Null: every write is stable, until the driver tells, or flushes as who has a cache does. */
  set writeCache(isOn: boolean | null) {
    this.#writeCacheKnown = isOn !== null;
    this.#writeCache = isOn ?? this.#writeCache;
    this.#updateWriteFlags();
  }

  /** The driver writes to the configuration space. False: not there. */
  setConfig(offset: number, bytes: Uint8Array): boolean {
    if (offset !== abi.VIRTIO_BLK_CONFIG_WCE || bytes.length !== 1) return false;
    this.writeCache = bytes[0] !== 0;
    return true;
  }

  /** Begins with a queue; call processQueue() then. Returns 0 or -errno. */
  startQueue(index: number, options: QueueOptions): number {
    if (index >= this.#queues.length) return -EINVAL;
    if (this.#queues[index] !== null) return -EBUSY;
    const ringOptions = {
      ...options,
      memory: this.#memory,
      eventIdx: this.#has(VIRTIO_F_EVENT_IDX),
      indirect: this.#has(VIRTIO_F_INDIRECT_DESC),
    };
    const isPacked = this.#has(VIRTIO_F_RING_PACKED);
    const ring = isPacked ? PackedRing.open(ringOptions) : SplitRing.open(ringOptions);
    if (typeof ring === "number") return ring;
    this.#queues[index] = new BlkQueue(index, ring);
    return 0;
  }

  /** Null while it is stopped. For its log, and for polling: hasWork, suppressKicks(), ... */
  ring(index: number): Virtqueue | null {
    return this.#queues[index]?.ring ?? null;
  }

  /**
   * Takes nothing more from the queue; resolves with its base when all that it took has completed
   * and is published. -EINVAL: it is not started.
   */
  async stopQueue(index: number): Promise<number> {
    const queue = this.#queues[index];
    if (queue === null || queue === undefined) return -EINVAL;
    queue.isStopping = true;
    // What an earlier back-end had taken is ours to end.
    this.processQueue(index);
    if (isBusy(queue)) await new Promise<void>((resolve) => queue.onIdle.push(resolve));
    if (this.#queues[index] === queue) {
      this.#queues[index] = null;
      // Whoever takes the queue over finds it as new.
      queue.ring.allowKicks();
    }
    return queue.ring.base;
  }

  /** Stops all queues: the driver went away, or the device is reset. */
  async stop(): Promise<void> {
    await Promise.all(this.#queues.map((_, index) => this.stopQueue(index)));
  }

  /**
   * Starts some of what is available in each queue; no system call where nothing is. True: there
   * was, and there may be more.
   */
  poll(): boolean {
    let found = false;
    for (let index = 0; index < this.#queues.length; index++) {
      const queue = this.#queues[index];
      if (queue === null || queue === undefined || !mayTake(queue) || !queue.ring.hasWork) continue;
      found = true;
      this.processQueue(index);
    }
    return found;
  }

  /** From now on drivers kick. True: something came before that, poll() again. */
  allowKicks(): boolean {
    let found = false;
    for (const queue of this.#queues) {
      if (queue === null || !queue.isSilent || !mayTake(queue)) continue;
      if (queue.ring.allowKicks()) found = true;
      else queue.isSilent = false;
    }
    return found;
  }

  /**
   * Starts what is available, or some of it: with `pollsQueues`, poll() finds the rest. Nothing
   * happens to a queue that is stopped.
   */
  processQueue(index: number): void {
    const queue = this.#queues[index];
    if (queue === null || queue === undefined || queue.isWaiting) return;
    const { ring } = queue;
    const chain = this.#chain;
    ring.suppressKicks();
    queue.isSilent = true;
    let left = this.pollsQueues ? PASS_MAX : Infinity;
    for (;;) {
      if (left-- === 0) return;
      if (queue.isStopping && ring.resubmitCount === 0) return;
      const found = ring.peek(chain);
      if (found === BROKEN) {
        this.#reportBroken(queue);
        return;
      }
      if (found === EMPTY) {
        if (this.pollsQueues) return;
        if (!ring.allowKicks()) {
          queue.isSilent = false;
          return;
        }
        ring.suppressKicks();
      } else if (!this.#start(queue)) {
        queue.isWaiting = true;
        return;
      }
    }
  }

  onRequestDone(slot: number, result: number): void {
    const requests = this.#requests;
    const index = this.#queueOf[slot]!;
    const queue = this.#queues[index];
    assert(queue !== null && queue !== undefined, "a queue stops after its requests");
    if (this.#memory.log !== null && requests.op[slot] === OP_READ) this.#logPayload(slot);
    const status = result === 0 ? abi.VIRTIO_BLK_S_OK : abi.VIRTIO_BLK_S_IOERR;
    this.#statusWindow[slot]!.u8[this.#statusAt[slot]!] = status;
    this.#memory.log?.mark(this.#statusGuestAddress[slot]!, 1);
    this.#statusWindow[slot] = null;
    queue.ring.complete(this.#ticketOf[slot]!, this.#usedBytes[slot]!);
    this.#markDirty(queue);
    if (this.#iovAt[slot] !== NONE) this.#reactor.buffers.free(this.#iovAt[slot]!);
    requests.payload[slot] = null;
    requests.iovCount[slot] = 0;
    this.#memory.leave(this.#epochOf[slot]!);
    this.#heldCount--;
    requests.free(slot);
  }

  #has(bit: number): boolean {
    return (this.#negotiated & (1n << BigInt(bit))) !== 0n;
  }

  /** Spec: VIRTIO 1.3 §5.2.6.2, which writes are stable once they complete. */
  #updateWriteFlags(): void {
    const isOn = !this.#has(abi.VIRTIO_BLK_F_CONFIG_WCE) || this.writeCache === true;
    this.#writeFlags = isOn && this.#has(abi.VIRTIO_BLK_F_FLUSH) ? 0 : REQ_FUA;
  }

  #resume(index: number): void {
    const queue = this.#queues[index];
    if (queue === null || queue === undefined || !queue.isWaiting) return;
    queue.isWaiting = false;
    this.processQueue(index);
    if (queue.onIdle.length > 0) this.#markDirty(queue);
  }

  /** Starts or ends the request in #chain. False: it must wait, and #resume() is called. */
  #start(queue: BlkQueue): boolean {
    const chain = this.#chain;
    const request = this.#request;
    request.findStatus(chain);
    if (request.statusWindow === null || !request.readHeader(chain)) {
      // QSD differs: it never completes an element without header or status.
      this.#end(queue, abi.VIRTIO_BLK_S_IOERR);
      return true;
    }
    switch (request.type) {
      case abi.VIRTIO_BLK_T_IN:
        return this.#transfer(queue, OP_READ);
      case abi.VIRTIO_BLK_T_OUT:
        return this.#transfer(queue, OP_WRITE);
      case abi.VIRTIO_BLK_T_FLUSH:
        if (!this.#writeCacheKnown) this.writeCache = this.#writeCache;
        return this.#submit(queue, OP_FLUSH, 0, 0, 0);
      case abi.VIRTIO_BLK_T_DISCARD:
      case abi.VIRTIO_BLK_T_WRITE_ZEROES:
        return this.#clearRange(queue);
      case abi.VIRTIO_BLK_T_GET_ID:
        request.findDataIn(chain);
        request.writeData(chain, this.#serial);
        this.#end(queue, abi.VIRTIO_BLK_S_OK);
        return true;
      default:
        this.#end(queue, abi.VIRTIO_BLK_S_UNSUPP);
        return true;
    }
  }

  #transfer(queue: BlkQueue, op: typeof OP_READ | typeof OP_WRITE): boolean {
    const chain = this.#chain;
    const request = this.#request;
    const bytes = op === OP_READ ? request.findDataIn(chain) : request.findDataOut(chain);
    const mayRun = op === OP_READ || this.#backend.writable;
    if (!mayRun || !this.#isInDisk(request.offset, bytes)) {
      this.#end(queue, abi.VIRTIO_BLK_S_IOERR);
      return true;
    }
    if (bytes === 0) {
      this.#end(queue, abi.VIRTIO_BLK_S_OK);
      return true;
    }
    const flags = op === OP_READ ? 0 : this.#writeFlags;
    return this.#submit(queue, op, request.offset, bytes, flags);
  }

  #clearRange(queue: BlkQueue): boolean {
    const request = this.#request;
    const status = this.#checkRange();
    const bytes = request.segmentBytes;
    if (status !== abi.VIRTIO_BLK_S_OK || bytes === 0) {
      this.#end(queue, status);
      return true;
    }
    if (request.type === abi.VIRTIO_BLK_T_DISCARD) {
      return this.#submit(queue, OP_DISCARD, request.offset, bytes, 0);
    }
    const mayUnmap = request.segmentFlags !== 0 ? REQ_MAY_UNMAP : 0;
    const flags = this.#writeFlags | mayUnmap;
    return this.#submit(queue, OP_WRITE_ZEROES, request.offset, bytes, flags);
  }

  /** Of a DISCARD or WRITE_ZEROES, before anything is done: its status. */
  #checkRange(): number {
    const chain = this.#chain;
    const request = this.#request;
    if (!this.#backend.writable) return abi.VIRTIO_BLK_S_IOERR;
    const isDiscard = request.type === abi.VIRTIO_BLK_T_DISCARD;
    if (request.findDataOut(chain) > SEGMENT_BYTES) return abi.VIRTIO_BLK_S_UNSUPP;
    if (!request.readSegment(chain)) return abi.VIRTIO_BLK_S_IOERR;
    const flagsKnown = isDiscard ? 0 : abi.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    if ((request.segmentFlags & ~flagsKnown) !== 0) return abi.VIRTIO_BLK_S_UNSUPP;
    const bytesMax = RANGE_SECTORS_MAX * abi.VIRTIO_BLK_SECTOR_BYTES;
    const isFine =
      request.segmentBytes <= bytesMax && this.#isInDisk(request.offset, request.segmentBytes);
    return isFine ? abi.VIRTIO_BLK_S_OK : abi.VIRTIO_BLK_S_IOERR;
  }

  #isInDisk(offset: number, bytes: number): boolean {
    if (offset === NOWHERE || bytes % abi.VIRTIO_BLK_SECTOR_BYTES !== 0) return false;
    if (offset % this.#options.blockBytes !== 0) return false;
    return offset + bytes <= this.#backend.node.bytes;
  }

  /** Gives the chain's request to the backend. False: a slot or a buffer is missing. */
  #submit(queue: BlkQueue, op: BlkOp, offset: number, bytes: number, flags: number): boolean {
    const chain = this.#chain;
    const request = this.#request;
    const requests = this.#requests;
    const isTransfer = op <= OP_WRITE;
    const count = isTransfer ? request.end - request.first : 0;
    const iovAt = count > 1 ? this.#allocateIovec(queue, count) : NONE;
    if (count > 1 && iovAt === NONE) return false;
    const slot = requests.mayTake(this.#heldCount) ? requests.allocate(this) : NONE;
    if (slot === NONE) {
      if (iovAt !== NONE) this.#reactor.buffers.free(iovAt);
      if (this.#heldCount === 0) requests.onFree(this.#resumes[queue.index]!);
      else this.#short.push(queue);
      return false;
    }
    this.#heldCount++;
    queue.ring.take(chain);
    requests.op[slot] = op;
    requests.offset[slot] = offset;
    requests.bytes[slot] = bytes;
    requests.flags[slot] = flags;
    if (isTransfer) {
      requests.payload[slot] = this.#memory;
      if (iovAt === NONE) {
        requests.address[slot] = request.addressOf(chain, request.first);
      } else {
        request.writeIovec(chain, this.#reactor.memory, iovAt);
        requests.address[slot] = this.#reactor.memory.address + iovAt;
        requests.iovCount[slot] = count;
      }
    }
    this.#iovAt[slot] = iovAt;
    this.#queueOf[slot] = queue.index;
    this.#ticketOf[slot] = chain.ticket;
    this.#usedBytes[slot] = chain.writableBytes;
    this.#epochOf[slot] = this.#memory.enter();
    this.#statusWindow[slot] = request.statusWindow;
    this.#statusAt[slot] = request.statusAt;
    this.#statusGuestAddress[slot] = request.statusGuestAddress;
    this.#backend.submit(slot);
    return true;
  }

  #allocateIovec(queue: BlkQueue, count: number): number {
    const { buffers } = this.#reactor;
    const at = buffers.allocate(count * IOVEC_SIZE);
    if (at === NONE) buffers.onAvailable(count * IOVEC_SIZE, this.#resumes[queue.index]!);
    return at;
  }

  /** Ends a request at once. */
  #end(queue: BlkQueue, status: number): void {
    const chain = this.#chain;
    const request = this.#request;
    queue.ring.take(chain);
    if (request.statusWindow !== null) {
      request.statusWindow.u8[request.statusAt] = status;
      this.#memory.log?.mark(request.statusGuestAddress, 1);
    }
    queue.ring.complete(chain.ticket, request.statusWindow === null ? 0 : chain.writableBytes);
    this.#markDirty(queue);
  }

  #logPayload(slot: number): void {
    const { log } = this.#memory;
    const requests = this.#requests;
    const count = requests.iovCount[slot]!;
    const { view, address } = this.#reactor.memory;
    for (let i = 0; i < Math.max(count, 1); i++) {
      const at = requests.address[slot]! - address + i * IOVEC_SIZE;
      const host = count === 0 ? requests.address[slot]! : Number(view.getBigUint64(at, true));
      const bytes = count === 0 ? requests.bytes[slot]! : Number(view.getBigUint64(at + 8, true));
      const guest = this.#memory.guestAddressOf(host);
      if (guest >= 0) log?.mark(guest, bytes);
    }
  }

  #markDirty(queue: BlkQueue): void {
    if (queue.isDirty) return;
    queue.isDirty = true;
    if (this.#dirty.push(queue) === 1) this.#reactor.defer(this.#publishAll);
  }

  /** Once a turn: shows the drivers what has ended in it. */
  #publish(): void {
    const dirty = this.#dirty;
    for (let i = 0; i < dirty.length; i++) {
      const queue = dirty[i]!;
      queue.isDirty = false;
      if (queue.ring.publish()) this.#options.onCall(queue.index);
      if (queue.onIdle.length > 0 && !isBusy(queue)) {
        this.#reactor.asyncResumed();
        for (const resolve of queue.onIdle.splice(0)) resolve();
      }
    }
    dirty.length = 0;
    if (this.#short.length > 0) this.#resumeShort();
  }

  /** After the end of some of its requests. */
  #resumeShort(): void {
    const short = this.#short.splice(0);
    // Another one is the first each time.
    short.push(short.shift()!);
    for (const queue of short) this.#resume(queue.index);
  }

  #remap(): void {
    for (const queue of this.#queues) {
      if (queue !== null && !queue.ring.remap()) this.#reportBroken(queue);
    }
  }

  #reportBroken(queue: BlkQueue): void {
    if (queue.isReported) return;
    queue.isReported = true;
    // Those who wait for it need not wait for what it will not take.
    this.#markDirty(queue);
    this.#options.onBroken(queue.index);
  }
}

function mayTake({ ring, isStopping, isWaiting }: BlkQueue): boolean {
  return !isWaiting && !ring.isBroken && (!isStopping || ring.resubmitCount > 0);
}

/** Something that it took, or has to take, has not ended. */
function isBusy({ ring }: BlkQueue): boolean {
  return ring.inFlight > 0 || (ring.resubmitCount > 0 && !ring.isBroken);
}
