/** Commands that change nodes of the block graph while they are open. Thread: main. */
import type { BlockDriver } from "../../block/driver.ts";
import { defineCommand } from "../../qapi/define.ts";
import {
  alternate,
  arrayOf,
  bool,
  doc,
  nothing,
  nullValue,
  object,
  optional,
  str,
} from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";
import { blockdevOptions } from "./blockdev-options.ts";

type Wire = Readonly<Record<string, unknown>>;

/** What the commands need of the graph. */
export interface GraphChanges {
  blockdevReopen(list: readonly Wire[]): Promise<void>;
  blockdevSetActive(nodeName: string | undefined, active: boolean): Promise<void>;
  setIothread(nodeName: string, id: string | null, force: boolean): Promise<void>;
}

export interface GraphParts {
  readonly graph: GraphChanges;
  readonly drivers: readonly BlockDriver[];
}

export function graphCommands({ graph, drivers }: GraphParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "blockdev-reopen",
      documentation:
        "Gives open nodes new options, all of them or none. Options that are left out go back to " +
        "their defaults; `file` and `backing` may name other nodes.",
      errors: ["There is no such node", "An option cannot change", "Users of the node forbid it"],
      arguments: object("q_obj_blockdev-reopen-arg", {
        options: doc(arrayOf(blockdevOptions(drivers)), "The nodes by name, with their options"),
      }),
      returns: nothing,
      async handler({ options }) {
        await graph.blockdevReopen(options);
        return {};
      },
    }),
    defineCommand({
      name: "blockdev-set-active",
      documentation:
        "Activates nodes, or inactivates them: nobody writes to them and they hold no image " +
        "locks, so that another process may take the image over.",
      errors: ["There is no such node", "The node is in use by an active node or a writer"],
      arguments: object("q_obj_blockdev-set-active-arg", {
        "node-name": optional(str, "Name of the node; default: all nodes"),
        active: doc(bool, "What it is to be"),
      }),
      returns: nothing,
      async handler({ "node-name": nodeName, active }) {
        await graph.blockdevSetActive(nodeName, active);
        return {};
      },
    }),
    defineCommand({
      name: "x-blockdev-set-iothread",
      documentation: "Moves a node, with all that it is connected with, to another iothread.",
      errors: ["There is no such node or iothread", "The node is in use"],
      features: ["unstable"],
      arguments: object("q_obj_x-blockdev-set-iothread-arg", {
        "node-name": doc(str, "Name of the node"),
        iothread: doc(
          alternate("StrOrNull", [str, nullValue]),
          "Id of the iothread object; null for the built-in thread",
        ),
        force: optional(bool, "Move it even if it is in use (default: false)"),
      }),
      returns: nothing,
      async handler({ "node-name": nodeName, iothread, force }) {
        await graph.setIothread(nodeName, iothread, force ?? false);
        return {};
      },
    }),
  ];
}
