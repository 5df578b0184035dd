/**
 * I/O on a node from above: wherever the parts of a range live, however long it is. For the async
 * methods of filters and formats, on their children, and for SlowPath. Thread: iothread; everything
 * may suspend.
 *
 * Offsets and lengths keep to the node's request alignment, addresses to its memory alignment: a
 * filter whose limits are its child's gets no others, a format aligns its own. All results are 0 or
 * -errno.
 */
import type { Reactor } from "../io/reactor.ts";
import { EIO, ENOTSUP } from "../runtime/errno.ts";
import {
  ALIGNMENT_MAX,
  type BlockNode,
  MAPPED,
  OP_CACHE,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  REQ_FUA,
  REQ_NO_FALLBACK,
  type Resolution,
  ZERO,
} from "./node.ts";

/** Buffer of zeroes. */
const ZEROES_BYTES = ALIGNMENT_MAX;
/** One discard or write-zeroes given to a node: the host is not kept busy for long by one call. */
const CALL_BYTES_MAX = 1024 * 1024 * 1024;

export class ChildIo {
  readonly node: BlockNode;
  #reactor: Reactor;

  constructor(reactor: Reactor, node: BlockNode) {
    this.#reactor = reactor;
    this.node = node;
  }

  /** To `bytes` bytes of native memory at `address`. A host file's missing tail is zeroes. */
  read(offset: number, bytes: number, address: number): Promise<number> {
    return this.#transfer(OP_READ, offset, bytes, address);
  }

  /** `flags`: REQ_FUA or 0. */
  async write(offset: number, bytes: number, address: number, flags: number): Promise<number> {
    return this.#thenFlush(await this.#transfer(OP_WRITE, offset, bytes, address), flags);
  }

  /** Writes zeroes by hand where the node can't do better, unless REQ_NO_FALLBACK forbids it. */
  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    for (let done = 0; done < bytes; ) {
      const part = Math.min(bytes - done, CALL_BYTES_MAX);
      let result = await this.node.writeZeroes(offset + done, part, flags & ~REQ_FUA);
      if (result === -ENOTSUP && (flags & REQ_NO_FALLBACK) === 0) {
        result = await this.#writeZeroesByHand(offset + done, part);
      }
      if (result < 0) return result;
      done += part;
    }
    return this.#thenFlush(0, flags);
  }

  /** A hint, for any range: parts of blocks are left alone, and so is what the host refuses. */
  async discard(offset: number, bytes: number): Promise<number> {
    const { discardAlignment } = this.node.limits;
    const end = offset + bytes;
    const last = end - (end % discardAlignment);
    for (let at = roundUp(offset, discardAlignment); at < last; ) {
      const part = Math.min(last - at, CALL_BYTES_MAX);
      const result = await this.node.discard(at, part);
      if (result === -ENOTSUP) return 0;
      if (result < 0) return result;
      at += part;
    }
    return 0;
  }

  async flush(): Promise<number> {
    const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
    const kind = this.node.resolve(OP_FLUSH, 0, 0, out);
    if (kind === ZERO) return 0;
    if (kind !== MAPPED) return this.node.flush();
    const result = await this.#reactor.op((engine, token) => engine.fsync(out.fd, true, token));
    return result < 0 ? this.node.onMappedError(OP_FLUSH, result) : 0;
  }

  /** See BlockNode.copyUp(). */
  async copyUp(offset: number, bytes: number): Promise<number> {
    const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
    if (this.node.resolve(OP_CACHE, offset, bytes, out) === ZERO) return 0;
    return (await this.node.copyUp?.(offset, bytes)) ?? 0;
  }

  async #thenFlush(result: number, flags: number): Promise<number> {
    return result === 0 && (flags & REQ_FUA) !== 0 ? this.flush() : result;
  }

  async #transfer(
    op: typeof OP_READ | typeof OP_WRITE,
    offset: number,
    bytes: number,
    address: number,
  ): Promise<number> {
    const { node } = this;
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
      } else if (kind === ZERO) {
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
    const { requestAlignment } = this.node.limits;
    const result = await this.#reactor.op((engine, token) => {
      if (op === OP_READ) engine.read(fd, address, bytes, offset, token);
      else engine.write(fd, address, bytes, offset, 0, token);
    });
    if (result < 0) return this.node.onMappedError(op, result);
    if (op === OP_WRITE) return result > 0 ? result : -EIO;
    // Short at no block's end, or nothing: the host file ends here.
    if (result === 0 || result % requestAlignment !== 0) {
      this.#reactor.memory.zero(address + result, bytes - result);
      return bytes;
    }
    return result;
  }

  async #writeZeroesByHand(offset: number, bytes: number): Promise<number> {
    const { memory, buffers } = this.#reactor;
    const at = await this.#reactor.allocate(ZEROES_BYTES);
    memory.u8.fill(0, at, at + ZEROES_BYTES);
    let result = 0;
    for (let done = 0; done < bytes && result === 0; done += ZEROES_BYTES) {
      const part = Math.min(bytes - done, ZEROES_BYTES);
      result = await this.#transfer(OP_WRITE, offset + done, part, memory.address + at);
    }
    buffers.free(at);
    return result;
  }
}

export function roundUp(value: number, alignment: number): number {
  const over = value % alignment;
  return over === 0 ? value : value + alignment - over;
}
