/** A sound qcow2 image, and the ways to make it lie. */
import { deflateRawSync } from "node:zlib";
import * as abi from "../../../src/abi/qcow2.ts";
import * as snapshotAbi from "../../../src/abi/qcow2-snapshots.ts";
import { emptyImage } from "../../support/qcow2-header.ts";

export const CLUSTER = 65536;
export const REFCOUNT_TABLE = CLUSTER;
export const REFCOUNT_BLOCK = 2 * CLUSTER;
export const L1_TABLE = 3 * CLUSTER;
export const L2_TABLE = 4 * CLUSTER;
export const DATA = 5 * CLUSTER;
/** Where withCompressed() puts it. */
export const COMPRESSED_DATA = DATA;
/** Guest clusters with data, in the order of their host clusters. */
const GUEST_CLUSTERS = [0, 1, 5, 9];

export const COPIED = 1n << 63n;
export const COMPRESSED = 1n << 62n;
export const OUTSIDE = 0x4000_0000n;

/** 64 MiB, with four clusters of data. */
export function soundImage(): Uint8Array {
  const empty = emptyImage();
  const image = new Uint8Array(DATA + GUEST_CLUSTERS.length * CLUSTER);
  image.set(empty);
  const view = new DataView(image.buffer);
  view.setBigUint64(L1_TABLE, COPIED | BigInt(L2_TABLE));
  for (let i = 4; i < 5 + GUEST_CLUSTERS.length; i++) view.setUint16(REFCOUNT_BLOCK + 2 * i, 1);
  for (const [i, cluster] of GUEST_CLUSTERS.entries()) {
    const host = DATA + i * CLUSTER;
    view.setBigUint64(L2_TABLE + 8 * cluster, COPIED | BigInt(host));
    image.fill(i + 1, host, host + CLUSTER);
  }
  return image;
}

export interface Lie {
  readonly name: string;
  /** The image may be another one then. */
  change(image: Uint8Array): Uint8Array;
  /** "refused: WHY", "corrupt: WHAT", or what requests that failed are: "-EIO"; "": none did. */
  readonly outcome: string;
}

type Place = readonly [at: number, value: number | bigint];

/** The values are u64 where they are bigint, else u32. */
export function set(name: string, outcome: string, ...places: readonly Place[]): Lie {
  return {
    name,
    outcome,
    change(image) {
      const view = new DataView(image.buffer);
      for (const [at, value] of places) {
        if (typeof value === "bigint") view.setBigUint64(at, value);
        else view.setUint32(at, value);
      }
      return image;
    },
  };
}
export function count(name: string, outcome: string, cluster: number, value: number): Lie {
  return {
    name,
    outcome,
    change(image) {
      new DataView(image.buffer).setUint16(REFCOUNT_BLOCK + 2 * cluster, value);
      return image;
    },
  };
}

/** Fills in the table at the end of the image: its one entry. */
export function snapshot(name: string, outcome: string, entry: Partial<SnapshotEntry>): Lie {
  return {
    name,
    outcome,
    change(image) {
      const longer = new Uint8Array(image.length + CLUSTER);
      longer.set(image);
      const view = new DataView(longer.buffer);
      const at = image.length;
      const { count = 1, l1Offset = BigInt(L1_TABLE), l1Size = 1, extraBytes = 24 } = entry;
      view.setUint32(abi.HEADER_NB_SNAPSHOTS, count);
      view.setBigUint64(abi.HEADER_SNAPSHOTS_OFFSET, BigInt(at));
      view.setBigUint64(at + snapshotAbi.SNAPSHOT_L1_TABLE_OFFSET, l1Offset);
      view.setUint32(at + snapshotAbi.SNAPSHOT_L1_SIZE, l1Size);
      view.setUint16(at + snapshotAbi.SNAPSHOT_ID_STR_SIZE, entry.nameBytes ?? 1);
      view.setUint16(at + snapshotAbi.SNAPSHOT_NAME_SIZE, entry.nameBytes ?? 1);
      view.setUint32(at + snapshotAbi.SNAPSHOT_EXTRA_DATA_SIZE, extraBytes);
      if (extraBytes === 24)
        view.setBigUint64(at + snapshotAbi.SNAPSHOT_HEADER_BYTES + 8, 64n << 20n);
      return longer;
    },
  };
}

interface SnapshotEntry {
  readonly count: number;
  readonly l1Offset: bigint;
  readonly l1Size: number;
  readonly extraBytes: number;
  readonly nameBytes: number;
}

/** `packed` in the place of the first data cluster, of which it may be longer. */
export function compressed(name: string, outcome: string, packed: Uint8Array, isZstd = false): Lie {
  return {
    name,
    outcome,
    change(image) {
      const sectors = BigInt(Math.ceil(packed.length / 512) - 1);
      const view = new DataView(image.buffer);
      image.fill(0, DATA, DATA + CLUSTER);
      image.set(packed.subarray(0, CLUSTER), DATA);
      view.setBigUint64(L2_TABLE, COMPRESSED | (sectors << 54n) | BigInt(DATA));
      if (!isZstd) return image;
      view.setBigUint64(abi.HEADER_INCOMPATIBLE_FEATURES, BigInt(abi.QCOW2_INCOMPAT_COMPRESSION));
      image[abi.HEADER_COMPRESSION_TYPE] = abi.QCOW2_COMPRESSION_TYPE_ZSTD;
      return image;
    },
  };
}

export function cut(bytes: number, outcome: string): Lie {
  return { name: `cut at ${bytes}`, outcome, change: (image) => image.slice(0, bytes) };
}
/** With its first guest cluster compressed. */
export function withCompressed(image: Uint8Array): Uint8Array {
  return compressed("", "", deflateRawSync(new Uint8Array(CLUSTER).fill(9))).change(image);
}

/** With a snapshot that shares all tables, at its end. */
export function withSnapshot(image: Uint8Array): Uint8Array {
  return snapshot("", "", {}).change(image);
}
