/**
 * The device's configuration space as one front-end sees it, and what follows from what it saw.
 * Thread: iothread.
 * Spec: vhost-user.rst GET_CONFIG, SET_CONFIG, BACKEND_CONFIG_CHANGE_MSG
 *
 * Front-ends read it once and keep it, also while a back-end is started again. So one that has
 * another capacity in mind is told to look again, when its rings run: before that, QEMU can't.
 * And its driver may have turned the write cache off in a session with an earlier back-end, or on
 * another host: it would then send no flushes, and think that each write it made is stable. The
 * choice is kept with the requests in flight; where nobody knows it, each write is made stable
 * until the driver's first flush, which shows that it does send them.
 */
import * as vu from "../../abi/vhost-user.ts";
import { VIRTIO_BLK_CONFIG_CAPACITY, VIRTIO_BLK_CONFIG_WCE } from "../../abi/virtio-blk.ts";
import type { InflightArea } from "../../virtio/inflight.ts";
import type { VirtioBlk } from "../../virtio/virtio-blk.ts";
import type { Answer } from "./answer.ts";
import type { Payload } from "./message.ts";

const CAPACITY_BYTES = 8;

export interface ConfigSpaceParts {
  readonly device: VirtioBlk;
  /** Resolves when all that was written before is stable: 0 or -errno. */
  readonly flush: () => Promise<number>;
  /** The front-end shall read it again. */
  readonly onChanged: () => void;
}

/** What it knows of its front-end. */
export interface ConfigSpaceState {
  readonly hasRun: boolean;
  readonly capacityRead: bigint | null;
  readonly wasCacheRead: boolean;
  readonly isCacheRestored: boolean;
}

export class ConfigSpace {
  #parts: ConfigSpaceParts;
  #hasRun = false;
  /** What the front-end read last, in sectors. */
  #capacityRead: bigint | null = null;
  /** The front-end read the choice before any ring ran: it is new here. */
  #wasCacheRead = false;
  #isCacheRestored = false;
  #inflight: InflightArea | null = null;

  constructor(parts: ConfigSpaceParts) {
    this.#parts = parts;
  }

  get state(): ConfigSpaceState {
    return {
      hasRun: this.#hasRun,
      capacityRead: this.#capacityRead,
      wasCacheRead: this.#wasCacheRead,
      isCacheRestored: this.#isCacheRestored,
    };
  }

  set state({ hasRun, capacityRead, wasCacheRead, isCacheRestored }: ConfigSpaceState) {
    this.#hasRun = hasRun;
    this.#capacityRead = capacityRead;
    this.#wasCacheRead = wasCacheRead;
    this.#isCacheRestored = isCacheRestored;
  }

  /** QSD differs: it gives the front of the space, whatever offset it is asked for. */
  get(payload: Payload): Answer {
    const offset = payload.u32(0);
    const bytes = payload.u32(4);
    const config = this.#parts.device.config();
    if (offset + bytes > config.length) return { payload: new Uint8Array(0) };
    const reads = (at: number, count: number) => offset <= at && at + count <= offset + bytes;
    if (reads(VIRTIO_BLK_CONFIG_CAPACITY, CAPACITY_BYTES)) this.#capacityRead = this.#capacity();
    if (reads(VIRTIO_BLK_CONFIG_WCE, 1) && !this.#hasRun) this.#wasCacheRead = true;
    const reply = payload.u8.slice();
    reply.set(config.subarray(offset, offset + bytes), vu.VHOST_USER_CONFIG_HDR_SIZE);
    return { payload: reply };
  }

  async set(payload: Payload): Promise<Answer> {
    const { device, flush } = this.#parts;
    const header = vu.VHOST_USER_CONFIG_HDR_SIZE;
    const data = payload.u8.subarray(header, header + payload.u32(4));
    const isOrdinary = payload.u32(8) === vu.VHOST_SET_CONFIG_TYPE_FRONTEND;
    if (!isOrdinary || !device.setConfig(payload.u32(0), data)) {
      return { fault: "Set virtio configuration space failed" };
    }
    this.#keep();
    // The driver will not flush what it wrote until now.
    if (device.writeCache === false && (await flush()) < 0) {
      return { refusal: "Cannot flush what was written through the cache" };
    }
    return null;
  }

  /** Another front-end begins. */
  forget(): void {
    this.state = {
      hasRun: false,
      capacityRead: null,
      wasCacheRead: false,
      isCacheRestored: false,
    };
    this.#inflight = null;
  }

  /** The area that the front-end brought, mapped as long as rings may start. */
  setInflight(area: InflightArea): void {
    this.#inflight = area;
    const kept = area.writeCache;
    if (kept !== null) {
      this.#parts.device.writeCache = kept;
      this.#isCacheRestored = true;
    }
    this.#keep();
  }

  /** A ring begins for the first time in this session. `isNew`: its driver has not used it yet. */
  ringStarts(isNew: boolean): void {
    const { device } = this.#parts;
    if (this.#wasCacheRead && !this.#isCacheRestored) {
      // Who is new here, and goes on with a ring, brought a driver from another host.
      if (!isNew) device.writeCache = null;
      else if (!this.#hasRun) device.writeCache = this.#isCacheOn();
    }
    this.#keep();
    this.#hasRun = true;
  }

  /** For the time when rings run: before that, it is not the time. */
  tellIfChanged(): void {
    if (this.#capacityRead !== this.#capacity()) this.#parts.onChanged();
  }

  #keep(): void {
    if (this.#inflight !== null) this.#inflight.writeCache = this.#parts.device.writeCache;
  }

  #capacity(): bigint {
    const { buffer } = this.#parts.device.config();
    return new DataView(buffer).getBigUint64(VIRTIO_BLK_CONFIG_CAPACITY, true);
  }

  #isCacheOn(): boolean {
    return this.#parts.device.config()[VIRTIO_BLK_CONFIG_WCE] !== 0;
  }
}
