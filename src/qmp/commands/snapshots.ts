/** Commands on snapshots and names of backing files. Thread: main. Spec: qapi/block-core.json */
import type { Snapshots } from "../../block/snapshots.ts";
import { snapshotInfo } from "../../qapi/block.ts";
import { defineCommand } from "../../qapi/define.ts";
import { doc, nothing, object, optional, str } from "../../qapi/scalars.ts";
import {
  blockdevSnapshot,
  blockdevSnapshotInternal,
  blockdevSnapshotSync,
} from "../../qapi/snapshots.ts";
import type { AnyCommand } from "../../qapi/types.ts";

export interface SnapshotParts {
  readonly snapshots: Pick<Snapshots, "run" | "deleteInternal" | "changeBackingFile" | "step">;
}

const NOT_FOUND = "There is no such node";
const BUSY = "The node is in use as a backing image";

export function snapshotCommands({ snapshots }: SnapshotParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "blockdev-snapshot",
      documentation:
        "Puts a node on top of another one: all that used that one uses the overlay from then " +
        "on, and what is written goes there.",
      errors: [NOT_FOUND, BUSY, "The overlay is in use, has a backing image or can't have one"],
      features: ["allow-write-only-overlay"],
      arguments: blockdevSnapshot,
      returns: nothing,
      async handler(data) {
        await snapshots.run({ type: "blockdev-snapshot", data });
        return {};
      },
    }),
    defineCommand({
      name: "blockdev-snapshot-sync",
      documentation:
        "The same with an overlay whose image is made, or opened, for that. It is closed with " +
        "the last of those who use it.",
      errors: [NOT_FOUND, BUSY, "The image can't be made or opened"],
      arguments: blockdevSnapshotSync,
      returns: nothing,
      async handler(data) {
        await snapshots.run({ type: "blockdev-snapshot-sync", data });
        return {};
      },
    }),
    ...internalSnapshotCommands({ snapshots }),
    defineCommand({
      name: "change-backing-file",
      documentation:
        "Has an image name another backing file. What is open stays as it is: it is for who " +
        "opens the image next.",
      errors: [NOT_FOUND, "The image has no backing image, or is not below the device"],
      arguments: object("q_obj_change-backing-file-arg", {
        device: doc(str, "Root of the chain that the image is in"),
        "image-node-name": doc(str, "Node of the image"),
        "backing-file": doc(str, "What it is to name, whether or not that exists"),
      }),
      returns: nothing,
      async handler(change) {
        await snapshots.changeBackingFile(change);
        return {};
      },
    }),
  ];
}

function internalSnapshotCommands({ snapshots }: SnapshotParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "blockdev-snapshot-internal-sync",
      documentation: "Keeps what an image holds now as a snapshot inside it.",
      errors: [
        NOT_FOUND,
        "The node is no root of the graph, read-only, or of another format",
        "The name is empty or taken",
      ],
      arguments: blockdevSnapshotInternal,
      returns: nothing,
      async handler(data) {
        await snapshots.run({ type: "blockdev-snapshot-internal-sync", data });
        return {};
      },
    }),
    defineCommand({
      name: "blockdev-snapshot-delete-internal-sync",
      documentation: "Deletes a snapshot inside an image, and tells what it was.",
      errors: [NOT_FOUND, "There is no such snapshot", "The node is read-only"],
      arguments: object("q_obj_blockdev-snapshot-delete-internal-sync-arg", {
        device: doc(str, "Node whose image has the snapshot"),
        id: optional(str, "Its id"),
        name: optional(str, "Its name; id, name or both have to be given"),
      }),
      returns: snapshotInfo,
      handler: (deletion) => snapshots.deleteInternal(deletion),
    }),
  ];
}
