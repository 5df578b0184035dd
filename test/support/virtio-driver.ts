/**
 * The driver's side of virtqueues, for tests: guest memory in a memfd, a split and a packed queue,
 * virtio-blk requests of any layout. A hostile test writes to `ram` what it likes.
 */
import { MAP_SHARED, PROT_READ, PROT_WRITE } from "../../src/abi/linux.ts";
import { MFD_ALLOW_SEALING, MFD_CLOEXEC } from "../../src/abi/memfd.ts";
import {
  PVIRTQ_DESC_SIZE,
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  VIRTQ_DESC_F_AVAIL,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_USED,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_DESC_SIZE,
  VIRTQ_USED_F_NO_NOTIFY,
  virtqAvailBytes,
  virtqUsedBytes,
} from "../../src/abi/virtio-ring.ts";
import type { Linux } from "../../src/runtime/linux.ts";
import type { RegionOptions } from "../../src/virtio/guest-memory.ts";
import type { RingAddresses } from "../../src/virtio/queue.ts";

/** Descriptors of an indirect table that add() makes, at most. */
const TABLE_DESCRIPTORS = 256;

export class GuestRam {
  readonly fd: number;
  readonly bytes: number;
  readonly guestAddress: number;
  readonly userAddress: number;
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly view: DataView;
  #linux: Linux;
  #address: number;
  #next = 0;

  constructor(
    linux: Linux,
    bytes: number,
    { guestAddress = 0x4000_0000, userAddress = 0x7f00_0000_0000, flags = MFD_ALLOW_SEALING } = {},
  ) {
    this.#linux = linux;
    this.bytes = bytes;
    this.guestAddress = guestAddress;
    this.userAddress = userAddress;
    this.fd = linux.memfdCreate("guest", flags | MFD_CLOEXEC);
    linux.ftruncate(this.fd, bytes);
    const protection = PROT_READ | PROT_WRITE;
    this.#address = linux.mmap(0, bytes, protection, MAP_SHARED, this.fd, 0);
    const buffer = linux.ffi.view(this.#address, bytes);
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.view = new DataView(buffer);
  }

  /** All of it, or a part of it, as a region. */
  region(at = 0, bytes: number = this.bytes - at): RegionOptions {
    return {
      fd: this.fd,
      fileOffset: at,
      guestAddress: this.guestAddress + at,
      userAddress: this.userAddress + at,
      bytes,
    };
  }

  /** Offset of some memory nobody uses; never given back. */
  allocate(bytes: number, alignment = 16): number {
    const at = Math.ceil(this.#next / alignment) * alignment;
    this.#next = at + bytes;
    if (this.#next > this.bytes) throw new Error("guest memory is full");
    return at;
  }

  setU64(at: number, value: number): void {
    this.view.setBigUint64(at, BigInt(value), true);
  }

  close(): void {
    this.#linux.munmap(this.#address, this.bytes);
    this.#linux.close(this.fd);
  }
}

/** `at` is an offset in the ram. */
export interface Piece {
  readonly at: number;
  readonly bytes: number;
  readonly write: boolean;
}

export interface Used {
  readonly id: number;
  readonly bytes: number;
}

export interface DriverQueueOptions {
  readonly size: number;
  readonly eventIdx: boolean;
}

/** What tests need of both kinds of queue. */
export interface DriverQueue {
  readonly addresses: RingAddresses;
  /** Makes a chain available; its ID, or -1: no room. */
  add(pieces: readonly Piece[], indirect?: boolean): number;
  /** What has been used since the last call, in order. */
  collect(): Used[];
  /** The device wants to be notified of what was added since the last call. */
  mustKick(): boolean;
  /** From now on the device is to notify only when the next used element comes, or never. */
  wantCall(wanted: boolean): void;
}

export class SplitDriver implements DriverQueue {
  readonly addresses: RingAddresses;
  readonly size: number;
  /** Offsets in the ram. */
  readonly desc: number;
  readonly avail: number;
  readonly used: number;
  #ram: GuestRam;
  #eventIdx: boolean;
  #tables: number[] = [];
  #free: number[] = [];
  #chains = new Map<number, number[]>();
  #availIdx = 0;
  #kickedIdx = 0;
  #usedIdx = 0;

  constructor(ram: GuestRam, { size, eventIdx }: DriverQueueOptions) {
    this.#ram = ram;
    this.size = size;
    this.#eventIdx = eventIdx;
    this.desc = ram.allocate(size * VIRTQ_DESC_SIZE);
    this.avail = ram.allocate(virtqAvailBytes(size), 2);
    this.used = ram.allocate(virtqUsedBytes(size), 4);
    for (let i = size - 1; i >= 0; i--) this.#free.push(i);
    this.addresses = {
      desc: ram.userAddress + this.desc,
      avail: ram.userAddress + this.avail,
      used: ram.userAddress + this.used,
      usedLog: null,
    };
  }

  get usedIdx(): number {
    return this.#ram.view.getUint16(this.used + 2, true);
  }

  add(pieces: readonly Piece[], indirect = false): number {
    const count = indirect ? 1 : pieces.length;
    if (count > this.#free.length || pieces.length > TABLE_DESCRIPTORS) return -1;
    const indexes = Array.from({ length: count }, () => this.#free.pop()!);
    const head = indexes[0]!;
    if (indirect) {
      this.#tables[head] ??= this.#ram.allocate(TABLE_DESCRIPTORS * VIRTQ_DESC_SIZE);
      const table = this.#tables[head];
      for (const [i, piece] of pieces.entries()) {
        this.#write(table + i * 16, piece, pieces, i, i + 1);
      }
      const at = this.desc + head * VIRTQ_DESC_SIZE;
      this.#ram.setU64(at, this.#ram.guestAddress + table);
      this.#ram.view.setUint32(at + 8, pieces.length * VIRTQ_DESC_SIZE, true);
      this.#ram.view.setUint16(at + 12, VIRTQ_DESC_F_INDIRECT, true);
    } else {
      pieces.forEach((piece, i) => {
        this.#write(this.desc + indexes[i]! * 16, piece, pieces, i, indexes[i + 1] ?? 0);
      });
    }
    this.#chains.set(head, indexes);
    this.offer(head);
    return head;
  }

  /** Puts a head into the available ring as it is. */
  offer(head: number): void {
    const { view } = this.#ram;
    view.setUint16(this.avail + 4 + (this.#availIdx % this.size) * 2, head, true);
    this.#availIdx = (this.#availIdx + 1) & 0xffff;
    Atomics.store(this.#ram.u16, (this.avail + 2) / 2, this.#availIdx);
  }

  collect(): Used[] {
    const { view } = this.#ram;
    const found: Used[] = [];
    while (this.#usedIdx !== this.usedIdx) {
      const at = this.used + 4 + (this.#usedIdx % this.size) * 8;
      const id = view.getUint32(at, true);
      found.push({ id, bytes: view.getUint32(at + 4, true) });
      this.#free.push(...(this.#chains.get(id) ?? []));
      this.#chains.delete(id);
      this.#usedIdx = (this.#usedIdx + 1) & 0xffff;
    }
    return found;
  }

  mustKick(): boolean {
    const { view } = this.#ram;
    const old = this.#kickedIdx;
    const now = this.#availIdx;
    this.#kickedIdx = now;
    if (!this.#eventIdx) return (view.getUint16(this.used, true) & VIRTQ_USED_F_NO_NOTIFY) === 0;
    const event = view.getUint16(this.used + 4 + this.size * 8, true);
    return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
  }

  wantCall(wanted: boolean): void {
    const { view } = this.#ram;
    view.setUint16(this.avail, wanted || this.#eventIdx ? 0 : 1, true);
    const event = wanted ? this.#usedIdx : (this.#usedIdx - 1) & 0xffff;
    view.setUint16(this.avail + 4 + this.size * 2, event, true);
  }

  #write(at: number, piece: Piece, all: readonly Piece[], index: number, next: number): void {
    const { view } = this.#ram;
    this.#ram.setU64(at, this.#ram.guestAddress + piece.at);
    view.setUint32(at + 8, piece.bytes, true);
    const hasNext = index + 1 < all.length;
    const flags = (piece.write ? VIRTQ_DESC_F_WRITE : 0) | (hasNext ? VIRTQ_DESC_F_NEXT : 0);
    view.setUint16(at + 12, flags, true);
    view.setUint16(at + 14, hasNext ? next : 0, true);
  }
}

export class PackedDriver implements DriverQueue {
  readonly addresses: RingAddresses;
  readonly size: number;
  /** Offsets in the ram. */
  readonly desc: number;
  readonly driverEvent: number;
  readonly deviceEvent: number;
  #ram: GuestRam;
  #eventIdx: boolean;
  #tables: number[] = [];
  #ids: number[] = [];
  #counts = new Map<number, number>();
  #room: number;
  #next = 0;
  #wrap = 1;
  #added = 0;
  #usedNext = 0;
  #usedWrap = 1;

  constructor(ram: GuestRam, { size, eventIdx }: DriverQueueOptions) {
    this.#ram = ram;
    this.size = size;
    this.#room = size;
    this.#eventIdx = eventIdx;
    this.desc = ram.allocate(size * PVIRTQ_DESC_SIZE);
    this.driverEvent = ram.allocate(4, 4);
    this.deviceEvent = ram.allocate(4, 4);
    for (let id = size - 1; id >= 0; id--) this.#ids.push(id);
    this.addresses = {
      desc: ram.userAddress + this.desc,
      avail: ram.userAddress + this.driverEvent,
      used: ram.userAddress + this.deviceEvent,
      usedLog: null,
    };
  }

  add(pieces: readonly Piece[], indirect = false): number {
    const count = indirect ? 1 : pieces.length;
    if (count > this.#room || pieces.length > TABLE_DESCRIPTORS) return -1;
    const id = this.#ids.pop()!;
    const { view } = this.#ram;
    const first = this.#next;
    let firstFlags = 0;
    if (indirect) {
      this.#tables[id] ??= this.#ram.allocate(TABLE_DESCRIPTORS * PVIRTQ_DESC_SIZE);
      const table = this.#tables[id];
      for (const [i, piece] of pieces.entries()) {
        this.#write(table + i * 16, piece.at, piece.bytes, 0);
        view.setUint16(table + i * 16 + 14, piece.write ? VIRTQ_DESC_F_WRITE : 0, true);
      }
      this.#write(this.desc + first * 16, table, pieces.length * PVIRTQ_DESC_SIZE, id);
      firstFlags = VIRTQ_DESC_F_INDIRECT | this.#availFlags();
      this.#advance();
    } else {
      for (const [i, piece] of pieces.entries()) {
        const at = this.desc + this.#next * 16;
        this.#write(at, piece.at, piece.bytes, id);
        const next = i + 1 < pieces.length ? VIRTQ_DESC_F_NEXT : 0;
        const flags = next | (piece.write ? VIRTQ_DESC_F_WRITE : 0) | this.#availFlags();
        if (i === 0) firstFlags = flags;
        else view.setUint16(at + 14, flags, true);
        this.#advance();
      }
    }
    Atomics.store(this.#ram.u16, (this.desc + first * 16 + 14) / 2, firstFlags);
    this.#counts.set(id, count);
    this.#room -= count;
    this.#added += count;
    return id;
  }

  collect(): Used[] {
    const { view } = this.#ram;
    const found: Used[] = [];
    for (;;) {
      const at = this.desc + this.#usedNext * 16;
      const flags = view.getUint16(at + 14, true);
      const isAvail = (flags & VIRTQ_DESC_F_AVAIL) !== 0 ? 1 : 0;
      const isUsed = (flags & VIRTQ_DESC_F_USED) !== 0 ? 1 : 0;
      if (isAvail !== this.#usedWrap || isUsed !== this.#usedWrap) return found;
      const id = view.getUint16(at + 12, true);
      found.push({ id, bytes: view.getUint32(at + 8, true) });
      const count = this.#counts.get(id) ?? 1;
      this.#counts.delete(id);
      this.#ids.push(id);
      this.#room += count;
      this.#usedNext += count;
      if (this.#usedNext >= this.size) {
        this.#usedNext -= this.size;
        this.#usedWrap ^= 1;
      }
    }
  }

  mustKick(): boolean {
    const { view } = this.#ram;
    const added = this.#added;
    this.#added = 0;
    const flags = view.getUint16(this.deviceEvent + 2, true) & 3;
    if (flags === RING_EVENT_FLAGS_DISABLE) return false;
    if (flags !== RING_EVENT_FLAGS_DESC || !this.#eventIdx) return true;
    const offWrap = view.getUint16(this.deviceEvent, true);
    const lap = offWrap >>> 15 === this.#wrap ? 0 : this.size;
    const behind = this.#next + lap - (offWrap & 0x7fff);
    return behind > 0 && behind <= added;
  }

  wantCall(wanted: boolean): void {
    const { view } = this.#ram;
    const offWrap = this.#usedNext | (this.#usedWrap << 15);
    view.setUint16(this.driverEvent, offWrap, true);
    const flags = this.#eventIdx ? RING_EVENT_FLAGS_DESC : 0;
    view.setUint16(this.driverEvent + 2, wanted ? flags : RING_EVENT_FLAGS_DISABLE, true);
  }

  #availFlags(): number {
    return this.#wrap === 1 ? VIRTQ_DESC_F_AVAIL : VIRTQ_DESC_F_USED;
  }

  #advance(): void {
    if (++this.#next < this.size) return;
    this.#next = 0;
    this.#wrap ^= 1;
  }

  #write(at: number, target: number, bytes: number, id: number): void {
    this.#ram.setU64(at, this.#ram.guestAddress + target);
    this.#ram.view.setUint32(at + 8, bytes, true);
    this.#ram.view.setUint16(at + 12, id, true);
  }
}

export function makeDriver(
  ram: GuestRam,
  packed: boolean,
  options: DriverQueueOptions,
): SplitDriver | PackedDriver {
  return packed ? new PackedDriver(ram, options) : new SplitDriver(ram, options);
}

/** One virtio-blk request in the ram: all pieces, and where its status byte will be. */
export interface BlkBuffers {
  readonly pieces: readonly Piece[];
  readonly statusAt: number;
}

/** Lays out header, data (pieces of their own) and status, each in its own descriptor. */
export function blkRequest(
  ram: GuestRam,
  type: number,
  sector: number,
  data: readonly Piece[],
): BlkBuffers {
  const header = ram.allocate(16);
  ram.view.setUint32(header, type, true);
  ram.setU64(header + 8, sector);
  const statusAt = ram.allocate(1, 1);
  ram.u8[statusAt] = 0xff;
  const pieces = [
    { at: header, bytes: 16, write: false },
    ...data,
    { at: statusAt, bytes: 1, write: true },
  ];
  return { pieces, statusAt };
}
