/**
 * What an export type is on main: its schema and three callbacks. Thread: main.
 * Spec: qapi/block-export.json BlockExportOptions
 */

import type { Permissions } from "../block/driver.ts";
import type { GraphNode } from "../block/graph-node.ts";
import { alternate, arrayOf, bool, doc, optional, str } from "../qapi/scalars.ts";
import type { ObjectMembers } from "../qapi/types.ts";

/** Members of BlockExportOptions that every type has, but `type`. */
export const blockExportCommonMembers = {
  id: doc(str, "Name of the export, unique among exports of all types"),
  "fixed-iothread": optional(
    bool,
    "Fail, rather than stay where the node is, when it cannot move to `iothread` (default: false)",
  ),
  iothread: optional(
    alternate("BlockExportIothreads", [str, arrayOf(str)]),
    "Id of the iothread object that the export runs in; default: where its node is",
  ),
  "node-name": doc(str, "Node to export"),
  writable: optional(bool, "Clients may write (default: false)"),
  writethrough: optional(bool, "Flush after each write (default: false)"),
  "allow-inactive": optional(bool, "Leave the node inactive if it is (default: false)"),
} satisfies ObjectMembers;

/** One export as its type sees it. */
export interface BlockExport {
  readonly id: string;
  /** Another one when an overlay takes its place. */
  readonly node: GraphNode;
  readonly writable: boolean;
  readonly writethrough: boolean;
  /** The user gave a list of iothreads. */
  readonly multiThreaded: boolean;
  /** Its address may name descriptors by number, as it may on the command line only. */
  readonly fdNumbers: boolean;
  /** The type's own members of BlockExportOptions, wire names. */
  readonly options: Readonly<Record<string, unknown>>;
  /** What the export has of its node until it says otherwise. */
  readonly permissions: Permissions;
  /** Throws OutportError, and nothing has changed. */
  setPermissions(permissions: Permissions): Promise<void>;
}

export interface ExportType {
  /** Its BlockExportType value. */
  readonly name: string;
  /** Its branch of BlockExportOptions. */
  readonly members: ObjectMembers;
  /** It can serve an inactive node. */
  readonly allowsInactive: boolean;
  /** Ready to serve when it returns. Throws OutportError, and leaves nothing behind then. */
  create(exp: BlockExport): Promise<void>;
  /**
   * New clients no longer find it. `safe`: refuses with kind in-use while there is a client, and
   * nothing changes. Returns how many clients it has.
   */
  requestShutdown(exp: BlockExport, safe: boolean): Promise<number>;
  /** Ends clients and requests, flushes, lets go of the node. Once, after requestShutdown(). */
  delete(exp: BlockExport): Promise<void>;
  /**
   * Leaves the iothread of its node, with its clients, so that the node can move; outside of
   * drained sections, as requests under way must end. Throws OutportError, and nothing has changed.
   */
  suspend(exp: BlockExport): Promise<void>;
  /** Its node is another one, which stands on `from`; in a drained section. Does not fail. */
  onReplaced?(exp: BlockExport, from: GraphNode): Promise<void>;
  /** Serves on the iothread of its node, after suspend(). */
  resume(exp: BlockExport): Promise<void>;
}
