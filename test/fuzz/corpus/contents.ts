/** qcow2 images whose snapshots or compressed data lie, and images cut short. */
import { deflateRawSync, zstdCompressSync } from "node:zlib";
import {
  compressed,
  cut,
  L1_TABLE,
  L2_TABLE,
  type Lie,
  OUTSIDE,
  REFCOUNT_BLOCK,
  REFCOUNT_TABLE,
  snapshot,
} from "./make.ts";

/** A frame whose header asks for more than any machine has. */
const HUGE_WINDOW = Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 1, 0, 0, 0, 0, 0);
const HUGE_CONTENT = Uint8Array.of(
  0x28,
  0xb5,
  0x2f,
  0xfd,
  0xe0,
  0,
  0,
  0,
  0,
  0,
  0,
  0,
  0x80,
  1,
  0,
  0,
);

export const contentLies: readonly Lie[] = [
  { name: "nothing", outcome: "", change: (image) => image },
  snapshot(
    "a snapshot's L1 table of 32 GiB",
    "corrupt: Preventing invalid write on metadata (overlaps with inactive L1 table)",
    { l1Size: 0xffff_ffff },
  ),
  snapshot(
    "a snapshot's L1 table outside",
    "corrupt: Preventing invalid write on metadata (overlaps with snapshot table)",
    { l1Offset: OUTSIDE },
  ),
  snapshot(
    "a snapshot's L1 table between clusters",
    "corrupt: Preventing invalid write on metadata (overlaps with active L1 table)",
    { l1Offset: 0x30200n },
  ),
  snapshot(
    "a snapshot with too much of its own",
    "refused: Too much extra metadata in snapshot table entry 0",
    { extraBytes: 1025 },
  ),
  snapshot("60000 snapshots of 128 KiB", "refused: Snapshot table offset invalid", {
    count: 60000,
    extraBytes: 0,
    nameBytes: 65535,
  }),
  compressed("a bomb of 40 MiB", "-EIO", deflateRawSync(new Uint8Array(40 << 20))),
  compressed("less than a cluster", "-EIO", deflateRawSync(new Uint8Array(1000))),
  compressed("a bomb of 64 MiB, zstd", "-EIO", zstdCompressSync(new Uint8Array(64 << 20)), true),
  compressed("less than a cluster, zstd", "-EIO", zstdCompressSync(new Uint8Array(1000)), true),
  compressed("a window of 2^41 bytes, zstd", "-EIO", HUGE_WINDOW, true),
  compressed("a content of 2^63 bytes, zstd", "-EIO", HUGE_CONTENT, true),
  cut(0, "refused: Image is not in qcow2 format"),
  cut(100, "refused: qcow2 header too short"),
  cut(1000, "refused: Reference count table offset invalid"),
  cut(REFCOUNT_TABLE + 512, "refused: Active L1 table offset invalid"),
  cut(REFCOUNT_BLOCK, "refused: Active L1 table offset invalid"),
  cut(L1_TABLE, "refused: Active L1 table offset invalid"),
  cut(L1_TABLE + 512, "corrupt: L2 table offset 0x40000 outside of the image (L1 index: 0)"),
  cut(L2_TABLE + 512, ""),
];
