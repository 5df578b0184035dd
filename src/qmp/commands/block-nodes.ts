/**
 * Commands that look at block nodes, resize and watch them. Thread: main.
 * Spec: qapi/block-core.json
 */
import type { BlockDriver } from "../../block/driver.ts";
import type { ResizeOptions } from "../../block/resize.ts";
import {
  type BlockDeviceInfo,
  type BlockInfo,
  blockDeviceInfo,
  blockInfo,
  type XDbgBlockGraph,
  xDbgBlockGraph,
} from "../../qapi/block.ts";
import { type BlockStats, blockStats } from "../../qapi/block-stats.ts";
import { defineCommand, defineEvent } from "../../qapi/define.ts";
import {
  arrayOf,
  bool,
  doc,
  int,
  nothing,
  object,
  optional,
  str,
  uint64,
} from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";

export const blockNodeEvents = [
  defineEvent({
    name: "BLOCK_WRITE_THRESHOLD",
    documentation: "A write reached beyond the threshold of a node, which has none any more.",
    data: object("q_obj_BLOCK_WRITE_THRESHOLD-arg", {
      "node-name": doc(str, "The node"),
      "amount-exceeded": doc(uint64, "How far the write reached beyond, bytes"),
      "write-threshold": doc(uint64, "The threshold, an offset in bytes"),
    }),
  }),
  defineEvent({
    name: "BLOCK_IMAGE_CORRUPTED",
    documentation: "An image turned out to be damaged.",
    data: object("q_obj_BLOCK_IMAGE_CORRUPTED-arg", {
      device: doc(str, "Name of a device, or empty"),
      "node-name": optional(str, "The node"),
      msg: doc(str, "What is wrong, for people"),
      offset: optional(int, "Where an access was kept from metadata, bytes"),
      size: optional(int, "Its length, bytes"),
      fatal: doc(bool, "The image is marked corrupt and not used any more"),
    }),
  }),
] as const;

/** What the commands need of the nodes. */
export interface BlockNodeParts {
  readonly queries: {
    namedBlockNodes(flat: boolean): Promise<BlockDeviceInfo[]>;
    devices(): BlockInfo[];
    blockStats(ofNodes: boolean): Promise<BlockStats[]>;
    blockGraph(): Promise<XDbgBlockGraph>;
  };
  readonly resize: (options: ResizeOptions) => Promise<void>;
  readonly setWriteThreshold: (nodeName: string, offset: number) => Promise<void>;
  readonly drivers: readonly BlockDriver[];
}

export function blockNodeCommands(parts: BlockNodeParts): readonly AnyCommand[] {
  return [...queryCommands(parts), ...changeCommands(parts)];
}

function queryCommands({ queries, drivers }: BlockNodeParts): readonly AnyCommand[] {
  const flat = optional(bool, "Leave out the facts about backing images (default: false)");
  return [
    defineCommand({
      name: "query-named-block-nodes",
      documentation: "Facts about every block node, the newest first.",
      errors: [],
      arguments: object("q_obj_query-named-block-nodes-arg", { flat }),
      returns: arrayOf(blockDeviceInfo),
      handler: (given) => queries.namedBlockNodes(given.flat ?? false),
    }),
    defineCommand({
      name: "x-debug-query-block-graph",
      documentation: "The nodes with all who use them, and what each may do.",
      errors: [],
      features: ["unstable"],
      arguments: nothing,
      returns: xDbgBlockGraph,
      handler: () => queries.blockGraph(),
    }),
    defineCommand({
      name: "query-block",
      documentation: "Devices with a name of their own: none, exports are not among them.",
      errors: [],
      arguments: object("q_obj_query-block-arg", { flat }),
      returns: arrayOf(blockInfo),
      handler: () => queries.devices(),
    }),
    defineCommand({
      name: "query-blockstats",
      documentation: "Counters of block nodes: what exports asked of each.",
      errors: [],
      arguments: object("q_obj_query-blockstats-arg", {
        "query-nodes": optional(bool, "Of nodes rather than of named devices (default: false)"),
      }),
      returns: arrayOf(blockStats(drivers.map(({ name }) => name))),
      handler: ({ "query-nodes": ofNodes }) => queries.blockStats(ofNodes ?? false),
    }),
  ];
}

function changeCommands({ resize, setWriteThreshold }: BlockNodeParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "block_resize",
      documentation: "Gives a node another length while it is in use.",
      errors: [
        "There is no such node",
        "Somebody relies on the length",
        "The node is read-only",
        "The driver or the host can't",
      ],
      arguments: object("q_obj_block_resize-arg", {
        device: optional(str, "Name of a device"),
        "node-name": optional(str, "Name of a node"),
        size: doc(int, "New length, bytes"),
      }),
      returns: nothing,
      async handler(options) {
        await resize(options);
        return {};
      },
    }),
    defineCommand({
      name: "block-set-write-threshold",
      documentation:
        "Has BLOCK_WRITE_THRESHOLD tell, once, when a write reaches beyond an offset of a node.",
      errors: ["There is no such node"],
      arguments: object("q_obj_block-set-write-threshold-arg", {
        "node-name": doc(str, "The node"),
        "write-threshold": doc(uint64, "The offset, bytes; 0 for none"),
      }),
      returns: nothing,
      async handler({ "node-name": nodeName, "write-threshold": offset }) {
        await setWriteThreshold(nodeName, offset);
        return {};
      },
    }),
  ];
}
