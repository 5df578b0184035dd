/**
 * The vrings of one session: set up by messages in whatever order, started when all is there.
 * Thread: iothread.
 * Spec: vhost-user.rst "Ring states"
 */
import * as vu from "../../abi/vhost-user.ts";
import { VIRTQ_SIZE_MAX } from "../../abi/virtio-ring.ts";
import { strerror } from "../../runtime/errno.ts";
import type { InflightArea } from "../../virtio/inflight.ts";
import type { RingAddresses } from "../../virtio/queue.ts";
import type { VirtioBlk } from "../../virtio/virtio-blk.ts";
import type { Answer } from "./answer.ts";
import type { EventFds, EventSource, EventTarget } from "./event-fds.ts";
import type { Payload } from "./message.ts";

class Vring {
  size = 0;
  addresses: RingAddresses | null = null;
  base = 0;
  isEnabled = false;
  /** The front-end said how it kicks: from then on the ring may be looked at. */
  isKickable = false;
  /** Nobody kicks: the ring has to be looked at all the time. */
  isPolled = false;
  /** The device has it. */
  isRunning = false;
  /** It has had it. */
  hasRun = false;
  kick: EventSource | null = null;
  call: EventTarget | null = null;
  error: EventTarget | null = null;

  /** Everything that a running ring needs is there. */
  get isReady(): boolean {
    return this.isKickable && this.isEnabled && this.addresses !== null && this.size > 0;
  }

  closeKick(): void {
    this.kick?.close();
    this.kick = null;
    this.isKickable = false;
    this.isPolled = false;
  }

  closeCall(): void {
    this.call?.close();
    this.call = null;
  }

  closeError(): void {
    this.error?.close();
    this.error = null;
  }
}

/** A vring that has stopped, on its way to another thread. Descriptors go along. */
export interface VringState
  extends Pick<
    Vring,
    "size" | "addresses" | "base" | "isEnabled" | "isKickable" | "isPolled" | "hasRun"
  > {
  readonly index: number;
  readonly kickFd: number | null;
  readonly callFd: number | null;
  readonly errorFd: number | null;
}

export interface VringsParts {
  readonly device: VirtioBlk;
  readonly eventFds: EventFds;
  readonly queueCount: number;
  /** The session can't go on. */
  readonly onFault: (fault: string) => void;
  /** A ring has a driver that never kicks. */
  readonly onPolledRing: () => void;
  /** A ring will run for the first time, from `base` on. */
  readonly onNewRing: (base: number) => void;
  /** The first ring runs. */
  readonly onStarted: () => void;
}

export class Vrings {
  /** Without VHOST_USER_F_PROTOCOL_FEATURES, a ring need not be enabled. */
  startEnabled = true;
  /** Where rings that start from now on track what is in flight. */
  inflight: InflightArea | null = null;
  #parts: VringsParts;
  /** Made at their first use: there may be many. */
  #vrings: (Vring | undefined)[] = [];

  constructor(parts: VringsParts) {
    this.#parts = parts;
  }

  /** Some ring has a driver that never kicks. */
  get hasPolledRing(): boolean {
    return this.#vrings.some((vring) => vring?.isPolled === true);
  }

  get isAnyRunning(): boolean {
    return this.#vrings.some((vring) => vring?.isRunning === true);
  }

  call(index: number): void {
    this.#vrings[index]?.call?.signal();
  }

  signalError(index: number): void {
    this.#vrings[index]?.error?.signal();
  }

  /** They go on where they were when they are set up to. */
  async stopAll(): Promise<void> {
    for (const index of this.#vrings.keys()) await this.#stop(index);
  }

  async disableAll(): Promise<void> {
    for (const vring of this.#vrings) if (vring !== undefined) vring.isEnabled = false;
    await this.stopAll();
  }

  /** All is as it was in the beginning. */
  async reset(): Promise<void> {
    await this.disableAll();
    this.ignoreKicks();
    this.close();
  }

  ignoreKicks(): void {
    for (const vring of this.#vrings) vring?.closeKick();
  }

  /** Lets go of the descriptors of rings that have stopped. */
  close(): void {
    for (const vring of this.#vrings) {
      vring?.closeCall();
      vring?.closeError();
    }
    this.#vrings = [];
  }

  /** Stops all rings, and gives them away. */
  async detach(): Promise<VringState[]> {
    await this.stopAll();
    const states: VringState[] = [];
    for (const [index, vring] of this.#vrings.entries()) {
      if (vring === undefined) continue;
      const { size, addresses, base, isEnabled, isKickable, isPolled, hasRun } = vring;
      const kickFd = (await vring.kick?.detach()) ?? null;
      const callFd = (await vring.call?.detach()) ?? null;
      const errorFd = (await vring.error?.detach()) ?? null;
      const ring = { size, addresses, base, isEnabled, isKickable, isPolled, hasRun };
      states.push({ index, ...ring, kickFd, callFd, errorFd });
    }
    this.#vrings = [];
    return states;
  }

  /** Goes on where detach() ended; takes all descriptors, also when a ring can't. */
  attach(states: readonly VringState[]): Answer {
    const { eventFds, onPolledRing } = this.#parts;
    let answer: Answer = null;
    for (const { index, kickFd, callFd, errorFd, ...ring } of states) {
      const vring = Object.assign(new Vring(), ring);
      this.#vrings[index] = vring;
      if (kickFd !== null) this.#listen(index, vring, kickFd);
      if (callFd !== null) vring.call = eventFds.target(callFd);
      if (errorFd !== null) vring.error = eventFds.target(errorFd);
      if (vring.isPolled) onPolledRing();
      // A call that was wanted while another was under way is lost with the old thread.
      vring.call?.signal();
      answer ??= this.#start(index, vring);
    }
    return answer;
  }

  setSize(payload: Payload): Answer {
    const vring = this.#at(payload.u32(0));
    const size = payload.u32(4);
    if (vring === undefined) return invalidIndex(payload.u32(0));
    if (size === 0 || size > VIRTQ_SIZE_MAX) return { fault: `Invalid vring_num: ${size}` };
    if (vring.isRunning && size !== vring.size) return isRunning(payload.u32(0));
    vring.size = size;
    return this.#start(payload.u32(0), vring);
  }

  setAddresses(payload: Payload): Answer {
    const index = payload.u32(0);
    const vring = this.#at(index);
    if (vring === undefined) return invalidIndex(index);
    const isLogged = (payload.u32(4) & (1 << vu.VHOST_VRING_F_LOG)) !== 0;
    const desc = payload.u64(8);
    const used = payload.u64(16);
    const avail = payload.u64(24);
    const usedLog = isLogged ? payload.u64(32) : null;
    if (vring.isRunning) {
      const now = vring.addresses!;
      if (now.desc !== desc || now.used !== used || now.avail !== avail) return isRunning(index);
      this.#parts.device.ring(index)?.setUsedLog(usedLog);
    }
    vring.addresses = { desc, avail, used, usedLog };
    return this.#start(index, vring);
  }

  setBase(payload: Payload): Answer {
    const index = payload.u32(0);
    const vring = this.#at(index);
    if (vring === undefined) return invalidIndex(index);
    if (vring.isRunning) return isRunning(index);
    vring.base = payload.u32(4);
    return null;
  }

  async getBase(payload: Payload): Promise<Answer> {
    const index = payload.u32(0);
    const vring = this.#at(index);
    if (vring === undefined) return invalidIndex(index);
    vring.closeKick();
    await this.#stop(index);
    vring.closeCall();
    const reply = new Uint8Array(vu.VHOST_VRING_STATE_SIZE);
    const view = new DataView(reply.buffer);
    view.setUint32(0, index, true);
    view.setUint32(4, vring.base, true);
    return { payload: reply };
  }

  async enable(payload: Payload): Promise<Answer> {
    const index = payload.u32(0);
    const vring = this.#at(index);
    if (vring === undefined) return { fault: `Invalid vring_enable index: ${index}` };
    vring.isEnabled = payload.u32(4) !== 0;
    if (vring.isEnabled) return this.#start(index, vring);
    await this.#stop(index);
    return null;
  }

  setKick(payload: Payload, fds: number[]): Answer {
    const index = payload.u32(0) & vu.VHOST_USER_VRING_IDX_MASK;
    const vring = this.#at(index);
    if (vring === undefined) return invalidIndex(index);
    const isPolled = (payload.u32(0) & vu.VHOST_USER_VRING_NOFD_MASK) !== 0;
    vring.closeKick();
    vring.isKickable = true;
    vring.isPolled = isPolled;
    if (isPolled) this.#parts.onPolledRing();
    else this.#listen(index, vring, fds.pop()!);
    if (this.startEnabled) vring.isEnabled = true;
    return this.#start(index, vring);
  }

  setCall(payload: Payload, fds: number[]): Answer {
    const index = payload.u32(0) & vu.VHOST_USER_VRING_IDX_MASK;
    const vring = this.#at(index);
    if (vring === undefined) return invalidIndex(index);
    vring.closeCall();
    if ((payload.u32(0) & vu.VHOST_USER_VRING_NOFD_MASK) === 0) {
      vring.call = this.#parts.eventFds.target(fds.pop()!);
      // What was used while there was nothing to call.
      vring.call.signal();
    }
    return null;
  }

  setError(payload: Payload, fds: number[]): Answer {
    const index = payload.u32(0) & vu.VHOST_USER_VRING_IDX_MASK;
    const vring = this.#at(index);
    if (vring === undefined) return invalidIndex(index);
    vring.closeError();
    if ((payload.u32(0) & vu.VHOST_USER_VRING_NOFD_MASK) === 0) {
      vring.error = this.#parts.eventFds.target(fds.pop()!);
    }
    return null;
  }

  #at(index: number): Vring | undefined {
    if (index >= this.#parts.queueCount) return undefined;
    let vring = this.#vrings[index];
    if (vring === undefined) {
      vring = new Vring();
      this.#vrings[index] = vring;
    }
    return vring;
  }

  #listen(index: number, vring: Vring, fd: number): void {
    const { device, eventFds, onFault } = this.#parts;
    vring.kick = eventFds.listen(fd, (failure) => {
      if (failure === 0) device.processQueue(index);
      else onFault(`kick eventfd_read(): ${failure < 0 ? strerror(failure) : "end of file"}`);
    });
  }

  /** If it may run and doesn't. */
  #start(index: number, vring: Vring): Answer {
    if (vring.isRunning || !vring.isReady) return null;
    const { device } = this.#parts;
    const { size, base } = vring;
    const inflight = this.inflight === null ? null : this.inflight.region(index, size);
    if (this.inflight !== null && inflight === null) {
      return { fault: `Failed to check inflights for vq: ${index}` };
    }
    if (!vring.hasRun) this.#parts.onNewRing(base);
    const options = { size, base, addresses: vring.addresses!, inflight };
    const result = device.startQueue(index, options);
    if (result < 0) return { fault: `Invalid vring_addr message: ${strerror(result)}` };
    const isFirst = !this.isAnyRunning;
    vring.isRunning = true;
    vring.hasRun = true;
    device.processQueue(index);
    if (isFirst) this.#parts.onStarted();
    return null;
  }

  async #stop(index: number): Promise<void> {
    const vring = this.#vrings[index];
    if (vring?.isRunning !== true) return;
    vring.base = await this.#parts.device.stopQueue(index);
    vring.isRunning = false;
  }
}

function invalidIndex(index: number): Answer {
  return { fault: `Invalid queue index: ${index}` };
}

function isRunning(index: number): Answer {
  return { fault: `Vring ${index} is running` };
}
