/** Lies in the header of a qcow2 image. */
import * as abi from "../../../src/abi/qcow2.ts";
import { DATA, L1_TABLE, L2_TABLE, type Lie, OUTSIDE, REFCOUNT_TABLE, set } from "./make.ts";

export const headerLies: readonly Lie[] = [
  set("version 0", "refused: Unsupported qcow2 version 0", [abi.HEADER_VERSION, 0]),
  set("version 4", "refused: Unsupported qcow2 version 4", [abi.HEADER_VERSION, 4]),
  set("clusters of 256 bytes", "refused: Unsupported cluster size: 2^8", [
    abi.HEADER_CLUSTER_BITS,
    8,
  ]),
  set("clusters of 4 MiB", "refused: Unsupported cluster size: 2^22", [
    abi.HEADER_CLUSTER_BITS,
    22,
  ]),
  set("clusters of 2^2^31 bytes", "refused: Unsupported cluster size: 2^2147483648", [
    abi.HEADER_CLUSTER_BITS,
    0x8000_0000,
  ]),
  set("unknown encryption", "refused: Unsupported encryption method 3", [
    abi.HEADER_CRYPT_METHOD,
    3,
  ]),
  set("no L1 table", "refused: L1 table is too small", [abi.HEADER_L1_SIZE, 0]),
  set("an L1 table of 32 GiB", "refused: Active L1 table too large", [
    abi.HEADER_L1_SIZE,
    0xffff_ffff,
  ]),
  set("an L1 table over the limit", "refused: Active L1 table too large", [
    abi.HEADER_L1_SIZE,
    4194305,
  ]),
  set(
    "an L1 table at the limit",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    [abi.HEADER_L1_SIZE, 4194304],
  ),
  set("no refcount table", "refused: Image does not contain a reference count table", [
    abi.HEADER_REFCOUNT_TABLE_CLUSTERS,
    0,
  ]),
  set("a refcount table of 256 TiB", "refused: Reference count table too large", [
    abi.HEADER_REFCOUNT_TABLE_CLUSTERS,
    0xffff_ffff,
  ]),
  set(
    "a refcount table at the limit",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount table)",
    [abi.HEADER_REFCOUNT_TABLE_CLUSTERS, 128],
  ),
  set("65537 snapshots", "refused: Snapshot table too large", [abi.HEADER_NB_SNAPSHOTS, 65537]),
  set("2^32 snapshots", "refused: Snapshot table too large", [
    abi.HEADER_NB_SNAPSHOTS,
    0xffff_ffff,
  ]),
  set(
    "refcounts of 128 bits",
    "refused: Reference count entry width too large; may not exceed 64 bits",
    [abi.HEADER_REFCOUNT_ORDER, 7],
  ),
  set("a header of 103 bytes", "refused: qcow2 header too short", [abi.HEADER_HEADER_LENGTH, 103]),
  set("a header of 2 GiB", "refused: qcow2 header exceeds cluster size", [
    abi.HEADER_HEADER_LENGTH,
    0x7fff_ffff,
  ]),
  set("a disk of no bytes", "", [abi.HEADER_SIZE, 0n]),
  set("a disk of odd length", "", [abi.HEADER_SIZE, (64n << 20n) - 5n]),
  set("a disk of 2^63 bytes", "refused: Image is too big", [abi.HEADER_SIZE, 1n << 63n]),
  set("a disk larger than its L1 table", "refused: L1 table is too small", [
    abi.HEADER_SIZE,
    1n << 50n,
  ]),
  set("an L1 table between clusters", "refused: Active L1 table offset invalid", [
    abi.HEADER_L1_TABLE_OFFSET,
    0x30200n,
  ]),
  set("an L1 table outside", "refused: Active L1 table offset invalid", [
    abi.HEADER_L1_TABLE_OFFSET,
    OUTSIDE,
  ]),
  set("an L1 table at 2^63", "refused: Active L1 table offset invalid", [
    abi.HEADER_L1_TABLE_OFFSET,
    1n << 63n,
  ]),
  set(
    "an L1 table on the header",
    "corrupt: L2 table offset 0x4649fb00000000 outside of the image (L1 index: 0)",
    [abi.HEADER_L1_TABLE_OFFSET, 0n],
  ),
  set(
    "an L1 table on the refcount table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    [abi.HEADER_L1_TABLE_OFFSET, BigInt(REFCOUNT_TABLE)],
  ),
  set("an L1 table on the L2 table", "", [abi.HEADER_L1_TABLE_OFFSET, BigInt(L2_TABLE)]),
  set("a refcount table between clusters", "refused: Reference count table offset invalid", [
    abi.HEADER_REFCOUNT_TABLE_OFFSET,
    0x10200n,
  ]),
  set("a refcount table outside", "refused: Reference count table offset invalid", [
    abi.HEADER_REFCOUNT_TABLE_OFFSET,
    OUTSIDE,
  ]),
  set(
    "a refcount table on the header",
    "corrupt: Preventing invalid write on metadata (overlaps with qcow2_header)",
    [abi.HEADER_REFCOUNT_TABLE_OFFSET, 0n],
  ),
  set(
    "a refcount table on the L1 table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    [abi.HEADER_REFCOUNT_TABLE_OFFSET, BigInt(L1_TABLE)],
  ),
  set(
    "unknown feature 5",
    "refused: Unsupported qcow2 feature(s): Unknown incompatible feature: 20",
    [abi.HEADER_INCOMPATIBLE_FEATURES, 1n << 5n],
  ),
  set(
    "unknown feature 63",
    "refused: Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000",
    [abi.HEADER_INCOMPATIBLE_FEATURES, 1n << 63n],
  ),
  set("corrupt", "refused: qcow2: Image is corrupt; cannot be opened read/write", [
    abi.HEADER_INCOMPATIBLE_FEATURES,
    2n,
  ]),
  set("a data file without a name", "refused: 'data-file' is required for this image", [
    abi.HEADER_INCOMPATIBLE_FEATURES,
    4n,
  ]),
  set(
    "a compression type that needs no bit",
    "refused: qcow2: Compression type incompatible feature bit must not be set",
    [abi.HEADER_INCOMPATIBLE_FEATURES, 8n],
  ),
  set(
    "subclusters where there are none",
    "corrupt: Invalid cluster entry found (L2 offset: 0x40000, L2 index: 0x4)",
    [abi.HEADER_INCOMPATIBLE_FEATURES, 16n],
  ),
  set(
    "a backing file's name of 1024 bytes",
    "refused: Backing file name too long",
    [abi.HEADER_BACKING_FILE_OFFSET, 512n],
    [abi.HEADER_BACKING_FILE_SIZE, 1024],
  ),
  set(
    "a backing file's name past its cluster",
    "refused: Backing file name too long",
    [abi.HEADER_BACKING_FILE_OFFSET, 65500n],
    [abi.HEADER_BACKING_FILE_SIZE, 100],
  ),
  set(
    "an extension of 2 GiB",
    "refused: Header extension too large",
    [112, 0xe2792aca],
    [116, 0x7fff_ffff],
  ),
  set(
    "an extension past its cluster",
    "refused: Header extension too large",
    [112, 0x12345678],
    [116, 65536 - 112],
  ),
  set(
    "compression of type 2",
    "refused: qcow2: unknown compression type: 2",
    [abi.HEADER_INCOMPATIBLE_FEATURES, 8n],
    [abi.HEADER_COMPRESSION_TYPE, 0x0200_0000],
  ),
  set(
    "a snapshot table on the header",
    "corrupt: Preventing invalid write on metadata (overlaps with qcow2_header)",
    [abi.HEADER_NB_SNAPSHOTS, 1],
  ),
  set(
    "a snapshot table on the L2 table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L2 table)",
    [abi.HEADER_NB_SNAPSHOTS, 1],
    [abi.HEADER_SNAPSHOTS_OFFSET, BigInt(L2_TABLE)],
  ),
  set(
    "a snapshot table outside",
    "refused: Snapshot table offset invalid",
    [abi.HEADER_NB_SNAPSHOTS, 1],
    [abi.HEADER_SNAPSHOTS_OFFSET, OUTSIDE],
  ),
  set(
    "a snapshot table between clusters",
    "refused: Snapshot table offset invalid",
    [abi.HEADER_NB_SNAPSHOTS, 1],
    [abi.HEADER_SNAPSHOTS_OFFSET, 0x40200n],
  ),
  set(
    "65536 empty snapshots in data",
    "refused: Too much extra metadata in snapshot table entry 0",
    [abi.HEADER_NB_SNAPSHOTS, 65536],
    [abi.HEADER_SNAPSHOTS_OFFSET, BigInt(DATA)],
  ),
];
