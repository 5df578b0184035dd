/**
 * A qcow2 image as the specification describes it, read one guest cluster at a time: simple before
 * fast. Nothing is kept, so an image may change in between.
 */
import { decompress } from "./decompress.ts";
import {
  type BitmapEntry,
  type Header,
  readBitmapDirectory,
  readHeader,
  readSnapshots,
  type Snapshot,
} from "./header.ts";
import { type Source, u64, viewOf } from "./source.ts";

const SUBCLUSTERS = 32;

/** Where one guest cluster, or subcluster of an image with extended L2 entries, has its bytes. */
export type Mapping =
  | { readonly kind: "unallocated" }
  | { readonly kind: "zero" }
  | { readonly kind: "data"; readonly host: number }
  | { readonly kind: "compressed"; readonly host: number; readonly hostBytes: number };

export interface L1Entry {
  readonly copied: boolean;
  /** Of the L2 table; 0: none. */
  readonly offset: number;
  /** All other bits, as they are. */
  readonly reserved: number;
}

/** One L2 entry, split into its fields. */
export interface L2Entry {
  readonly copied: boolean;
  readonly compressed: boolean;
  /** Bit 0: reads as zeroes. */
  readonly zero: boolean;
  /** 0: none. Of compressed data, the first byte. */
  readonly host: number;
  /** Of compressed data: whole sectors, from the start of the first one. */
  readonly hostBytes: number;
  /** Bits 1 to 8, and 56 to 61 of standard entries, as they are. */
  readonly reserved: number;
  /** Subclusters; of images without them: 0. */
  readonly allocated: number;
  readonly zeroes: number;
}

export interface ImageParts {
  readonly source: Source;
  /** What shows where nothing is allocated: what the header names, opened by the caller. */
  readonly backing?: Source | null;
  readonly dataFile?: Source | null;
  /** Of an encrypted image: a whole sector that lies at `host` of its data file. */
  readonly decrypt?: (host: number, sector: Uint8Array) => Uint8Array;
}

const SECTOR_BYTES = 512;

/** A Source of what the guest sees. */
export class Qcow2Image implements Source {
  readonly header: Header;
  readonly source: Source;
  #backing: Source | null;
  #data: Source;
  #decrypt: ImageParts["decrypt"];

  constructor({ source, backing = null, dataFile = null, decrypt }: ImageParts) {
    this.source = source;
    this.#decrypt = decrypt;
    this.header = readHeader(source);
    this.#backing = backing;
    if (this.header.incompatible.dataFile && dataFile === null) throw new Error("no data file");
    this.#data = dataFile ?? source;
  }

  get bytes(): number {
    return this.header.bytes;
  }

  get snapshots(): Snapshot[] {
    return readSnapshots(this.source, this.header).list;
  }

  get bitmaps(): BitmapEntry[] {
    return readBitmapDirectory(this.source, this.header);
  }

  /** Unit in which bytes are allocated. */
  get unitBytes(): number {
    const { clusterBytes, incompatible } = this.header;
    return incompatible.extendedL2 ? clusterBytes / SUBCLUSTERS : clusterBytes;
  }

  get l2EntryBytes(): number {
    return this.header.incompatible.extendedL2 ? 16 : 8;
  }

  get l2Count(): number {
    return this.header.clusterBytes / this.l2EntryBytes;
  }

  read(offset: number, bytes: number): Uint8Array {
    return this.#readFrom(this.header.l1, offset, bytes);
  }

  /** What the guest saw when the snapshot was made. */
  readSnapshot(snapshot: Snapshot, offset: number, bytes: number): Uint8Array {
    return this.#readFrom(snapshot.l1, offset, bytes);
  }

  /** Of the unit that holds `offset`. */
  mapping(offset: number): Mapping {
    return this.#mapping(this.header.l1, offset);
  }

  /** All of the guest's disk as runs of one kind. */
  *extents(): Generator<{ offset: number; bytes: number; kind: Mapping["kind"] }> {
    let run: { offset: number; bytes: number; kind: Mapping["kind"] } | null = null;
    for (let at = 0; at < this.bytes; at += this.unitBytes) {
      const { kind } = this.mapping(at);
      const bytes = Math.min(this.unitBytes, this.bytes - at);
      if (run !== null && run.kind === kind) run.bytes += bytes;
      else {
        if (run !== null) yield run;
        run = { offset: at, bytes, kind };
      }
    }
    if (run !== null) yield run;
  }

  /** One bit per `granularityBytes`, the lowest of a byte first, as it is stored. */
  bitmapBits(entry: BitmapEntry): Uint8Array {
    const { clusterBytes } = this.header;
    const bits = new Uint8Array(Math.ceil(this.bytes / entry.granularityBytes / 8));
    const table = viewOf(this.source.read(entry.table.offset, entry.table.count * 8));
    for (let i = 0; i * clusterBytes < bits.length; i++) {
      const raw = u64(table, i * 8);
      const part = bits.subarray(i * clusterBytes, (i + 1) * clusterBytes);
      if (raw === 1) part.fill(0xff);
      else if (raw !== 0) part.set(this.source.read(raw, part.length));
    }
    return bits;
  }

  l1Entry(l1: { readonly offset: number }, index: number): L1Entry {
    const view = viewOf(this.source.read(l1.offset + index * 8, 8));
    const [high, low] = [view.getUint32(0), view.getUint32(4)];
    const offset = (high & 0x00ffffff) * 2 ** 32 + (low - (low % 512));
    const reserved = (high & 0x7f000000) + (low % 512);
    return { offset, copied: high >>> 31 === 1, reserved };
  }

  parseL2Entry(view: DataView, at: number): L2Entry {
    const { clusterBits, incompatible } = this.header;
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const bitmaps = incompatible.extendedL2
      ? { allocated: view.getUint32(at + 12), zeroes: view.getUint32(at + 8) }
      : { allocated: 0, zeroes: 0 };
    const copied = high >>> 31 === 1;
    if ((high & 0x40000000) !== 0) {
      const hostBitsHigh = 62 - (clusterBits - 8) - 32;
      const extra = (high & 0x3fffffff) >>> hostBitsHigh;
      const host = (high & (2 ** hostBitsHigh - 1)) * 2 ** 32 + low;
      const hostBytes = (extra + 1) * 512 - (host % 512);
      const [compressed, zero, reserved] = [true, false, 0];
      return { copied, compressed, zero, host, hostBytes, reserved, ...bitmaps };
    }
    const host = (high & 0x00ffffff) * 2 ** 32 + (low - (low % 512));
    const reserved = (high & 0x3f000000) + (low & 0x1fe);
    const zero = (low & 1) !== 0;
    return { copied, compressed: false, zero, host, hostBytes: 0, reserved, ...bitmaps };
  }

  #mapping(l1: Snapshot["l1"], offset: number): Mapping {
    const { header, l2Count, l2EntryBytes } = this;
    const cluster = Math.floor(offset / header.clusterBytes);
    const l1Index = Math.floor(cluster / l2Count);
    if (l1Index >= l1.count) return { kind: "unallocated" };
    const table = this.l1Entry(l1, l1Index).offset;
    if (table === 0) return { kind: "unallocated" };
    const at = table + (cluster % l2Count) * l2EntryBytes;
    const entry = this.parseL2Entry(viewOf(this.source.read(at, l2EntryBytes)), 0);
    const { host, hostBytes } = entry;
    if (entry.compressed) return { kind: "compressed", host, hostBytes };
    if (!header.incompatible.extendedL2) {
      if (entry.zero) return { kind: "zero" };
      // In a data file, offset 0 is as good as any other: the copied bit says that it is one.
      const isAtZero = header.incompatible.dataFile && entry.copied;
      return host === 0 && !isAtZero ? { kind: "unallocated" } : { kind: "data", host };
    }
    const sub = Math.floor((offset % header.clusterBytes) / this.unitBytes);
    if ((entry.zeroes & (1 << sub)) !== 0) return { kind: "zero" };
    if ((entry.allocated & (1 << sub)) === 0) return { kind: "unallocated" };
    return { kind: "data", host: host + sub * this.unitBytes };
  }

  #readFrom(l1: Snapshot["l1"], offset: number, bytes: number): Uint8Array {
    if (this.header.cryptMethod !== 0 && this.#decrypt === undefined) {
      throw new Error("the image is encrypted");
    }
    const target = new Uint8Array(bytes);
    for (let done = 0; done < bytes; ) {
      const at = offset + done;
      const part = Math.min(this.unitBytes - (at % this.unitBytes), bytes - done);
      target.set(this.#readUnit(this.#mapping(l1, at), at, part), done);
      done += part;
    }
    return target;
  }

  #readUnit(mapping: Mapping, offset: number, bytes: number): Uint8Array {
    const { clusterBytes, compressionType } = this.header;
    if (mapping.kind === "zero" || mapping.kind === "unallocated") {
      const backing = mapping.kind === "zero" ? null : this.#backing;
      return backing?.read(offset, bytes) ?? new Uint8Array(bytes);
    }
    if (mapping.kind === "compressed") {
      const data = this.source.read(mapping.host, mapping.hostBytes);
      const start = offset % clusterBytes;
      return decompress(compressionType, data, clusterBytes).subarray(start, start + bytes);
    }
    return this.#readData(mapping.host + (offset % this.unitBytes), bytes);
  }

  #readData(host: number, bytes: number): Uint8Array {
    const data = this.#data.read(host, bytes);
    if (this.#decrypt === undefined) return data;
    const plain = new Uint8Array(bytes);
    for (let at = 0; at < bytes; at += SECTOR_BYTES) {
      plain.set(this.#decrypt(host + at, data.subarray(at, at + SECTOR_BYTES)), at);
    }
    return plain;
  }
}
