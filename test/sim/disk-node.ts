/** A simulated disk as the file node under a format driver: mapped, as host files are, or slow. */
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  MAPPED,
  OP_CACHE,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  type Op,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { OutportError } from "../../src/util/error.ts";
import type { SimDisk } from "./disk.ts";
import { simFd } from "./sim-engine.ts";

export class SimDiskNode implements BlockNode {
  readonly nodeName = "disk";
  readonly driver = "file";
  readonly writable = true;
  readonly limits: BlockLimits;
  readonly disk: SimDisk;
  #reactor: Reactor;
  /** -1: all that is asked of it is slow. */
  #fd: number;

  constructor(reactor: Reactor, disk: SimDisk, { requestAlignment = 1, isMapped = false } = {}) {
    this.#reactor = reactor;
    this.disk = disk;
    this.#fd = isMapped ? simFd(reactor, disk) : -1;
    this.limits = {
      requestAlignment,
      memoryAlignment: requestAlignment,
      transferBytesMax: 2 ** 31 - 4096,
      discardAlignment: 1,
    };
  }

  get bytes(): number {
    return Math.ceil(this.disk.bytes / 512) * 512;
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.fd = this.#fd;
    out.offset = offset;
    out.bytes = bytes;
    if (op === OP_CACHE) return ZERO;
    if (op !== OP_READ && op !== OP_WRITE && op !== OP_FLUSH) return SLOW;
    this.#checkAligned(offset, bytes);
    return this.#fd < 0 ? SLOW : MAPPED;
  }

  read(offset: number, bytes: number, address: number): Promise<number> {
    this.#checkAligned(offset, bytes);
    return this.disk.read(offset, this.#at(address, bytes));
  }

  write(offset: number, bytes: number, address: number): Promise<number> {
    this.#checkAligned(offset, bytes);
    return this.disk.write(offset, this.#at(address, bytes));
  }

  writeZeroes(offset: number, bytes: number): Promise<number> {
    this.#checkAligned(offset, bytes);
    return this.disk.write(offset, new Uint8Array(bytes));
  }

  discard(offset: number, bytes: number): Promise<number> {
    return this.disk.discard(offset, bytes);
  }

  flush(): Promise<number> {
    return this.disk.flush();
  }

  blockStatus(offset: number, bytes: number, out: BlockStatus): number {
    const inside = Math.min(bytes, this.disk.bytes - offset);
    out.flags = STATUS_ALLOCATED | (inside > 0 ? STATUS_DATA : STATUS_ZERO);
    out.bytes = inside > 0 ? inside : bytes;
    out.depth = 1;
    return 0;
  }

  isKnownData(): boolean {
    return false;
  }

  onMappedError(_op: Op, errno: number): number {
    return errno;
  }

  async setPermissions(): Promise<void> {}

  async truncate(bytes: number): Promise<void> {
    const result = await this.disk.setLength(bytes);
    if (result < 0) throw new OutportError("io", `truncate() said ${result}`);
  }

  describe(): Record<string, unknown> {
    return {};
  }

  async close(): Promise<void> {}

  /** What a driver must keep to on the host's disk. */
  #checkAligned(offset: number, bytes: number): void {
    const { requestAlignment } = this.limits;
    if (offset % requestAlignment === 0 && bytes % requestAlignment === 0) return;
    throw new Error(`offset ${offset}, bytes ${bytes}: not aligned to ${requestAlignment}`);
  }

  #at(address: number, bytes: number): Uint8Array {
    const at = address - this.#reactor.memory.address;
    return this.#reactor.memory.u8.subarray(at, at + bytes);
  }
}
