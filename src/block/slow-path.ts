/**
 * The requests that no single operation serves: unaligned ones on nodes with an alignment here,
 * all others in ChildIo. Thread: iothread; everything may suspend.
 */
import type { Reactor } from "../io/reactor.ts";
import { ENOTSUP } from "../runtime/errno.ts";
import { ChildIo, roundUp } from "./child-io.ts";
import {
  ALIGNMENT_MAX,
  type BlockLimits,
  type BlockNode,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_FUA,
  REQ_NO_FALLBACK,
} from "./node.ts";
import { writeGateOf } from "./write-gate.ts";

const BOUNCE_BYTES = ALIGNMENT_MAX;

export class SlowPath {
  #reactor: Reactor;
  #node: BlockNode;
  #io: ChildIo;

  constructor(reactor: Reactor, node: BlockNode) {
    this.#reactor = reactor;
    this.#node = node;
    this.#io = new ChildIo(reactor, node);
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
        return this.#io.flush();
      case OP_WRITE:
        return this.#thenFlush(await this.#write(offset, bytes, address), flags);
      case OP_DISCARD:
        return this.#thenFlush(await this.#io.discard(offset, bytes), flags);
      case OP_WRITE_ZEROES:
        return this.#thenFlush(await this.#writeZeroes(offset, bytes, flags), flags);
      case OP_CACHE:
        return this.#io.copyUp(offset, bytes);
    }
  }

  async #thenFlush(result: number, flags: number): Promise<number> {
    return result === 0 && (flags & REQ_FUA) !== 0 ? this.#io.flush() : result;
  }

  async #read(offset: number, bytes: number, address: number): Promise<number> {
    if (isAligned(this.#node.limits, offset, bytes, address)) {
      return this.#io.read(offset, bytes, address);
    }
    const { memory } = this.#reactor;
    return this.#bounced(offset, bytes, async (start, end, buffer, from, to) => {
      const result = await this.#io.read(start, end - start, buffer);
      if (result === 0) memory.copy(address + (from - offset), buffer + (from - start), to - from);
      return result;
    });
  }

  async #write(offset: number, bytes: number, address: number): Promise<number> {
    if (this.#node.limits.requestAlignment === 1) {
      return this.#io.write(offset, bytes, address, 0);
    }
    const gate = writeGateOf(this.#reactor, this.#node);
    if (isAligned(this.#node.limits, offset, bytes, address)) {
      await gate.enter();
      const result = await this.#io.write(offset, bytes, address, 0);
      gate.leave();
      return result;
    }
    await gate.enterAlone();
    const result = await this.#readModifyWrite(offset, bytes, address);
    gate.leaveAlone();
    return result;
  }

  /** `address` 0: zeroes. Alone in the gate. */
  #readModifyWrite(offset: number, bytes: number, address: number): Promise<number> {
    const { memory } = this.#reactor;
    return this.#bounced(offset, bytes, async (start, end, buffer, from, to) => {
      if (from > start || to < end) {
        const result = await this.#io.read(start, end - start, buffer);
        if (result < 0) return result;
      }
      if (address === 0) memory.zero(buffer + (from - start), to - from);
      else memory.copy(buffer + (from - start), address + (from - offset), to - from);
      return this.#io.write(start, end - start, buffer, 0);
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

  async #writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    const alignment = this.#node.limits.requestAlignment;
    const end = offset + bytes;
    const first = Math.min(roundUp(offset, alignment), end);
    const last = Math.max(end - (end % alignment), first);
    if ((first > offset || last < end) && (flags & REQ_NO_FALLBACK) !== 0) return -ENOTSUP;
    let result = await this.#zeroPart(offset, first - offset);
    if (result === 0 && last > first) result = await this.#zeroBlocks(first, last - first, flags);
    return result === 0 ? this.#zeroPart(last, end - last) : result;
  }

  async #zeroBlocks(offset: number, bytes: number, flags: number): Promise<number> {
    const isGated = this.#node.limits.requestAlignment > 1;
    const gate = isGated ? writeGateOf(this.#reactor, this.#node) : null;
    await gate?.enter();
    const result = await this.#io.writeZeroes(offset, bytes, flags & ~REQ_FUA);
    gate?.leave();
    return result;
  }

  /** Zeroes a part of one block. */
  async #zeroPart(offset: number, bytes: number): Promise<number> {
    if (bytes === 0) return 0;
    const gate = writeGateOf(this.#reactor, this.#node);
    await gate.enterAlone();
    const result = await this.#readModifyWrite(offset, bytes, 0);
    gate.leaveAlone();
    return result;
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
