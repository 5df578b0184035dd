/**
 * The image file, or an external data file, from the format's side: any offset and length, zeroes
 * behind its end, and metadata as bytes. Thread: iothread; everything may suspend.
 */
import type { Reactor } from "../../../io/reactor.ts";
import { ENOSPC } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import {
  type BlockNode,
  MAPPED,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Resolution,
} from "../../node.ts";
import { SlowPath } from "../../slow-path.ts";
import { truncateNode } from "../../truncate.ts";

/** Metadata goes through buffers of the pool, so much at a time. */
const PART_BYTES = 256 * 1024;

export class ImageFile {
  readonly node: BlockNode;
  #reactor: Reactor;
  #io: SlowPath;
  #resolution: Resolution = { fd: -1, offset: 0, bytes: 0 };
  #growth: Promise<number> = Promise.resolve(0);

  constructor(reactor: Reactor, node: BlockNode) {
    this.#reactor = reactor;
    this.node = node;
    this.#io = new SlowPath(reactor, node);
  }

  /** To native memory at `address`. 0 or -errno. */
  async read(offset: number, bytes: number, address: number): Promise<number> {
    const inside = Math.min(bytes, Math.max(0, this.node.bytes - offset));
    if (inside < bytes) this.#reactor.memory.zero(address + inside, bytes - inside);
    return inside === 0 ? 0 : this.#io.run(OP_READ, offset, inside, address, 0);
  }

  /** From native memory at `address`; the file is long enough. 0 or -errno. */
  async write(offset: number, bytes: number, address: number): Promise<number> {
    const { node } = this;
    const out = this.#resolution;
    if (node.limits.requestAlignment === 1 && bytes <= node.limits.transferBytesMax) {
      const kind = node.resolve(OP_WRITE, offset, bytes, out);
      if (kind === MAPPED && out.bytes >= bytes) {
        const { fd, offset: at } = out;
        const result = await this.#reactor.op((engine, token) =>
          engine.write(fd, address, bytes, at, 0, token),
        );
        if (result === bytes) return 0;
        // Otherwise once more, all of it, by who knows what to make of it.
      }
    }
    return this.#io.run(OP_WRITE, offset, bytes, address, 0);
  }

  /** `flags`: REQ_*. The file is long enough. 0 or -errno. */
  writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    return this.#io.run(OP_WRITE_ZEROES, offset, bytes, 0, flags);
  }

  /** A hint; what is behind the end is nobody's. 0 or -errno. */
  async discard(offset: number, bytes: number): Promise<number> {
    const inside = Math.min(bytes, this.node.bytes - offset);
    return inside <= 0 ? 0 : this.#io.run(OP_DISCARD, offset, inside, 0, 0);
  }

  flush(): Promise<number> {
    return this.#io.run(OP_FLUSH, 0, 0, 0, 0);
  }

  /**
   * Makes the file reach up to `end`, and a bit further if it can: not each time is worth a call to
   * the host. What is new reads as zeroes. 0 or -errno.
   */
  lengthen(end: number, more: number): Promise<number> {
    if (end <= this.node.bytes) return Promise.resolve(0);
    // One after the other: none may make it shorter again.
    this.#growth = this.#growth.then(() => this.#lengthen(end, more));
    return this.#growth;
  }

  async #lengthen(end: number, more: number): Promise<number> {
    if (end <= this.node.bytes) return 0;
    if (more > 0 && (await this.#truncate(end + more))) return 0;
    return (await this.#truncate(end)) ? 0 : -ENOSPC;
  }

  /** Cuts it, or makes it longer. False when that fails. */
  async truncate(bytes: number): Promise<boolean> {
    await this.#growth;
    return this.#truncate(bytes);
  }

  async #truncate(bytes: number): Promise<boolean> {
    try {
      await truncateNode(this.node, bytes);
      return true;
    } catch (error) {
      if (error instanceof OutportError) return false;
      throw error;
    }
  }

  /** Metadata: a copy, or -errno. */
  async readBytes(offset: number, bytes: number): Promise<Uint8Array | number> {
    const result = new Uint8Array(bytes);
    const { memory, buffers } = this.#reactor;
    const at = await this.#reactor.allocate(Math.min(bytes, PART_BYTES) || 1);
    let error = 0;
    for (let done = 0; done < bytes && error === 0; done += PART_BYTES) {
      const part = Math.min(PART_BYTES, bytes - done);
      error = await this.read(offset + done, part, memory.address + at);
      if (error === 0) result.set(memory.u8.subarray(at, at + part), done);
    }
    buffers.free(at);
    return error < 0 ? error : result;
  }

  /** Metadata. 0 or -errno. */
  async writeBytes(offset: number, bytes: Uint8Array): Promise<number> {
    const { memory, buffers } = this.#reactor;
    const at = await this.#reactor.allocate(Math.min(bytes.length, PART_BYTES) || 1);
    let error = 0;
    for (let done = 0; done < bytes.length && error === 0; done += PART_BYTES) {
      const part = bytes.subarray(done, done + PART_BYTES);
      memory.u8.set(part, at);
      error = await this.write(offset + done, part.length, memory.address + at);
    }
    buffers.free(at);
    return error;
  }
}
