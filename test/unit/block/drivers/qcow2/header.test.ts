import { describe, expect, test } from "bun:test";
import * as abi from "../../../../../src/abi/qcow2.ts";
import {
  checkFeatures,
  getU64,
  parseExtensions,
  parseExtras,
  parseHeader,
  setU64,
  viewOf,
} from "../../../../../src/block/drivers/qcow2/header.ts";
import { checkHeader, layoutOf } from "../../../../../src/block/drivers/qcow2/layout.ts";
import { headerCluster } from "../../../../support/qcow2-header.ts";

const FILE_BYTES = 1024 * 1024;

/** What opening says of a header with these changes; empty: nothing. */
function said(change: (view: DataView, bytes: Uint8Array) => void, writable = true): string {
  const cluster = headerCluster();
  change(viewOf(cluster), cluster);
  try {
    const header = parseHeader(cluster);
    checkFeatures(header, cluster);
    checkHeader(header, writable, FILE_BYTES);
    parseExtras(header, cluster);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

const field = (at: number, value: number) => said((view) => view.setUint32(at, value));
const wide = (at: number, value: number) => said((view) => setU64(view, at, value));

describe("parseHeader()", () => {
  test("reads all fields", () => {
    const header = parseHeader(headerCluster());
    expect(header).toEqual({
      version: 3,
      backingFileOffset: 0,
      backingFileBytes: 0,
      clusterBits: 16,
      bytes: 64 * 1024 * 1024,
      cryptMethod: 0,
      l1Size: 1,
      l1TableOffset: 0x30000,
      refcountTableOffset: 0x10000,
      refcountTableClusters: 1,
      snapshotCount: 0,
      snapshotsOffset: 0,
      incompatible: { hi: 0, lo: 0 },
      compatible: { hi: 0, lo: 0 },
      autoclear: { hi: 0, lo: 0 },
      refcountOrder: 4,
      headerLength: 112,
      compressionType: 0,
    });
  });

  test("takes version 2 for 72 bytes without features", () => {
    const cluster = headerCluster();
    viewOf(cluster).setUint32(abi.HEADER_VERSION, 2);
    viewOf(cluster).setUint32(abi.HEADER_INCOMPATIBLE_FEATURES, 0xffff);
    const header = parseHeader(cluster);
    expect([header.headerLength, header.refcountOrder, header.incompatible]).toEqual([
      72,
      4,
      { hi: 0, lo: 0 },
    ]);
  });
});

describe("opening refuses in QSD's words", () => {
  test("what is no qcow2", () => {
    expect(field(abi.HEADER_MAGIC, 1)).toBe("Image is not in qcow2 format");
    expect(field(abi.HEADER_VERSION, 4)).toBe("Unsupported qcow2 version 4");
    expect(field(abi.HEADER_CLUSTER_BITS, 8)).toBe("Unsupported cluster size: 2^8");
    expect(field(abi.HEADER_CLUSTER_BITS, 22)).toBe("Unsupported cluster size: 2^22");
    expect(field(abi.HEADER_HEADER_LENGTH, 72)).toBe("qcow2 header too short");
    expect(field(abi.HEADER_HEADER_LENGTH, 65544)).toBe("qcow2 header exceeds cluster size");
    expect(wide(abi.HEADER_BACKING_FILE_OFFSET, 65537)).toBe("Invalid backing file offset");
  });

  test("compression types that are not what the feature bit says", () => {
    const type = (value: number, bit: number) =>
      said((view, bytes) => {
        bytes[abi.HEADER_COMPRESSION_TYPE] = value;
        view.setUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4, bit);
      });
    expect(type(1, abi.QCOW2_INCOMPAT_COMPRESSION)).toBe("");
    expect(type(2, 0)).toBe("qcow2: unknown compression type: 2");
    const bit = "qcow2: Compression type incompatible feature bit must";
    expect(type(1, 0)).toBe(`${bit} be set`);
    expect(type(0, abi.QCOW2_INCOMPAT_COMPRESSION)).toBe(`${bit} not be set`);
  });

  test("unknown incompatible features, by name where the image has one", () => {
    const text = "Unsupported qcow2 feature(s): ";
    const at = abi.HEADER_INCOMPATIBLE_FEATURES;
    expect(field(at + 4, 0x60)).toBe(`${text}Unknown incompatible feature: 60`);
    expect(field(at, 0x80000000)).toBe(`${text}Unknown incompatible feature: 8000000000000000`);
    const named = said((view, bytes) => {
      view.setUint32(at + 4, 0x60);
      const extension = abi.HEADER_LENGTH_KNOWN;
      view.setUint32(extension, abi.QCOW2_EXT_MAGIC_FEATURE_TABLE);
      view.setUint32(extension + 4, abi.FEATURE_ENTRY_BYTES);
      bytes[extension + 8 + abi.FEATURE_BIT] = 5;
      bytes.set(new TextEncoder().encode("time travel"), extension + 8 + abi.FEATURE_NAME);
    });
    expect(named).toBe(`${text}time travel, Unknown incompatible feature: 40`);
  });

  test("corrupt images, but for reading", () => {
    const corrupt = (view: DataView) =>
      view.setUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4, abi.QCOW2_INCOMPAT_CORRUPT);
    expect(said(corrupt)).toBe("qcow2: Image is corrupt; cannot be opened read/write");
    expect(said(corrupt, false)).toBe("");
  });

  test("tables that are too large or lie nowhere", () => {
    expect(field(abi.HEADER_REFCOUNT_ORDER, 7)).toBe(
      "Reference count entry width too large; may not exceed 64 bits",
    );
    expect(field(abi.HEADER_REFCOUNT_TABLE_CLUSTERS, 0)).toBe(
      "Image does not contain a reference count table",
    );
    expect(field(abi.HEADER_REFCOUNT_TABLE_CLUSTERS, 129)).toBe("Reference count table too large");
    const reftable = "Reference count table offset invalid";
    expect(wide(abi.HEADER_REFCOUNT_TABLE_OFFSET, 0x10200)).toBe(reftable);
    expect(wide(abi.HEADER_REFCOUNT_TABLE_OFFSET, 2 ** 40)).toBe(reftable);
    expect(field(abi.HEADER_L1_SIZE, 4194305)).toBe("Active L1 table too large");
    expect(wide(abi.HEADER_L1_TABLE_OFFSET, 7)).toBe("Active L1 table offset invalid");
    expect(wide(abi.HEADER_L1_TABLE_OFFSET, 2 ** 63)).toBe("Active L1 table offset invalid");
    expect(field(abi.HEADER_L1_SIZE, 0)).toBe("L1 table is too small");
    expect(field(abi.HEADER_NB_SNAPSHOTS, 65537)).toBe("Snapshot table too large");
    expect(wide(abi.HEADER_SNAPSHOTS_OFFSET, 8)).toBe("Snapshot table offset invalid");
    expect(wide(abi.HEADER_SIZE, 2 ** 62)).toBe("Image is too big");
  });

  test("extensions that don't fit, and bad ones", () => {
    const extension = (type: number, bytes: number) =>
      said((view) => {
        view.setUint32(abi.HEADER_LENGTH_KNOWN, type);
        view.setUint32(abi.HEADER_LENGTH_KNOWN + 4, bytes);
      });
    expect(extension(0x1234, 65536 - 120)).toBe("");
    expect(extension(0x1234, 65536 - 119)).toBe("Header extension too large");
    expect(extension(abi.QCOW2_EXT_MAGIC_BACKING_FORMAT, 16)).toBe(
      "ERROR: ext_backing_format: len=16 too large (>=16)",
    );
    expect(extension(abi.QCOW2_EXT_MAGIC_BITMAPS, 8)).toBe("bitmaps_ext: Invalid extension length");
    expect(extension(abi.QCOW2_EXT_MAGIC_CRYPTO_HEADER, 16)).toBe(
      "CRYPTO header extension only expected with LUKS encryption method",
    );
  });

  test("backing file names beyond the cluster", () => {
    const name = (offset: number, bytes: number) =>
      said((view) => {
        setU64(view, abi.HEADER_BACKING_FILE_OFFSET, offset);
        view.setUint32(abi.HEADER_BACKING_FILE_SIZE, bytes);
      });
    expect(name(65000, 536)).toBe("");
    expect(name(65000, 537)).toBe("Backing file name too long");
    expect(name(1024, 1024)).toBe("Backing file name too long");
  });
});

describe("parseExtensions()", () => {
  test("keeps all of them in order, the unknown ones, too", () => {
    const cluster = headerCluster();
    const view = viewOf(cluster);
    view.setUint32(112, 0xabcd);
    view.setUint32(116, 3);
    cluster.set([1, 2, 3], 120);
    view.setUint32(128, abi.QCOW2_EXT_MAGIC_BACKING_FORMAT);
    view.setUint32(132, 3);
    cluster.set(new TextEncoder().encode("raw"), 136);
    const header = parseHeader(cluster);
    expect(parseExtensions(header, cluster).map(({ type, data }) => [type, [...data]])).toEqual([
      [0xabcd, [1, 2, 3]],
      [abi.QCOW2_EXT_MAGIC_BACKING_FORMAT, [114, 97, 119]],
    ]);
    expect(parseExtras(header, cluster).backingFormat).toBe("raw");
  });
});

describe("layoutOf()", () => {
  test("follows from the header", () => {
    const cluster = headerCluster();
    viewOf(cluster).setUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4, abi.QCOW2_INCOMPAT_EXTL2);
    const layout = layoutOf(parseHeader(cluster));
    expect([layout.subclusters, layout.subclusterBytes, layout.l2Entries]).toEqual([
      32, 2048, 4096,
    ]);
    expect([layout.refcountBits, layout.refcountBlockEntries]).toEqual([16, 32768]);
  });
});

describe("getU64() and setU64()", () => {
  test("agree on exact numbers", () => {
    const view = new DataView(new ArrayBuffer(8));
    for (const value of [0, 1, 0xffffffff, 0x100000000, Number.MAX_SAFE_INTEGER]) {
      setU64(view, 0, value);
      expect(getU64(view, 0)).toBe(value);
    }
  });
});
