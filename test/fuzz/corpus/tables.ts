/** Lies in the tables of a qcow2 image. */
import * as abi from "../../../src/abi/qcow2.ts";
import {
  CLUSTER,
  COMPRESSED,
  COPIED,
  count,
  DATA,
  L1_TABLE,
  L2_TABLE,
  type Lie,
  OUTSIDE,
  REFCOUNT_BLOCK,
  REFCOUNT_TABLE,
  set,
} from "./make.ts";

export const tableLies: readonly Lie[] = [
  set("an L1 entry for nowhere", "", [L1_TABLE, COPIED]),
  set(
    "an L1 entry for the L1 table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    [L1_TABLE, COPIED | BigInt(L1_TABLE)],
  ),
  set(
    "an L1 entry for the refcount block",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount block)",
    [L1_TABLE, COPIED | BigInt(REFCOUNT_BLOCK)],
  ),
  set(
    "an L1 entry for the refcount table",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount table)",
    [L1_TABLE, COPIED | BigInt(REFCOUNT_TABLE)],
  ),
  set("an L1 entry for data", "", [L1_TABLE, COPIED | BigInt(DATA)]),
  set(
    "an L1 entry for outside",
    "corrupt: L2 table offset 0x40000000 outside of the image (L1 index: 0)",
    [L1_TABLE, COPIED | OUTSIDE],
  ),
  set(
    "an L1 entry for between clusters",
    "corrupt: L2 table offset 0x40200 unaligned (L1 index: 0)",
    [L1_TABLE, COPIED | 0x40200n],
  ),
  set(
    "an L1 entry for 2^55",
    "corrupt: L2 table offset 0xffffffffff0000 outside of the image (L1 index: 0)",
    [L1_TABLE, COPIED | 0xff_ffff_ffff_0000n],
  ),
  set("an L1 entry for a table that others use, too", "", [L1_TABLE, BigInt(L2_TABLE)]),
  set(
    "two L1 entries for one table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L2 table)",
    [abi.HEADER_L1_SIZE, 2],
    [abi.HEADER_SIZE, 1024n << 20n],
    [L1_TABLE + 8, COPIED | BigInt(L2_TABLE)],
  ),
  set("an L2 entry for nowhere", "", [L2_TABLE, COPIED]),
  set(
    "an L2 entry for the L1 table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    [L2_TABLE, COPIED | BigInt(L1_TABLE)],
  ),
  set(
    "an L2 entry for its own table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L2 table)",
    [L2_TABLE, COPIED | BigInt(L2_TABLE)],
  ),
  set(
    "an L2 entry for the refcount block",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount block)",
    [L2_TABLE, COPIED | BigInt(REFCOUNT_BLOCK)],
  ),
  set(
    "an L2 entry for the refcount table",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount table)",
    [L2_TABLE, COPIED | BigInt(REFCOUNT_TABLE)],
  ),
  set("an L2 entry for outside", "corrupt: Data cluster offset 0x40000000 outside of the image", [
    L2_TABLE,
    COPIED | OUTSIDE,
  ]),
  set(
    "an L2 entry for the end of the file",
    "corrupt: Data cluster offset 0x90000 outside of the image",
    [L2_TABLE, COPIED | BigInt(DATA + 4 * CLUSTER)],
  ),
  set(
    "an L2 entry for between clusters",
    "corrupt: Cluster allocation offset 0x50200 unaligned (L2 offset: 0x40000, L2 index: 0)",
    [L2_TABLE, COPIED | 0x50200n],
  ),
  set("an L2 entry for reserved bits", "", [L2_TABLE, COPIED | BigInt(DATA) | 2n]),
  set(
    "an L2 entry for 2^55",
    "corrupt: Cluster allocation offset 0xffffffffff0000 too large " +
      "(L2 offset: 0x40000, L2 index: 0)",
    [L2_TABLE, COPIED | 0xff_ffff_ffff_0000n],
  ),
  set("an L2 entry for another's data", "", [L2_TABLE, COPIED | BigInt(DATA + CLUSTER)]),
  set("an L2 entry for compressed data outside", "-EIO", [L2_TABLE, COMPRESSED | OUTSIDE]),
  set("an L2 entry for compressed data that is none", "-EIO", [
    L2_TABLE,
    COMPRESSED | BigInt(DATA),
  ]),
  set("an L2 entry for compressed data of 128 KiB", "-EIO", [
    L2_TABLE,
    COMPRESSED | (0xffn << 54n) | BigInt(DATA),
  ]),
  set("an L2 entry for compressed data in the header", "-EIO", [
    L2_TABLE,
    COMPRESSED | (1n << 54n),
  ]),
  set("an L2 entry for compressed data that is copied", "-EIO", [
    L2_TABLE,
    COPIED | COMPRESSED | BigInt(DATA),
  ]),
  set(
    "a refcount table entry for nothing",
    "corrupt: Preventing invalid write on metadata (overlaps with qcow2_header)",
    [REFCOUNT_TABLE, 0n],
  ),
  set(
    "a refcount table entry for the L1 table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    [REFCOUNT_TABLE, BigInt(L1_TABLE)],
  ),
  set(
    "a refcount table entry for the refcount table",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount table)",
    [REFCOUNT_TABLE, BigInt(REFCOUNT_TABLE)],
  ),
  set(
    "a refcount table entry for data",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount block)",
    [REFCOUNT_TABLE, BigInt(DATA)],
  ),
  set(
    "a refcount table entry for outside",
    "corrupt: Refblock offset 0x40000000 outside of the image (reftable index: 0)",
    [REFCOUNT_TABLE, OUTSIDE],
  ),
  set(
    "a refcount table entry for between clusters",
    "corrupt: Refblock offset 0x20200 unaligned (reftable index: 0)",
    [REFCOUNT_TABLE, 0x20200n],
  ),
  set(
    "a refcount table entry for 2^55",
    "corrupt: Refblock offset 0xffffffffff0000 outside of the image (reftable index: 0)",
    [REFCOUNT_TABLE, 0xff_ffff_ffff_0000n],
  ),
  count(
    "no refcount of the header",
    "corrupt: Preventing invalid write on metadata (overlaps with qcow2_header)",
    0,
    0,
  ),
  count(
    "no refcount of the refcount table",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount table)",
    1,
    0,
  ),
  count(
    "no refcount of the refcount block",
    "corrupt: Preventing invalid write on metadata (overlaps with refcount block)",
    2,
    0,
  ),
  count(
    "no refcount of the L1 table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    3,
    0,
  ),
  count(
    "no refcount of the L2 table",
    "corrupt: Preventing invalid write on metadata (overlaps with active L2 table)",
    4,
    0,
  ),
  count("no refcount of data", "", 5, 0),
  count("a refcount of data of 65535", "", 5, 65535),
];
