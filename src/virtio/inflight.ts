/**
 * The shared area in which the chains in flight of all queues are tracked. The front-end keeps its
 * file while a back-end is started again. Thread: iothread.
 * Spec: vhost-user.rst "Inflight I/O tracking", GET_INFLIGHT_FD, SET_INFLIGHT_FD
 *
 * Nobody but the back-end looks into it, so an area made here ends with a trailer of our own: what
 * else the next back-end has to know, and front-ends don't tell again.
 */
import {
  F_ADD_SEALS,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
} from "../abi/memfd.ts";
import { INFLIGHT_ALIGNMENT } from "../abi/vhost-user-inflight.ts";
import { VIRTQ_SIZE_MAX } from "../abi/virtio-ring.ts";
import { EINVAL } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { packedStateBytes } from "./packed-state.ts";
import { SharedFile, type SharedFilePlace } from "./shared-file.ts";
import { splitStateBytes } from "./split-state.ts";

export interface InflightShape {
  readonly queueCount: number;
  readonly queueSize: number;
  /** VIRTIO_F_RING_PACKED was negotiated. */
  readonly packed: boolean;
}

// The trailer, at the very end: u32 magic[2], write cache.
const TRAILER_BYTES = INFLIGHT_ALIGNMENT;
const TRAILER_MAGIC = [0x7074756f, 0x3174726f] as const;
const TRAILER_WRITE_CACHE_U32 = 2;
const WRITE_CACHE_UNKNOWN = 0;
const WRITE_CACHE_ON = 1;
const WRITE_CACHE_OFF = 2;

function regionBytes({ queueSize, packed }: InflightShape): number {
  const bytes = packed ? packedStateBytes(queueSize) : splitStateBytes(queueSize);
  return Math.ceil(bytes / INFLIGHT_ALIGNMENT) * INFLIGHT_ALIGNMENT;
}

function isSane({ queueCount, queueSize }: InflightShape): boolean {
  return queueCount >= 1 && queueSize >= 1 && queueSize <= VIRTQ_SIZE_MAX;
}

export class InflightArea {
  readonly shape: InflightShape;
  #file: SharedFile;
  #trailer: Uint32Array | null;

  /** Of a mapping that becomes its own. */
  constructor(shape: InflightShape, file: SharedFile) {
    this.shape = shape;
    this.#file = file;
    this.#trailer = findTrailer(shape, file);
  }

  get place(): SharedFilePlace {
    return this.#file.place;
  }

  /** What mmap() of an area made here takes. */
  static bytes(shape: InflightShape): number {
    return shape.queueCount * regionBytes(shape) + TRAILER_BYTES;
  }

  /** A new file with an area for `shape`, empty: its fd, the caller's, or -errno. */
  static create(linux: Linux, shape: InflightShape): number {
    if (!isSane(shape)) return -EINVAL;
    const fd = linux.memfdCreate("inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return fd;
    const bytes = InflightArea.bytes(shape);
    const result = linux.ftruncate(fd, bytes);
    const file = result < 0 ? result : SharedFile.map(linux, fd, 0, bytes);
    if (typeof file === "number") {
      linux.close(fd);
      return file;
    }
    new Uint32Array(file.view(bytes - TRAILER_BYTES, TRAILER_BYTES)).set(TRAILER_MAGIC);
    file.unmap();
    linux.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    return fd;
  }

  /**
   * Maps the area of `bytes` at `offset`, which another back-end may have made; the fd may be
   * closed then. Returns it or -errno.
   */
  static open(
    linux: Linux,
    fd: number,
    shape: InflightShape,
    { offset, bytes }: { readonly offset: number; readonly bytes: number },
  ): InflightArea | number {
    // The fields of a region are aligned.
    if (!isSane(shape) || offset % 8 !== 0) return -EINVAL;
    if (!(bytes >= shape.queueCount * regionBytes(shape))) return -EINVAL;
    const file = SharedFile.map(linux, fd, offset, bytes);
    return typeof file === "number" ? file : new InflightArea(shape, file);
  }

  /** Of one queue of `size` entries; null: the area has none that large. */
  region(index: number, size: number): ArrayBuffer | null {
    if (index >= this.shape.queueCount || size > this.shape.queueSize) return null;
    const bytes = regionBytes(this.shape);
    return this.#file.view(index * bytes, bytes);
  }

  /** What the driver believes of the write cache; null: nobody knows. */
  get writeCache(): boolean | null {
    const state = this.#trailer?.[TRAILER_WRITE_CACHE_U32];
    return state === WRITE_CACHE_ON ? true : state === WRITE_CACHE_OFF ? false : null;
  }

  /** For the next back-end, from this moment on. Lost in an area that was not made here. */
  set writeCache(isOn: boolean | null) {
    const known = isOn ? WRITE_CACHE_ON : WRITE_CACHE_OFF;
    const state = isOn === null ? WRITE_CACHE_UNKNOWN : known;
    if (this.#trailer !== null) Atomics.store(this.#trailer, TRAILER_WRITE_CACHE_U32, state);
  }

  /** Once no queue uses it. */
  unmap(): void {
    this.#trailer = null;
    this.#file.unmap();
  }
}

/** Null: it is another back-end's area, or an older one. */
function findTrailer(shape: InflightShape, file: SharedFile): Uint32Array | null {
  const at = file.bytes - TRAILER_BYTES;
  if (at < shape.queueCount * regionBytes(shape) || at % INFLIGHT_ALIGNMENT !== 0) return null;
  const words = new Uint32Array(file.view(at, TRAILER_BYTES));
  return TRAILER_MAGIC.every((word, i) => words[i] === word) ? words : null;
}
