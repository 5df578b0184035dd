/** A block node in memory that waits, fails and answers as a test tells it. */
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  MAPPED,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  ZERO,
} from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";

const LIMITS: BlockLimits = {
  requestAlignment: 1,
  memoryAlignment: 1,
  transferBytesMax: 2 ** 31 - 4096,
  discardAlignment: 1,
};

export class FakeNode implements BlockNode {
  readonly nodeName: string = "fake";
  readonly driver = "fake";
  readonly writable = true;
  data: Uint8Array;
  readonly limits: BlockLimits;
  /** What was asked of it, in order. */
  readonly calls: { op: Op; offset: number; bytes: number; flags: number }[] = [];
  /** -errno of an operation from now on, 0 for success. */
  fails: (op: Op, offset: number) => number = () => 0;
  /** Where a host file has it: -1 for nowhere. */
  fd = -1;
  isKnown = false;
  /** One extent; all of it data unless given. */
  status: (offset: number, bytes: number, out: BlockStatus) => number | Promise<number>;
  #reactor: Reactor;
  #held = false;
  #waiting: (() => void)[] = [];

  constructor(reactor: Reactor, bytes: number, limits: Partial<BlockLimits> = {}) {
    this.#reactor = reactor;
    this.data = new Uint8Array(bytes);
    this.limits = { ...LIMITS, ...limits };
    this.status = (_offset, length, out) => {
      out.bytes = length;
      out.depth = 1;
      out.flags = STATUS_DATA | STATUS_ALLOCATED;
      return 0;
    };
  }

  get bytes(): number {
    return this.data.length;
  }

  /** Keeps what fits; new bytes are zeroes. */
  resize(bytes: number): void {
    const old = this.data;
    this.data = new Uint8Array(bytes);
    this.data.set(old.subarray(0, bytes));
  }

  /** Operations that have been asked for and wait for go(). */
  get waitingCount(): number {
    return this.#waiting.length;
  }

  /** From now on everything waits. */
  hold(): void {
    this.#held = true;
  }

  go(): void {
    this.#held = false;
    this.#reactor.asyncResumed();
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.fd = this.fd;
    out.offset = offset;
    out.bytes = bytes;
    if (op === OP_CACHE) return ZERO;
    return this.fd >= 0 && (op <= OP_WRITE || op === OP_FLUSH) ? MAPPED : SLOW;
  }

  async read(offset: number, bytes: number, address: number): Promise<number> {
    const error = await this.#do(OP_READ, offset, bytes, 0);
    if (error === 0) this.#at(address, bytes).set(this.data.subarray(offset, offset + bytes));
    return error;
  }

  async write(offset: number, bytes: number, address: number, flags: number): Promise<number> {
    const error = await this.#do(OP_WRITE, offset, bytes, flags);
    if (error === 0) this.data.set(this.#at(address, bytes), offset);
    return error;
  }

  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    const error = await this.#do(OP_WRITE_ZEROES, offset, bytes, flags);
    if (error === 0) this.data.fill(0, offset, offset + bytes);
    return error;
  }

  discard(offset: number, bytes: number): Promise<number> {
    return this.#do(OP_DISCARD, offset, bytes, 0);
  }

  flush(): Promise<number> {
    return this.#do(OP_FLUSH, 0, 0, 0);
  }

  blockStatus(offset: number, bytes: number, out: BlockStatus): number | Promise<number> {
    return this.status(offset, bytes, out);
  }

  isKnownData(): boolean {
    return this.isKnown;
  }

  onMappedError(_op: Op, errno: number): number {
    return errno;
  }

  async setPermissions(): Promise<void> {}

  describe(): Record<string, unknown> {
    return {};
  }

  async close(): Promise<void> {}

  async #do(op: Op, offset: number, bytes: number, flags: number): Promise<number> {
    this.calls.push({ op, offset, bytes, flags });
    if (this.#held) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.fails(op, offset);
  }

  #at(address: number, bytes: number): Uint8Array {
    const at = address - this.#reactor.memory.address;
    return this.#reactor.memory.u8.subarray(at, at + bytes);
  }
}
