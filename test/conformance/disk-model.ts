/**
 * Random concurrent operations on a disk over NBD, compared with a byte array. A range that a
 * request in flight may change belongs to that request alone; everything else overlaps at will.
 */

import {
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_READ,
  NBD_CMD_WRITE,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_STATE_ZERO,
} from "../../src/abi/nbd.ts";
import { assertSameBytes, pattern } from "../support/images.ts";
import { type NbdClient, NbdError } from "../support/nbd-client.ts";
import { Random } from "../support/random.ts";

interface Range {
  readonly offset: number;
  readonly bytes: number;
}

const overlap = (a: Range, b: Range) =>
  a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;

export class DiskModel {
  readonly content: Buffer;
  readonly #random: Random;
  readonly #reading = new Set<Range>();
  readonly #changing = new Set<Range>();
  /** How often each kind of operation was done. */
  readonly counts = new Map<string, number>();

  constructor(content: Uint8Array, seed: number) {
    this.content = Buffer.from(content);
    this.#random = new Random(seed);
  }

  /** Does `count` operations over the clients, `depth` at a time on each. */
  async run(clients: readonly NbdClient[], count: number, depth: number): Promise<void> {
    let left = count;
    const worker = async (client: NbdClient) => {
      while (left-- > 0) await this.#operate(client);
    };
    const workers = clients.flatMap((client) => Array.from({ length: depth }, () => client));
    await Promise.all(workers.map(worker));
  }

  async #operate(client: NbdClient): Promise<void> {
    const kind = this.#random.pick(KINDS);
    this.counts.set(kind, (this.counts.get(kind) ?? 0) + 1);
    if (kind === "flush") return await client.flush();
    if (kind === "outside") return await this.#outside(client);
    const changes = kind === "write" || kind === "zero" || kind === "trim";
    const range = this.#claim(changes);
    if (range === undefined) return;
    const claimed = changes ? this.#changing : this.#reading;
    claimed.add(range);
    try {
      await this.#on(client, kind, range);
    } catch (error) {
      throw new Error(`${kind} of ${range.bytes} bytes at ${range.offset}: ${error}`);
    } finally {
      claimed.delete(range);
    }
  }

  async #on(client: NbdClient, kind: Kind, range: Range): Promise<void> {
    const { offset, bytes } = range;
    const fua = this.#random.below(4) === 0 ? NBD_CMD_FLAG_FUA : 0;
    switch (kind) {
      case "write": {
        const data = pattern(bytes, this.#random.below(2 ** 31) + 1);
        await client.write(offset, data, fua);
        data.copy(this.content, offset);
        return;
      }
      case "zero":
        return await this.#zero(client, range, fua);
      case "trim":
        await client.trim(offset, bytes, fua);
        return await this.#learnCleared(client, range);
      case "status":
        return await this.#status(client, range);
      case "cache":
        return await client.cache(offset, bytes);
      default:
        return assertSameBytes(await client.read(offset, bytes), this.#slice(range));
    }
  }

  async #zero(client: NbdClient, range: Range, fua: number): Promise<void> {
    const { offset, bytes } = range;
    const more = this.#random.pick([0, 0, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_FAST_ZERO]);
    try {
      await client.writeZeroes(offset, bytes, fua | more);
    } catch (error) {
      const refused = error instanceof NbdError && error.value === NBD_ENOTSUP;
      if (more !== NBD_CMD_FLAG_FAST_ZERO || !refused) throw error;
      // A part of it may have been quick.
      return await this.#learnCleared(client, range);
    }
    this.content.fill(0, offset, offset + bytes);
  }

  /** After a trim, or a refusal, each byte is what it was, or zero. */
  async #learnCleared(client: NbdClient, { offset, bytes }: Range): Promise<void> {
    const now = await client.read(offset, bytes);
    for (let i = 0; i < bytes; i++) {
      const byte = now[i] as number;
      if (byte !== 0 && byte !== this.content[offset + i]) {
        throw new Error(`byte ${offset + i} is ${byte} then`);
      }
      this.content[offset + i] = byte;
    }
  }

  /** What is said to read as zeroes must do so. */
  async #status(client: NbdClient, range: Range): Promise<void> {
    if (client.contexts.size === 0) return;
    const extents = (await client.blockStatus(range.offset, range.bytes)).get("base:allocation");
    let at = range.offset;
    for (const { length, flags } of extents ?? []) {
      const end = Math.min(at + length, range.offset + range.bytes);
      if ((flags & NBD_STATE_ZERO) !== 0) {
        const wrong = this.content.subarray(at, end).findIndex((byte) => byte !== 0);
        if (wrong >= 0) throw new Error(`byte ${at + wrong} is said to be zero`);
      }
      at += length;
    }
    if (at === range.offset) throw new Error("no extent");
  }

  async #outside(client: NbdClient): Promise<void> {
    const offset = this.content.length - this.#random.below(2000);
    const bytes = 2001 + this.#random.below(10_000);
    const read = await client.request(NBD_CMD_READ, offset, bytes);
    if (read.error !== NBD_EINVAL) throw new Error(`a read past the end: NBD error ${read.error}`);
    if (client.mode === "extended") return;
    const payload = new Uint8Array(bytes).fill(0xdd);
    const write = await client.request(NBD_CMD_WRITE, offset, bytes, { payload });
    if (write.error !== NBD_ENOSPC) throw new Error(`a write past the end: ${write.error}`);
  }

  /** A random range that no request in flight is in the way of. */
  #claim(changes: boolean): Range | undefined {
    for (let attempt = 0; attempt < 20; attempt++) {
      const bytes = 1 + this.#random.below(this.#random.pick(SIZES));
      const offset = this.#random.below(this.content.length - bytes);
      const aligned = this.#random.below(3) > 0 && bytes > 512;
      const range = aligned
        ? { offset: offset - (offset % 512), bytes: bytes - (bytes % 512) }
        : { offset, bytes };
      if ([...this.#changing].some((other) => overlap(other, range))) continue;
      if (changes && [...this.#reading].some((other) => overlap(other, range))) continue;
      return range;
    }
    return undefined;
  }

  #slice({ offset, bytes }: Range): Buffer {
    return this.content.subarray(offset, offset + bytes);
  }
}

const SIZES = [16, 600, 5000, 5000, 70_000, 200_000];

/** As often as they stand here. */
const KINDS = [
  ...["read", "read", "read", "read", "write", "write", "write", "write"],
  ...["zero", "trim", "status", "cache", "flush", "outside"],
] as const;
type Kind = (typeof KINDS)[number];
