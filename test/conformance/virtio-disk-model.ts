/**
 * Random concurrent requests on the rings of a guest, compared with a byte array. A range that a
 * request in flight may change belongs to that request alone; everything else overlaps at will.
 */
import * as blk from "../../src/abi/virtio-blk.ts";
import { assertSameBytes, pattern } from "../support/images.ts";
import { Random } from "../support/random.ts";
import type { ClientQueue } from "../support/vhost-user-client.ts";
import type { GuestRam, Piece } from "../support/virtio-driver.ts";

const SECTOR = blk.VIRTIO_BLK_SECTOR_BYTES;
const DATA_BYTES_MAX = 128 * 1024;
const PIECES_MAX = 6;
const SIZES = [SECTOR, 4096, 4096, 16_384, DATA_BYTES_MAX];

/** As often as they stand here. */
const KINDS = [
  ...["read", "read", "read", "read", "write", "write", "write", "write"],
  ...["discard", "zero", "unmap", "flush", "outside", "id"],
] as const;
type Kind = (typeof KINDS)[number];

interface Range {
  readonly offset: number;
  readonly bytes: number;
}

/** Memory of one request, used again and again. */
interface Slot {
  readonly queue: ClientQueue;
  readonly header: number;
  readonly data: number;
  readonly status: number;
}

/** What is in flight in a slot. */
interface Flight {
  readonly kind: Kind | "learn";
  readonly range: Range;
  readonly status: number;
}

const overlap = (a: Range, b: Range) =>
  a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
const changes = (kind: Flight["kind"]) =>
  kind === "write" || kind === "discard" || kind === "zero" || kind === "unmap" || kind === "learn";

export interface VirtioDiskModelOptions {
  readonly ram: GuestRam;
  readonly queues: readonly ClientQueue[];
  /** Requests at a time in each queue. */
  readonly depth: number;
  readonly blockBytes: number;
  readonly content: Uint8Array;
  readonly writable: boolean;
  readonly seed: number;
}

export class VirtioDiskModel {
  readonly content: Uint8Array;
  /** How often each kind of request was made. */
  readonly counts = new Map<string, number>();
  readonly #options: VirtioDiskModelOptions;
  readonly #random: Random;
  readonly #idle: Slot[] = [];
  readonly #flights = new Map<Slot, Flight>();
  /** By queue and id of the chain. */
  readonly #slots = new Map<ClientQueue, Map<number, Slot>>();

  constructor(options: VirtioDiskModelOptions) {
    const { ram, queues, depth } = options;
    this.#options = options;
    this.content = options.content.slice();
    this.#random = new Random(options.seed);
    for (const queue of queues) {
      this.#slots.set(queue, new Map());
      for (let i = 0; i < depth; i++) {
        const header = ram.allocate(16);
        const status = ram.allocate(1, 1);
        this.#idle.push({ queue, header, status, data: ram.allocate(DATA_BYTES_MAX, 512) });
      }
    }
  }

  /** Makes `count` requests, and waits for the last. `pause` lets the device work. */
  async run(count: number, pause: () => Promise<void>): Promise<void> {
    let left = count;
    while (left > 0 || this.#flights.size > 0) {
      for (const slot of left > 0 ? this.#idle.splice(0) : []) {
        if (left-- > 0 && this.#begin(slot)) continue;
        this.#idle.push(slot);
      }
      let isQuiet = true;
      for (const [queue, slots] of this.#slots) {
        // Their ids are free again: what follows may have the same.
        const ended = queue.queue.collect().map(({ id }) => slots.get(id)!);
        if (ended.length > 0) isQuiet = false;
        for (const slot of ended) this.#end(slot);
      }
      if (isQuiet) await pause();
    }
  }

  /** False: there is no place for it now. */
  #begin(slot: Slot): boolean {
    const kind = this.#random.pick(KINDS);
    const range = this.#claim(kind);
    if (range === undefined) return false;
    this.counts.set(kind, (this.counts.get(kind) ?? 0) + 1);
    const { ram } = this.#options;
    if (kind === "write") {
      ram.u8.set(pattern(range.bytes, this.#random.below(2 ** 31) + 1), slot.data);
    }
    this.#submit(slot, { kind, range, status: this.#statusOf(kind) });
    return true;
  }

  #statusOf(kind: Kind): number {
    if (kind === "outside") return blk.VIRTIO_BLK_S_IOERR;
    return this.#options.writable || !changes(kind) ? blk.VIRTIO_BLK_S_OK : blk.VIRTIO_BLK_S_IOERR;
  }

  #submit(slot: Slot, flight: Flight): void {
    const { ram } = this.#options;
    const { queue, header, data, status } = slot;
    const { kind, range } = flight;
    const type = TYPES[kind];
    const isSegment = type === blk.VIRTIO_BLK_T_DISCARD || type === blk.VIRTIO_BLK_T_WRITE_ZEROES;
    ram.view.setUint32(header, type, true);
    ram.setU64(header + 8, isSegment ? 0 : range.offset / SECTOR);
    ram.u8[status] = 0xff;
    let bytes = range.bytes;
    if (isSegment) {
      bytes = blk.VIRTIO_BLK_DISCARD_WRITE_ZEROES_SIZE;
      ram.setU64(data, range.offset / SECTOR);
      ram.view.setUint32(data + 8, range.bytes / SECTOR, true);
      ram.view.setUint32(data + 12, kind === "unmap" ? 1 : 0, true);
    }
    const write = type === blk.VIRTIO_BLK_T_IN || type === blk.VIRTIO_BLK_T_GET_ID;
    const pieces = [
      { at: header, bytes: 16, write: false },
      ...this.#split(data, bytes, write),
      { at: status, bytes: 1, write: true },
    ];
    const id = queue.queue.add(pieces, this.#random.chance(0.5));
    if (id < 0) throw new Error("the queue has room for its slots");
    this.#slots.get(queue)!.set(id, slot);
    this.#flights.set(slot, flight);
    queue.kick();
  }

  /** A buffer as pieces of any length. */
  #split(at: number, bytes: number, write: boolean): Piece[] {
    const pieces: Piece[] = [];
    let done = 0;
    for (let left = this.#random.below(PIECES_MAX); left > 0 && bytes - done > 1; left--) {
      const part = 1 + this.#random.below(bytes - done - 1);
      pieces.push({ at: at + done, bytes: part, write });
      done += part;
    }
    if (done < bytes) pieces.push({ at: at + done, bytes: bytes - done, write });
    return pieces;
  }

  #end(slot: Slot): void {
    const { ram } = this.#options;
    const flight = this.#flights.get(slot)!;
    const { kind, range, status } = flight;
    const found = ram.u8[slot.status]!;
    const what = `${kind} of ${range.bytes} bytes at ${range.offset}`;
    if (found !== status) throw new Error(`${what}: status ${found}`);
    this.#flights.delete(slot);
    if (status === blk.VIRTIO_BLK_S_OK && this.#compare(slot, flight, what)) return;
    this.#idle.push(slot);
  }

  /** True: the slot goes on with another request. */
  #compare(slot: Slot, { kind, range }: Flight, what: string): boolean {
    const { ram } = this.#options;
    const { offset, bytes } = range;
    const data = ram.u8.subarray(slot.data, slot.data + bytes);
    if (kind === "write") this.content.set(data, offset);
    if (kind === "zero" || kind === "unmap") this.content.fill(0, offset, offset + bytes);
    if (kind === "read") assertSameBytes(data, this.content.subarray(offset, offset + bytes), what);
    if (kind === "learn") this.#learn(data, offset);
    if (kind !== "discard") return false;
    this.#submit(slot, { kind: "learn", range, status: blk.VIRTIO_BLK_S_OK });
    return true;
  }

  /** After a discard each byte is what it was, or zero. */
  #learn(data: Uint8Array, offset: number): void {
    for (const [i, byte] of data.entries()) {
      if (byte !== 0 && byte !== this.content[offset + i]) {
        throw new Error(`after a discard byte ${offset + i} is ${byte}`);
      }
      this.content[offset + i] = byte;
    }
  }

  /** A random range that no request in flight is in the way of. */
  #claim(kind: Kind): Range | undefined {
    const { blockBytes, content } = this.#options;
    if (kind === "flush") return { offset: 0, bytes: 0 };
    if (kind === "id") return { offset: 0, bytes: blk.VIRTIO_BLK_ID_BYTES };
    if (kind === "outside") return { offset: content.length - blockBytes, bytes: 2 * blockBytes };
    for (let attempt = 0; attempt < 20; attempt++) {
      const bytes = SECTOR * (1 + this.#random.below(this.#random.pick(SIZES) / SECTOR));
      const block = this.#random.below(Math.floor((content.length - bytes) / blockBytes));
      const range = { offset: block * blockBytes, bytes };
      const isFree = [...this.#flights.values()].every(
        (other) =>
          !overlap(other.range, range) ||
          (!changes(kind) && !changes(other.kind)) ||
          isApart(other),
      );
      if (isFree) return range;
    }
    return undefined;
  }
}

/** Its range is none of the disk. */
function isApart({ kind }: Flight): boolean {
  return kind === "flush" || kind === "id" || kind === "outside";
}

const TYPES: Readonly<Record<Flight["kind"], number>> = {
  read: blk.VIRTIO_BLK_T_IN,
  learn: blk.VIRTIO_BLK_T_IN,
  outside: blk.VIRTIO_BLK_T_IN,
  write: blk.VIRTIO_BLK_T_OUT,
  flush: blk.VIRTIO_BLK_T_FLUSH,
  discard: blk.VIRTIO_BLK_T_DISCARD,
  zero: blk.VIRTIO_BLK_T_WRITE_ZEROES,
  unmap: blk.VIRTIO_BLK_T_WRITE_ZEROES,
  id: blk.VIRTIO_BLK_T_GET_ID,
};
