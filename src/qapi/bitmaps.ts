/** Arguments of the commands on dirty bitmaps. Pure. Spec: qapi/block-core.json */
import type { InferOutput } from "valibot";
import { alternate, arrayOf, bool, doc, object, optional, str, uint32 } from "./scalars.ts";

export const blockDirtyBitmap = object("BlockDirtyBitmap", {
  node: doc(str, "Node that has the bitmap"),
  name: doc(str, "Name of the bitmap"),
});
export type BlockDirtyBitmap = InferOutput<typeof blockDirtyBitmap>;

export const blockDirtyBitmapOrStr = alternate("BlockDirtyBitmapOrStr", [str, blockDirtyBitmap]);

export const blockDirtyBitmapAdd = object("BlockDirtyBitmapAdd", {
  node: doc(str, "Node that gets the bitmap"),
  name: doc(str, "Name of the bitmap, at most 1023 bytes"),
  granularity: optional(
    uint32,
    "Bytes per bit, a power of two from 512 on (default: the cluster size, or 64 KiB)",
  ),
  persistent: optional(bool, "Store it in the image when that is closed (default: false)"),
  disabled: optional(bool, "Let writes not mark it yet (default: false)"),
});
export type BlockDirtyBitmapAdd = InferOutput<typeof blockDirtyBitmapAdd>;

export const blockDirtyBitmapMerge = object("BlockDirtyBitmapMerge", {
  node: doc(str, "Node that has the target"),
  target: doc(str, "Bitmap that gets the marks of the others"),
  bitmaps: doc(
    arrayOf(blockDirtyBitmapOrStr),
    "Bitmaps to merge into it: of the same node by name, or of others",
  ),
});
export type BlockDirtyBitmapMerge = InferOutput<typeof blockDirtyBitmapMerge>;
