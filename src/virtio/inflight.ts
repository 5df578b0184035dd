/**
 * The shared area in which the chains in flight of all queues are tracked. The front-end keeps its
 * file while a back-end is started again. Thread: iothread.
 * Spec: vhost-user.rst "Inflight I/O tracking", GET_INFLIGHT_FD, SET_INFLIGHT_FD
 */
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../abi/linux.ts";
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
import { splitStateBytes } from "./split-state.ts";

export interface InflightShape {
  readonly queueCount: number;
  readonly queueSize: number;
  /** VIRTIO_F_RING_PACKED was negotiated. */
  readonly packed: boolean;
}

/** An offset given to mmap() is a multiple of any page size. */
const MAP_ALIGNMENT = 65536;

function regionBytes({ queueSize, packed }: InflightShape): number {
  const bytes = packed ? packedStateBytes(queueSize) : splitStateBytes(queueSize);
  return Math.ceil(bytes / INFLIGHT_ALIGNMENT) * INFLIGHT_ALIGNMENT;
}

export class InflightArea {
  readonly shape: InflightShape;
  #linux: Linux;
  #address: number;
  #mappedBytes: number;
  #start: number;

  private constructor(linux: Linux, shape: InflightShape, address: number, mappedBytes: number) {
    this.#linux = linux;
    this.shape = shape;
    this.#address = address;
    this.#mappedBytes = mappedBytes;
    this.#start = address;
  }

  /** What mmap() of the area takes. */
  static bytes(shape: InflightShape): number {
    return shape.queueCount * regionBytes(shape);
  }

  /** A new file with an area for `shape`, empty: its fd, the caller's, or -errno. */
  static create(linux: Linux, shape: InflightShape): number {
    const { queueCount, queueSize } = shape;
    if (queueCount < 1 || queueSize < 1 || queueSize > VIRTQ_SIZE_MAX) return -EINVAL;
    const fd = linux.memfdCreate("inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return fd;
    const result = linux.ftruncate(fd, InflightArea.bytes(shape));
    if (result < 0) {
      linux.close(fd);
      return result;
    }
    linux.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    return fd;
  }

  /** Maps an area; the fd may be closed then. Returns it or -errno. */
  static open(
    linux: Linux,
    fd: number,
    offset: number,
    shape: InflightShape,
  ): InflightArea | number {
    const { queueCount, queueSize } = shape;
    if (queueCount < 1 || queueSize < 1 || queueSize > VIRTQ_SIZE_MAX) return -EINVAL;
    const bytes = InflightArea.bytes(shape);
    // The fields of a region are aligned.
    if (!Number.isSafeInteger(offset) || offset < 0 || offset % 8 !== 0) return -EINVAL;
    const status = linux.fstat(fd);
    if (typeof status === "number") return status;
    if (offset + bytes > status.bytes) return -EINVAL;
    const skipped = offset % MAP_ALIGNMENT;
    const protection = PROT_READ | PROT_WRITE;
    const length = skipped + bytes;
    const address = linux.mmap(0, length, protection, MAP_SHARED, fd, offset - skipped);
    if (address < 0) return address;
    const area = new InflightArea(linux, shape, address, length);
    area.#start = address + skipped;
    return area;
  }

  /** Of one queue of `size` entries; null: the area has none that large. */
  region(index: number, size: number): ArrayBuffer | null {
    if (index >= this.shape.queueCount || size > this.shape.queueSize) return null;
    const bytes = regionBytes(this.shape);
    // SAFETY: mapped until unmap(), which its owner calls when all queues have stopped.
    return this.#linux.ffi.view(this.#start + index * bytes, bytes);
  }

  unmap(): void {
    this.#linux.munmap(this.#address, this.#mappedBytes);
  }
}
