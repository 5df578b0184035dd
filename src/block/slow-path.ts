/**
 * The requests that no single operation serves: unaligned ones on nodes with an alignment, ranges
 * in several places, long ones, nodes that answer SLOW. Thread: iothread; everything may suspend.
 */
import type { Reactor } from "../io/reactor.ts";
import { EIO, ENOTSUP } from "../runtime/errno.ts";
import {
  type BlockLimits,
  type BlockNode,
  MAPPED,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_FUA,
  REQ_NO_FALLBACK,
  type Resolution,
  ZERO,
} from "./node.ts";
import { type WriteGate, writeGateOf } from "./write-gate.ts";

/** Bounce and zero buffers; a multiple of any alignment. */
const BOUNCE_BYTES = 256 * 1024;
/** One discard or write-zeroes given to a node: the host is not kept busy for long by one call. */
const ZEROES_BYTES_MAX = 1024 * 1024 * 1024;

export class SlowPath {
  #reactor: Reactor;
  #node: BlockNode;
  #gate: WriteGate;

  constructor(reactor: Reactor, node: BlockNode) {
    this.#reactor = reactor;
    this.#node = node;
    this.#gate = writeGateOf(reactor);
  }

  /** A request in bounds. Returns 0 or -errno. */
  async run(
    op: Op,
    offset: number,
    bytes: number,
    address: number,
    flags: number,
  ): Promise<number> {
    switch (op) {
      case OP_READ:
        return this.#read(offset, bytes, address);
      case OP_FLUSH:
        return this.#flush();
      case OP_WRITE:
        return this.#thenFlush(await this.#write(offset, bytes, address), flags);
      case OP_DISCARD:
        return this.#thenFlush(await this.#discard(offset, bytes), flags);
      case OP_WRITE_ZEROES:
        return this.#thenFlush(await this.#writeZeroes(offset, bytes, flags), flags);
      default:
        return 0;
    }
  }

  async #flush(): Promise<number> {
    const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
    const kind = this.#node.resolve(OP_FLUSH, 0, 0, out);
    if (kind === ZERO) return 0;
    if (kind !== MAPPED) return this.#node.flush();
    const result = await this.#reactor.op((engine, token) => engine.fsync(out.fd, true, token));
    return result < 0 ? this.#node.onMappedError(OP_FLUSH, result) : 0;
  }

  async #thenFlush(result: number, flags: number): Promise<number> {
    return result === 0 && (flags & REQ_FUA) !== 0 ? this.#flush() : result;
  }

  async #read(offset: number, bytes: number, address: number): Promise<number> {
    if (isAligned(this.#node.limits, offset, bytes, address)) {
      return this.#transfer(OP_READ, offset, bytes, address);
    }
    const { memory } = this.#reactor;
    return this.#bounced(offset, bytes, async (start, end, buffer, from, to) => {
      const result = await this.#transfer(OP_READ, start, end - start, buffer);
      if (result === 0) memory.copy(address + (from - offset), buffer + (from - start), to - from);
      return result;
    });
  }

  async #write(offset: number, bytes: number, address: number): Promise<number> {
    if (this.#node.limits.requestAlignment === 1) {
      return this.#transfer(OP_WRITE, offset, bytes, address);
    }
    if (isAligned(this.#node.limits, offset, bytes, address)) {
      await this.#gate.enter();
      const result = await this.#transfer(OP_WRITE, offset, bytes, address);
      this.#gate.leave();
      return result;
    }
    await this.#gate.enterAlone();
    const result = await this.#readModifyWrite(offset, bytes, address);
    this.#gate.leaveAlone();
    return result;
  }

  /** `address` 0: zeroes. Alone in the gate. */
  #readModifyWrite(offset: number, bytes: number, address: number): Promise<number> {
    const { memory } = this.#reactor;
    return this.#bounced(offset, bytes, async (start, end, buffer, from, to) => {
      if (from > start || to < end) {
        const result = await this.#transfer(OP_READ, start, end - start, buffer);
        if (result < 0) return result;
      }
      if (address === 0) memory.zero(buffer + (from - start), to - from);
      else memory.copy(buffer + (from - start), address + (from - offset), to - from);
      return this.#transfer(OP_WRITE, start, end - start, buffer);
    });
  }

  /**
   * Calls `step` for the aligned ranges [start, end) that cover the request, with a buffer of that
   * size and the part [from, to) that the request covers; ends at the first error.
   */
  async #bounced(
    offset: number,
    bytes: number,
    step: (start: number, end: number, buffer: number, from: number, to: number) => Promise<number>,
  ): Promise<number> {
    const { memory, buffers } = this.#reactor;
    const alignment = this.#node.limits.requestAlignment;
    const at = await this.#reactor.allocate(BOUNCE_BYTES);
    let result = 0;
    for (let from = offset; from < offset + bytes && result === 0; ) {
      const start = from - (from % alignment);
      const to = Math.min(offset + bytes, start + BOUNCE_BYTES);
      const end = roundUp(to, alignment);
      result = await step(start, end, memory.address + at, from, to);
      from = to;
    }
    buffers.free(at);
    return result;
  }

  /** Reads or writes an aligned range wherever its parts live. A file's missing tail is zeroes. */
  async #transfer(
    op: typeof OP_READ | typeof OP_WRITE,
    offset: number,
    bytes: number,
    address: number,
  ): Promise<number> {
    const node = this.#node;
    const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
    for (let done = 0; done < bytes; ) {
      const rest = Math.min(bytes - done, node.limits.transferBytesMax);
      const kind = node.resolve(op, offset + done, rest, out);
      const part = Math.min(rest, out.bytes);
      let result: number;
      if (kind === MAPPED) {
        result = await this.#transferMapped(op, out, part, address + done);
      } else if (kind === ZERO && op === OP_READ) {
        this.#reactor.memory.zero(address + done, part);
        result = part;
      } else if (op === OP_READ) {
        result = (await node.read(offset + done, rest, address + done)) || rest;
      } else {
        result = (await node.write(offset + done, rest, address + done, 0)) || rest;
      }
      if (result < 0) return result;
      done += result;
    }
    return 0;
  }

  /** Returns the bytes done, at least 1, or -errno. */
  async #transferMapped(
    op: typeof OP_READ | typeof OP_WRITE,
    { fd, offset }: Resolution,
    bytes: number,
    address: number,
  ): Promise<number> {
    const { memory } = this.#reactor;
    const { requestAlignment } = this.#node.limits;
    const result = await this.#reactor.op((engine, token) => {
      if (op === OP_READ) engine.read(fd, address, bytes, offset, token);
      else engine.write(fd, address, bytes, offset, 0, token);
    });
    if (result < 0) return this.#node.onMappedError(op, result);
    if (op === OP_WRITE) return result > 0 ? result : -EIO;
    // Short at no block's end, or nothing: the host file ends here.
    if (result === 0 || result % requestAlignment !== 0) {
      memory.zero(address + result, bytes - result);
      return bytes;
    }
    return result;
  }

  async #writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    const alignment = this.#node.limits.requestAlignment;
    const end = offset + bytes;
    const first = Math.min(roundUp(offset, alignment), end);
    const last = Math.max(end - (end % alignment), first);
    if ((first > offset || last < end) && (flags & REQ_NO_FALLBACK) !== 0) return -ENOTSUP;
    let result = await this.#zeroPart(offset, first - offset);
    for (let at = first; at < last && result === 0; ) {
      const part = Math.min(last - at, ZEROES_BYTES_MAX);
      result = await this.#zeroAligned(at, part, flags);
      at += part;
    }
    return result === 0 ? this.#zeroPart(last, end - last) : result;
  }

  async #zeroAligned(offset: number, bytes: number, flags: number): Promise<number> {
    if (this.#node.limits.requestAlignment > 1) await this.#gate.enter();
    let result = await this.#node.writeZeroes(offset, bytes, flags & ~REQ_FUA);
    if (result === -ENOTSUP && (flags & REQ_NO_FALLBACK) === 0) {
      result = await this.#writeZeroesByHand(offset, bytes);
    }
    if (this.#node.limits.requestAlignment > 1) this.#gate.leave();
    return result;
  }

  async #writeZeroesByHand(offset: number, bytes: number): Promise<number> {
    const { memory, buffers } = this.#reactor;
    const at = await this.#reactor.allocate(BOUNCE_BYTES);
    memory.u8.fill(0, at, at + BOUNCE_BYTES);
    let result = 0;
    for (let done = 0; done < bytes && result === 0; done += BOUNCE_BYTES) {
      const part = Math.min(bytes - done, BOUNCE_BYTES);
      result = await this.#transfer(OP_WRITE, offset + done, part, memory.address + at);
    }
    buffers.free(at);
    return result;
  }

  /** Zeroes a part of one block. */
  async #zeroPart(offset: number, bytes: number): Promise<number> {
    if (bytes === 0) return 0;
    await this.#gate.enterAlone();
    const result = await this.#readModifyWrite(offset, bytes, 0);
    this.#gate.leaveAlone();
    return result;
  }

  /** Discard is a hint: parts of blocks are left alone, and so is what the host refuses. */
  async #discard(offset: number, bytes: number): Promise<number> {
    const { discardAlignment } = this.#node.limits;
    const end = offset + bytes;
    const last = end - (end % discardAlignment);
    for (let at = roundUp(offset, discardAlignment); at < last; ) {
      const part = Math.min(last - at, ZEROES_BYTES_MAX);
      const result = await this.#node.discard(at, part);
      if (result === -ENOTSUP) return 0;
      if (result < 0) return result;
      at += part;
    }
    return 0;
  }
}

/** The node takes a READ or WRITE at this place, of this length, from this memory. */
export function isAligned(
  { requestAlignment, memoryAlignment }: BlockLimits,
  offset: number,
  bytes: number,
  address: number,
): boolean {
  if (requestAlignment === 1) return true;
  return (
    offset % requestAlignment === 0 &&
    bytes % requestAlignment === 0 &&
    address % memoryAlignment === 0
  );
}

function roundUp(value: number, alignment: number): number {
  const over = value % alignment;
  return over === 0 ? value : value + alignment - over;
}
