/** Header, extensions and directories of a qcow2 image. Spec: QEMU docs/interop/qcow2.rst */
import { type Source, textOf, u64, viewOf } from "./source.ts";

const MAGIC = 0x514649fb;
const EXTENSION_BACKING_FORMAT = 0xe2792aca;
const EXTENSION_BITMAPS = 0x23852875;
const EXTENSION_CRYPTO_HEADER = 0x0537be77;
const EXTENSION_DATA_FILE = 0x44415441;

export interface Features {
  readonly dirty: boolean;
  readonly corrupt: boolean;
  readonly dataFile: boolean;
  readonly compressionType: boolean;
  readonly extendedL2: boolean;
  /** Bits without a meaning here. */
  readonly unknown: number;
}

export interface Range {
  readonly offset: number;
  readonly bytes: number;
}

export interface Header {
  readonly version: number;
  readonly clusterBits: number;
  readonly clusterBytes: number;
  /** Virtual size. */
  readonly bytes: number;
  /** 0 none, 1 AES, 2 LUKS. */
  readonly cryptMethod: number;
  readonly l1: { readonly offset: number; readonly count: number };
  readonly refcountTable: Range;
  /** Of one refcount, in bits. */
  readonly refcountBits: number;
  readonly snapshots: { readonly offset: number; readonly count: number };
  readonly incompatible: Features;
  readonly lazyRefcounts: boolean;
  readonly autoclearBitmaps: boolean;
  readonly dataFileRaw: boolean;
  /** 0 zlib, 1 zstd. */
  readonly compressionType: number;
  readonly backingFile: string | null;
  readonly backingFormat: string | null;
  readonly dataFile: string | null;
  readonly bitmapDirectory: (Range & { readonly count: number }) | null;
  readonly cryptoHeader: Range | null;
}

export function readHeader(source: Source): Header {
  const view = viewOf(source.read(0, 112));
  if (view.getUint32(0) !== MAGIC) throw new Error("not a qcow2 image");
  const version = view.getUint32(4);
  if (version !== 2 && version !== 3) throw new Error(`version ${version}`);
  const clusterBits = view.getUint32(20);
  if (clusterBits < 9 || clusterBits > 21) throw new Error(`cluster_bits ${clusterBits}`);
  const clusterBytes = 2 ** clusterBits;
  const headerBytes = version === 2 ? 72 : view.getUint32(100);
  if (version === 3 && (headerBytes < 104 || headerBytes % 8 !== 0)) {
    throw new Error(`header_length ${headerBytes}`);
  }
  const incompatible = version === 2 ? 0 : view.getUint32(76);
  const autoclear = version === 2 ? 0 : view.getUint32(92);
  const refcountOrder = version === 2 ? 4 : view.getUint32(96);
  if (refcountOrder > 6) throw new Error(`refcount_order ${refcountOrder}`);
  const backing = { offset: u64(view, 8), bytes: view.getUint32(16) };
  return {
    version,
    clusterBits,
    clusterBytes,
    bytes: u64(view, 24),
    cryptMethod: view.getUint32(32),
    l1: { count: view.getUint32(36), offset: u64(view, 40) },
    refcountTable: { offset: u64(view, 48), bytes: view.getUint32(56) * clusterBytes },
    refcountBits: 2 ** refcountOrder,
    snapshots: { count: view.getUint32(60), offset: u64(view, 64) },
    incompatible: {
      dirty: (incompatible & 1) !== 0,
      corrupt: (incompatible & 2) !== 0,
      dataFile: (incompatible & 4) !== 0,
      compressionType: (incompatible & 8) !== 0,
      extendedL2: (incompatible & 16) !== 0,
      unknown: incompatible & ~31,
    },
    lazyRefcounts: version === 3 && (view.getUint32(84) & 1) !== 0,
    autoclearBitmaps: (autoclear & 1) !== 0,
    dataFileRaw: (autoclear & 2) !== 0,
    compressionType: headerBytes > 104 ? view.getUint8(104) : 0,
    backingFile:
      backing.offset === 0 ? null : textOf(source.read(backing.offset, backing.bytes).slice()),
    ...readExtensions(source, headerBytes, backing.offset || clusterBytes),
  };
}

type Extensions = Pick<Header, "backingFormat" | "dataFile" | "bitmapDirectory" | "cryptoHeader">;

function readExtensions(source: Source, start: number, end: number): Extensions {
  const found: { -readonly [Name in keyof Extensions]: Extensions[Name] } = {
    backingFormat: null,
    dataFile: null,
    bitmapDirectory: null,
    cryptoHeader: null,
  };
  for (let at = start; at + 8 <= end; ) {
    const head = viewOf(source.read(at, 8));
    const type = head.getUint32(0);
    const bytes = head.getUint32(4);
    if (type === 0) break;
    if (at + 8 + bytes > end) throw new Error(`extension 0x${type.toString(16)} is too long`);
    const data = source.read(at + 8, bytes).slice();
    const view = viewOf(data);
    if (type === EXTENSION_BACKING_FORMAT) found.backingFormat = textOf(data);
    if (type === EXTENSION_DATA_FILE) found.dataFile = textOf(data);
    if (type === EXTENSION_CRYPTO_HEADER) {
      found.cryptoHeader = { offset: u64(view, 0), bytes: u64(view, 8) };
    }
    if (type === EXTENSION_BITMAPS) {
      const [count, directoryBytes] = [view.getUint32(0), u64(view, 8)];
      found.bitmapDirectory = { count, bytes: directoryBytes, offset: u64(view, 16) };
    }
    at += 8 + Math.ceil(bytes / 8) * 8;
  }
  return found;
}

export interface Snapshot {
  readonly id: string;
  readonly name: string;
  readonly l1: { readonly offset: number; readonly count: number };
  /** Virtual size at that time. */
  readonly bytes: number;
}

/** The snapshot table, and how many bytes it takes. */
export function readSnapshots(source: Source, header: Header): { list: Snapshot[]; bytes: number } {
  const list: Snapshot[] = [];
  let at = header.snapshots.offset;
  for (let i = 0; i < header.snapshots.count; i++) {
    const view = viewOf(source.read(at, 40));
    const [idBytes, nameBytes] = [view.getUint16(12), view.getUint16(14)];
    const extraBytes = view.getUint32(36);
    const extra = viewOf(source.read(at + 40, extraBytes));
    const names = at + 40 + extraBytes;
    list.push({
      id: textOf(source.read(names, idBytes).slice()),
      name: textOf(source.read(names + idBytes, nameBytes).slice()),
      l1: { offset: u64(view, 0), count: view.getUint32(8) },
      bytes: extraBytes >= 16 ? u64(extra, 8) : header.bytes,
    });
    at += Math.ceil((40 + extraBytes + idBytes + nameBytes) / 8) * 8;
  }
  return { list, bytes: at - header.snapshots.offset };
}

export interface BitmapEntry {
  readonly name: string;
  readonly table: { readonly offset: number; readonly count: number };
  readonly inUse: boolean;
  readonly auto: boolean;
  readonly granularityBytes: number;
  /** Flags without a meaning, another type, extra data. */
  readonly reserved: boolean;
}

export function readBitmapDirectory(source: Source, header: Header): BitmapEntry[] {
  const directory = header.bitmapDirectory;
  if (directory === null) return [];
  const list: BitmapEntry[] = [];
  let at = directory.offset;
  for (let i = 0; i < directory.count; i++) {
    const view = viewOf(source.read(at, 24));
    const flags = view.getUint32(12);
    const [nameBytes, extraBytes] = [view.getUint16(18), view.getUint32(20)];
    list.push({
      name: textOf(source.read(at + 24 + extraBytes, nameBytes).slice()),
      table: { offset: u64(view, 0), count: view.getUint32(8) },
      inUse: (flags & 1) !== 0,
      auto: (flags & 2) !== 0,
      granularityBytes: 2 ** view.getUint8(17),
      reserved: flags > 3 || view.getUint8(16) !== 1 || extraBytes > 0,
    });
    at += Math.ceil((24 + nameBytes + extraBytes) / 8) * 8;
  }
  if (at !== directory.offset + directory.bytes) throw new Error("bitmap directory size is wrong");
  return list;
}
