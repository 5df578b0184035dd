/**
 * One front-end's session: what its messages do to the device, the guest's memory and the vrings.
 * Thread: iothread.
 * Spec: vhost-user.rst "Front-end message types"
 */
import * as vu from "../../abi/vhost-user.ts";
import { VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from "../../abi/virtio-ring.ts";
import { EEXIST, ENOENT, strerror } from "../../runtime/errno.ts";
import type { Linux } from "../../runtime/linux.ts";
import { DirtyLog } from "../../virtio/dirty-log.ts";
import type { GuestMemory, MappedRegion, RegionOptions } from "../../virtio/guest-memory.ts";
import { InflightArea, type InflightShape } from "../../virtio/inflight.ts";
import { SharedFile, type SharedFilePlace } from "../../virtio/shared-file.ts";
import type { Answer } from "./answer.ts";
import type { BackendChannel } from "./backend-channel.ts";
import { ConfigSpace, type ConfigSpaceState } from "./config-space.ts";
import type { EventTarget } from "./event-fds.ts";
import { encodeU64, type Message, type Payload } from "./message.ts";
import { type VringState, Vrings, type VringsParts } from "./vrings.ts";

const bit = (number: number): bigint => 1n << BigInt(number);

const PROTOCOL_FEATURES = [
  vu.VHOST_USER_PROTOCOL_F_MQ,
  vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  vu.VHOST_USER_PROTOCOL_F_REPLY_ACK,
  vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  vu.VHOST_USER_PROTOCOL_F_CONFIG,
  vu.VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD,
  vu.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  vu.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  vu.VHOST_USER_PROTOCOL_F_STATUS,
].reduce((all, feature) => all | bit(feature), 0n);

/**
 * Regions mapped at a time, with those that are gone for the front-end and not for requests in
 * flight: one that changes its table all the time must not use up what the host lets us map.
 */
const MAPPINGS_MAX = 4 * vu.VHOST_USER_MAX_RAM_SLOTS;

const TRANSPORT_FEATURES = bit(vu.VHOST_USER_F_PROTOCOL_FEATURES) | bit(vu.VHOST_F_LOG_ALL);

/** Of a ring that its driver has not used yet; packed: both indexes 0, both wrap counters 1. */
const SPLIT_BASE_NEW = 0;
const PACKED_BASE_NEW = 0x8000_8000;

export interface SessionParts extends Omit<VringsParts, "onNewRing" | "onStarted"> {
  readonly linux: Linux;
  readonly memory: GuestMemory;
  /** Of the disk: 0 or -errno. */
  readonly flush: () => Promise<number>;
  readonly makeChannel: (fd: number) => BackendChannel;
}

/** A session on its way to another thread: plain data, and descriptors that go along. */
export interface SessionState {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  readonly status: bigint;
  readonly config: ConfigSpaceState;
  readonly regions: readonly MappedRegion[];
  readonly log: SharedFilePlace | null;
  readonly logCallFd: number | null;
  readonly channelFd: number | null;
  readonly inflight: { readonly shape: InflightShape; readonly place: SharedFilePlace } | null;
  readonly vrings: readonly VringState[];
}

export class Session {
  readonly vrings: Vrings;
  #parts: SessionParts;
  #config: ConfigSpace;
  #features = 0n;
  #protocolFeatures = 0n;
  #status = 0n;
  #log: DirtyLog | null = null;
  #logCall: EventTarget | null = null;
  #channel: BackendChannel | null = null;
  #handlers = this.#makeHandlers();

  constructor(parts: SessionParts) {
    this.#parts = parts;
    this.#config = new ConfigSpace({ ...parts, onChanged: () => this.configChanged() });
    this.vrings = new Vrings({
      ...parts,
      onNewRing: (base) => this.#config.ringStarts(base === this.#newBase),
      onStarted: () => this.#config.tellIfChanged(),
    });
  }

  /** One at a time. Takes those of its fds that it keeps out of the message. */
  async handle(message: Message): Promise<Answer> {
    const handler = this.#handlers[message.request];
    if (handler === undefined) return { fault: `Unhandled request: ${message.request}` };
    return handler(message.payload, message.fds);
  }

  /** The driver of the queue wants a notification. */
  call(index: number): void {
    this.vrings.call(index);
    if (this.#parts.memory.log !== null) this.#logCall?.signal();
  }

  /** The driver broke the queue. */
  broken(index: number): void {
    this.vrings.signalError(index);
    this.#parts.onFault(`Virtqueue ${index} is broken`);
  }

  /** The configuration space has changed. Front-ends whose rings don't run hear of it later. */
  configChanged(): void {
    if ((this.#protocolFeatures & bit(vu.VHOST_USER_PROTOCOL_F_CONFIG)) === 0n) return;
    if (this.vrings.isAnyRunning) this.#channel?.sendConfigChange();
  }

  /** Instead of end(): what attach() elsewhere goes on with. */
  async detach(): Promise<SessionState> {
    const vrings = await this.vrings.detach();
    const { inflight } = this.vrings;
    const state: SessionState = {
      features: this.#features,
      protocolFeatures: this.#protocolFeatures,
      status: this.#status,
      config: this.#config.state,
      regions: this.#parts.memory.detach(),
      log: this.#log?.place ?? null,
      logCallFd: (await this.#logCall?.detach()) ?? null,
      channelFd: this.#channel?.detach() ?? null,
      inflight: inflight === null ? null : { shape: inflight.shape, place: inflight.place },
      vrings,
    };
    this.#parts.memory.log = null;
    return state;
  }

  /** Goes on where another session was, as its first act. A fault: it can't. */
  attach(state: SessionState): Answer {
    const { linux, memory, eventFds, makeChannel } = this.#parts;
    const { log, logCallFd, channelFd, inflight } = state;
    memory.attach(state.regions);
    if (log !== null) this.#log = new DirtyLog(new SharedFile(linux, log));
    if (logCallFd !== null) this.#logCall = eventFds.target(logCallFd);
    if (channelFd !== null) this.#channel = makeChannel(channelFd);
    this.#protocolFeatures = state.protocolFeatures;
    this.#status = state.status;
    this.#takeFeatures(state.features);
    if (inflight !== null) {
      const { shape, place } = inflight;
      this.vrings.inflight = new InflightArea(shape, new SharedFile(linux, place));
      this.#config.setInflight(this.vrings.inflight);
    }
    this.#config.state = state.config;
    return this.vrings.attach(state.vrings);
  }

  /** Takes nothing more, ends what is in flight, lets go of everything. For good. */
  async end(): Promise<void> {
    this.vrings.ignoreKicks();
    await this.#parts.device.stop();
    this.#forgetMemory();
    this.#logCall?.close();
    this.#channel?.close();
    this.vrings.close();
  }

  #makeHandlers(): Readonly<Record<number, (payload: Payload, fds: number[]) => Promise<Answer>>> {
    return {
      [vu.VHOST_USER_GET_FEATURES]: async () =>
        u64(this.#parts.device.features | TRANSPORT_FEATURES),
      [vu.VHOST_USER_SET_FEATURES]: async (payload) => this.#setFeatures(payload.bits(0)),
      [vu.VHOST_USER_GET_PROTOCOL_FEATURES]: async () => u64(PROTOCOL_FEATURES),
      [vu.VHOST_USER_SET_PROTOCOL_FEATURES]: async (payload) =>
        this.#setProtocolFeatures(payload.bits(0)),
      [vu.VHOST_USER_SET_OWNER]: () => this.#beginAnew(),
      [vu.VHOST_USER_RESET_OWNER]: async () => {
        await this.vrings.disableAll();
        return null;
      },
      [vu.VHOST_USER_RESET_DEVICE]: () => this.#resetDevice(),
      [vu.VHOST_USER_SET_STATUS]: (payload) => this.#setStatus(payload.bits(0)),
      [vu.VHOST_USER_GET_STATUS]: async () => u64(this.#status),
      [vu.VHOST_USER_GET_QUEUE_NUM]: async () => u64(BigInt(this.#parts.queueCount)),
      [vu.VHOST_USER_GET_CONFIG]: async (payload) => this.#config.get(payload),
      [vu.VHOST_USER_SET_CONFIG]: (payload) => this.#config.set(payload),
      [vu.VHOST_USER_SET_MEM_TABLE]: async (payload, fds) => this.#setMemoryTable(payload, fds),
      [vu.VHOST_USER_GET_MAX_MEM_SLOTS]: async () => u64(BigInt(vu.VHOST_USER_MAX_RAM_SLOTS)),
      [vu.VHOST_USER_ADD_MEM_REG]: async (payload, fds) => this.#addRegion(payload, fds),
      [vu.VHOST_USER_REM_MEM_REG]: async (payload) => this.#removeRegion(payload),
      [vu.VHOST_USER_SET_LOG_BASE]: async (payload, fds) => this.#setLogBase(payload, fds),
      [vu.VHOST_USER_SET_LOG_FD]: async (_payload, fds) => {
        this.#logCall?.close();
        this.#logCall = this.#parts.eventFds.target(fds.pop()!);
        return null;
      },
      [vu.VHOST_USER_SET_BACKEND_REQ_FD]: async (_payload, fds) => {
        this.#channel?.close();
        this.#channel = this.#parts.makeChannel(fds[0]!);
        fds.pop();
        this.#config.tellIfChanged();
        return null;
      },
      [vu.VHOST_USER_GET_INFLIGHT_FD]: async (payload) => this.#getInflight(payload),
      [vu.VHOST_USER_SET_INFLIGHT_FD]: async (payload, fds) => this.#setInflight(payload, fds),
      [vu.VHOST_USER_SET_VRING_NUM]: async (payload) => this.vrings.setSize(payload),
      [vu.VHOST_USER_SET_VRING_ADDR]: async (payload) => this.vrings.setAddresses(payload),
      [vu.VHOST_USER_SET_VRING_BASE]: async (payload) => this.vrings.setBase(payload),
      [vu.VHOST_USER_GET_VRING_BASE]: (payload) => this.vrings.getBase(payload),
      [vu.VHOST_USER_SET_VRING_ENABLE]: (payload) => this.vrings.enable(payload),
      [vu.VHOST_USER_SET_VRING_KICK]: async (payload, fds) => this.vrings.setKick(payload, fds),
      [vu.VHOST_USER_SET_VRING_CALL]: async (payload, fds) => this.vrings.setCall(payload, fds),
      [vu.VHOST_USER_SET_VRING_ERR]: async (payload, fds) => this.vrings.setError(payload, fds),
    };
  }

  #setFeatures(features: bigint): Answer {
    const { device } = this.#parts;
    const unknown = features & ~(device.features | TRANSPORT_FEATURES);
    if (unknown !== 0n) return { fault: `Features 0x${unknown.toString(16)} were not offered` };
    if ((features & bit(VIRTIO_F_VERSION_1)) === 0n) {
      return { fault: "virtio legacy devices aren't supported by libvhost-user" };
    }
    this.#takeFeatures(features);
    return null;
  }

  #takeFeatures(features: bigint): void {
    const { device } = this.#parts;
    this.#features = features;
    device.setFeatures(features & device.features);
    this.vrings.startEnabled = (features & bit(vu.VHOST_USER_F_PROTOCOL_FEATURES)) === 0n;
    this.#updateLog();
  }

  #setProtocolFeatures(features: bigint): Answer {
    const unknown = features & ~PROTOCOL_FEATURES;
    if (unknown !== 0n) {
      return { fault: `Protocol features 0x${unknown.toString(16)} were not offered` };
    }
    this.#protocolFeatures = features;
    return null;
  }

  /**
   * A front-end may follow another on the same connection: QEMU when a device is unplugged and
   * plugged in again. It knows nothing of what was set up before.
   */
  async #beginAnew(): Promise<Answer> {
    if (this.vrings.isAnyRunning) return null;
    await this.vrings.reset();
    this.#forgetMemory();
    this.#config.forget();
    return null;
  }

  /** When no ring runs. */
  #forgetMemory(): void {
    this.#parts.memory.log = null;
    this.#parts.memory.clear();
    this.#log?.unmap();
    this.#log = null;
    this.vrings.inflight?.unmap();
    this.vrings.inflight = null;
  }

  async #resetDevice(): Promise<Answer> {
    await this.vrings.reset();
    this.#takeFeatures(0n);
    this.#status = 0n;
    return null;
  }

  async #setStatus(status: bigint): Promise<Answer> {
    if (status === 0n) await this.vrings.stopAll();
    this.#status = status & 0xffn;
    return null;
  }

  #setMemoryTable(payload: Payload, fds: readonly number[]): Answer {
    const table = fds.map((fd, i) => {
      const at = vu.VHOST_USER_MEMORY_REGIONS + i * vu.VHOST_USER_MEMORY_REGION_SIZE;
      return readRegion(payload, at, fd);
    });
    const { memory } = this.#parts;
    if (memory.mappedCount + table.length > MAPPINGS_MAX) return TOO_MANY_MAPPINGS;
    const result = memory.replace(table);
    return result < 0 ? { refusal: `region mmap error: ${strerror(result)}` } : null;
  }

  #addRegion(payload: Payload, [fd]: readonly number[]): Answer {
    const { memory } = this.#parts;
    const isFull = memory.regionCount >= vu.VHOST_USER_MAX_RAM_SLOTS;
    if (isFull) return { refusal: "failing attempt to hot add memory: no free ram slots" };
    if (memory.mappedCount >= MAPPINGS_MAX) return TOO_MANY_MAPPINGS;
    const result = memory.add(readRegion(payload, 8, fd!));
    if (result === -EEXIST) return { refusal: "Specified region overlaps another" };
    return result < 0 ? { refusal: `region mmap error: ${strerror(result)}` } : null;
  }

  #removeRegion(payload: Payload): Answer {
    const region = readRegion(payload, 8, -1);
    const { guestAddress, userAddress, bytes } = region;
    const result = this.#parts.memory.remove(guestAddress, userAddress, bytes);
    return result === -ENOENT ? { refusal: "Specified region not found" } : null;
  }

  #setLogBase(payload: Payload, [fd]: readonly number[]): Answer {
    const log = DirtyLog.map(this.#parts.linux, fd!, payload.u64(8), payload.u64(0));
    if (typeof log === "number") return { fault: `log mmap error: ${strerror(log)}` };
    const old = this.#log;
    this.#log = log;
    this.#updateLog();
    old?.unmap();
    return u64(0n);
  }

  #updateLog(): void {
    const isWanted = (this.#features & bit(vu.VHOST_F_LOG_ALL)) !== 0n;
    this.#parts.memory.log = isWanted ? this.#log : null;
  }

  #getInflight(payload: Payload): Answer {
    const shape = this.#inflightShape(payload);
    if (shape === undefined) return { fault: "Invalid inflight message" };
    const fd = InflightArea.create(this.#parts.linux, shape);
    if (fd < 0) return { fault: `Failed to alloc vhost inflight area: ${strerror(fd)}` };
    const reply = payload.u8.slice();
    const view = new DataView(reply.buffer);
    view.setBigUint64(0, BigInt(InflightArea.bytes(shape)), true);
    view.setBigUint64(8, 0n, true);
    return { payload: reply, fds: [fd] };
  }

  #setInflight(payload: Payload, [fd]: readonly number[]): Answer {
    const shape = this.#inflightShape(payload);
    if (shape === undefined || this.vrings.isAnyRunning) {
      return { fault: "Invalid inflight message" };
    }
    const place = { offset: payload.u64(8), bytes: payload.u64(0) };
    const area = InflightArea.open(this.#parts.linux, fd!, shape, place);
    if (typeof area === "number") return { refusal: `set_inflight mmap: ${strerror(area)}` };
    this.vrings.inflight?.unmap();
    this.vrings.inflight = area;
    this.#config.setInflight(area);
    return null;
  }

  get #isPacked(): boolean {
    return (this.#features & bit(VIRTIO_F_RING_PACKED)) !== 0n;
  }

  get #newBase(): number {
    return this.#isPacked ? PACKED_BASE_NEW : SPLIT_BASE_NEW;
  }

  #inflightShape(payload: Payload) {
    const queueCount = payload.u16(16);
    const queueSize = payload.u16(18);
    if (queueCount > this.#parts.queueCount) return undefined;
    return { queueCount, queueSize, packed: this.#isPacked };
  }
}

const TOO_MANY_MAPPINGS: Answer = {
  refusal: "region mmap error: requests in flight keep too much that is gone",
};

function u64(value: bigint): Answer {
  return { payload: encodeU64(value) };
}

function readRegion(payload: Payload, at: number, fd: number): RegionOptions {
  return {
    fd,
    guestAddress: payload.u64(at),
    bytes: payload.u64(at + 8),
    userAddress: payload.u64(at + 16),
    fileOffset: payload.u64(at + 24),
  };
}
