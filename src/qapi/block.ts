/** What queries tell of block nodes. Pure. Spec: qapi/block-core.json */
import type { GenericSchema, InferOutput } from "valibot";
import { imageInfoSpecificQcow2 } from "./block-qcow2.ts";
import { imageInfoSpecificLuks } from "./crypto.ts";
import {
  arrayOf,
  bool,
  doc,
  enumeration,
  int,
  lazy,
  object,
  optional,
  str,
  uint32,
  uint64,
  union,
} from "./scalars.ts";
import type { MembersOutput, ObjectMembers } from "./types.ts";

export const detectZeroesOptions = enumeration("BlockdevDetectZeroesOptions", [
  "off",
  "on",
  "unmap",
]);

export const blockPermission = enumeration("BlockPermission", [
  "consistent-read",
  "write",
  "write-unchanged",
  "resize",
]);

export const preallocMode = enumeration("PreallocMode", ["off", "metadata", "falloc", "full"]);

export const snapshotInfo = object("SnapshotInfo", {
  id: doc(str, "Unique id of the snapshot"),
  name: doc(str, "Name given by the user"),
  "vm-state-size": doc(int, "Bytes of the machine's state"),
  "date-sec": doc(int, "When it was taken, seconds since 1970 in UTC"),
  "date-nsec": doc(int, "Nanoseconds of that time"),
  "vm-clock-sec": doc(int, "Machine clock, seconds"),
  "vm-clock-nsec": doc(int, "Nanoseconds of the machine clock"),
  icount: optional(int, "Instructions executed"),
});
export type SnapshotInfo = InferOutput<typeof snapshotInfo>;

const blockLimitsInfo = object("BlockLimitsInfo", {
  "request-alignment": doc(uint32, "Alignment of requests, bytes"),
  "max-discard": optional(uint64, "Most bytes per discard"),
  "discard-alignment": optional(uint32, "Best alignment of discards, bytes"),
  "max-write-zeroes": optional(uint64, "Most bytes per write of zeroes"),
  "write-zeroes-alignment": optional(uint32, "Best alignment of writes of zeroes, bytes"),
  "opt-transfer": optional(uint32, "Best transfer length, bytes"),
  "max-transfer": optional(uint32, "Most bytes per transfer"),
  "max-hw-transfer": optional(uint32, "Most bytes per transfer of the device below"),
  "max-iov": doc(int, "Most segments per request"),
  "max-hw-iov": optional(int, "Most segments per request of the device below"),
  "min-mem-alignment": doc(uint32, "Needed alignment of memory, bytes"),
  "opt-mem-alignment": doc(uint32, "Best alignment of memory, bytes"),
});

const vmdkExtentInfo = object("VmdkExtentInfo", {
  filename: doc(str, "Name of the file that holds it"),
  format: doc(str, "Type of the extent as the descriptor names it"),
  "virtual-size": doc(int, "Bytes that the guest sees of it"),
  "cluster-size": optional(int, "Bytes per grain"),
  compressed: optional(bool, "Its grains are compressed"),
});

const imageInfoSpecificVmdk = object("ImageInfoSpecificVmdk", {
  "create-type": doc(str, "Kind of the image"),
  cid: doc(int, "Content id"),
  "parent-cid": doc(int, "Content id of the parent, 0xffffffff for none"),
  extents: doc(arrayOf(vmdkExtentInfo), "What the image is made of"),
});

/** One branch per driver that has something to add. */
const imageInfoSpecific = union("ImageInfoSpecific", {
  base: { type: enumeration("ImageInfoSpecificKind", ["qcow2", "vmdk", "luks", "file"]) },
  tag: "type",
  branches: {
    qcow2: { data: imageInfoSpecificQcow2 },
    vmdk: { data: imageInfoSpecificVmdk },
    luks: { data: imageInfoSpecificLuks },
    file: {
      data: object("ImageInfoSpecificFile", {
        "extent-size-hint": optional(uint64, "Extent size hint of the file, bytes"),
      }),
    },
  },
});

const nodeInfoMembers = {
  filename: doc(str, "Name of the image"),
  format: doc(str, "Driver of the node"),
  "dirty-flag": optional(bool, "The image was not closed cleanly"),
  "actual-size": optional(int, "Bytes that the image takes on its disk"),
  "virtual-size": doc(int, "Bytes that the guest sees"),
  "cluster-size": optional(int, "Bytes per cluster"),
  encrypted: optional(bool, "The image is encrypted"),
  compressed: optional(bool, "The image is compressed"),
  "backing-filename": optional(str, "Backing file as the image names it"),
  "full-backing-filename": optional(str, "Path of the backing file"),
  "backing-filename-format": optional(str, "Format of the backing file"),
  snapshots: optional(arrayOf(snapshotInfo), "Internal snapshots"),
  limits: optional(blockLimitsInfo, "Limits of requests; without in-use nodes it is missing"),
  "format-specific": optional(imageInfoSpecific, "Facts of the format"),
} satisfies ObjectMembers;

/** An image and those behind it. */
export type ImageInfo = MembersOutput<typeof nodeInfoMembers> & {
  readonly "backing-image"?: ImageInfo | undefined;
};
export const imageInfo: GenericSchema<ImageInfo> = object("ImageInfo", {
  ...nodeInfoMembers,
  "backing-image": optional(
    lazy(() => imageInfo),
    "The image behind",
  ),
});

const throttleInfoMembers = {
  bps: doc(int, "Bytes per second, 0 for no limit"),
  bps_rd: doc(int, "Bytes read per second"),
  bps_wr: doc(int, "Bytes written per second"),
  iops: doc(int, "Requests per second, 0 for no limit"),
  iops_rd: doc(int, "Reads per second"),
  iops_wr: doc(int, "Writes per second"),
} satisfies ObjectMembers;

const throttleBurstMembers = {
  bps_max: optional(int, "Bytes per second in bursts"),
  bps_rd_max: optional(int, "Bytes read per second in bursts"),
  bps_wr_max: optional(int, "Bytes written per second in bursts"),
  iops_max: optional(int, "Requests per second in bursts"),
  iops_rd_max: optional(int, "Reads per second in bursts"),
  iops_wr_max: optional(int, "Writes per second in bursts"),
  bps_max_length: optional(int, "Longest burst of bps_max, seconds"),
  bps_rd_max_length: optional(int, "Longest burst of bps_rd_max, seconds"),
  bps_wr_max_length: optional(int, "Longest burst of bps_wr_max, seconds"),
  iops_max_length: optional(int, "Longest burst of iops_max, seconds"),
  iops_rd_max_length: optional(int, "Longest burst of iops_rd_max, seconds"),
  iops_wr_max_length: optional(int, "Longest burst of iops_wr_max, seconds"),
  iops_size: optional(int, "Bytes that count as one request"),
  group: optional(str, "Throttle group"),
} satisfies ObjectMembers;

const blockDirtyInfo = object("BlockDirtyInfo", {
  name: optional(str, "Name of the bitmap"),
  count: doc(int, "Dirty bytes"),
  granularity: doc(uint32, "Bytes per bit"),
  recording: doc(bool, "Writes mark it"),
  busy: doc(bool, "In use by an operation, and not to be changed"),
  persistent: doc(bool, "Stored in the image when that is closed"),
  inconsistent: optional(bool, "It was not stored properly, and can only be removed"),
});
export type BlockDirtyInfo = Readonly<InferOutput<typeof blockDirtyInfo>>;

/** A node for query-named-block-nodes, or what is inserted in a device. */
export const blockDeviceInfo = object("BlockDeviceInfo", {
  file: doc(str, "Name of the image"),
  "node-name": doc(str, "Name of the node"),
  ro: doc(bool, "Open for reading only"),
  drv: doc(str, "Driver of the node"),
  backing_file: optional(str, "Name of the backing file"),
  backing_file_depth: doc(int, "Images behind this one"),
  children: doc(
    arrayOf(
      object("BlockdevChild", {
        child: doc(str, "Role of the child"),
        "node-name": doc(str, "Name of the child's node"),
      }),
    ),
    "Nodes below",
  ),
  active: doc(bool, "Whether the node may be used"),
  encrypted: doc(bool, "The image is encrypted"),
  detect_zeroes: doc(detectZeroesOptions, "What becomes of written zeroes"),
  ...throttleInfoMembers,
  image: doc(imageInfo, "The image"),
  ...throttleBurstMembers,
  cache: doc(
    object("BlockdevCacheInfo", {
      writeback: doc(bool, "Writes are done before they are on the disk"),
      direct: doc(bool, "The host's page cache is bypassed"),
      "no-flush": doc(bool, "Flushes are ignored"),
    }),
    "Cache modes",
  ),
  write_threshold: doc(int, "Offset beyond which a write is told of, 0 for none"),
  "dirty-bitmaps": optional(arrayOf(blockDirtyInfo), "Dirty bitmaps of the node"),
});
export type BlockDeviceInfo = InferOutput<typeof blockDeviceInfo>;

/** A device for query-block. */
export const blockInfo = object("BlockInfo", {
  device: doc(str, "Name of the device"),
  qdev: optional(str, "Path or id of the device's object"),
  type: doc(str, "Always unknown"),
  removable: doc(bool, "The medium can be taken out"),
  locked: doc(bool, "The guest holds the medium"),
  inserted: optional(blockDeviceInfo, "The medium"),
  tray_open: optional(bool, "The tray is open"),
  "io-status": optional(
    enumeration("BlockDeviceIoStatus", ["ok", "failed", "nospace"]),
    "State of the device after errors",
  ),
});
export type BlockInfo = InferOutput<typeof blockInfo>;

/** What x-debug-query-block-graph returns. */
export const xDbgBlockGraph = object("XDbgBlockGraph", {
  nodes: arrayOf(
    object("XDbgBlockGraphNode", {
      id: doc(uint64, "Number of the node in this reply"),
      type: enumeration("XDbgBlockGraphNodeType", ["block-backend", "block-job", "block-driver"]),
      name: doc(str, "Name; of a backend without one: its user"),
    }),
  ),
  edges: arrayOf(
    object("XDbgBlockGraphEdge", {
      parent: doc(uint64, "Number of the parent"),
      child: doc(uint64, "Number of the child"),
      name: doc(str, "Role of the child"),
      perm: doc(arrayOf(blockPermission), "What the parent uses"),
      "shared-perm": doc(arrayOf(blockPermission), "What it lets others use"),
    }),
  ),
});
export type XDbgBlockGraph = InferOutput<typeof xDbgBlockGraph>;
