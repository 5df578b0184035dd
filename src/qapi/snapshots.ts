/** What snapshot commands and actions of a transaction take. Spec: qapi/block-core.json */
import type { InferOutput } from "valibot";
import { doc, enumeration, object, optional, str } from "./scalars.ts";

export const blockdevSnapshot = object("BlockdevSnapshot", {
  node: doc(str, "Node that is to stay as it is"),
  overlay: doc(str, "Node that takes its place: without a backing image, and not in use"),
});

export const blockdevSnapshotSync = object("BlockdevSnapshotSync", {
  device: optional(str, "Name of a device, of which there are none"),
  "node-name": optional(str, "Node that is to stay as it is"),
  "snapshot-file": doc(str, "Path of the overlay's image"),
  "snapshot-node-name": optional(str, "Name of the overlay's node"),
  format: optional(str, "Format of the overlay's image (default: qcow2)"),
  mode: optional(
    enumeration("NewImageMode", ["existing", "absolute-paths"]),
    "Whether the overlay's image exists or is made (default: absolute-paths)",
  ),
});

export const blockdevSnapshotInternal = object("BlockdevSnapshotInternal", {
  device: doc(str, "Node whose image is to have the snapshot"),
  name: doc(str, "Name of the snapshot, cut after 255 bytes"),
});

export type BlockdevSnapshot = Readonly<InferOutput<typeof blockdevSnapshot>>;
export type BlockdevSnapshotSync = Readonly<InferOutput<typeof blockdevSnapshotSync>>;
export type BlockdevSnapshotInternal = Readonly<InferOutput<typeof blockdevSnapshotInternal>>;
