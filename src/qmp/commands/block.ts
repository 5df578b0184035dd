/** Commands on the graph of block nodes. Thread: main. Spec: qapi/block-core.json */
import type { BlockDriver } from "../../block/driver.ts";
import { defineCommand } from "../../qapi/define.ts";
import { nothing, object, str } from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";
import { blockdevOptions } from "./blockdev-options.ts";

type Wire = Readonly<Record<string, unknown>>;

/** What the commands need of the graph. */
export interface BlockGraphCommands {
  blockdevAdd(options: Wire): Promise<void>;
  blockdevDel(nodeName: string): Promise<void>;
}

export interface BlockParts {
  readonly graph: BlockGraphCommands;
  readonly drivers: readonly BlockDriver[];
}

export function blockCommands({ graph, drivers }: BlockParts): readonly AnyCommand[] {
  return [
    defineCommand({
      name: "blockdev-add",
      documentation: "Opens a block node, and those that are defined inside it.",
      errors: ["The name is taken", "The image cannot be opened or locked"],
      arguments: blockdevOptions(drivers),
      returns: nothing,
      async handler(options) {
        await graph.blockdevAdd(options);
        return {};
      },
    }),
    defineCommand({
      name: "blockdev-del",
      documentation: "Flushes and closes a block node that blockdev-add made.",
      errors: ["There is no such node", "The node is in use"],
      arguments: object("q_obj_blockdev-del-arg", { "node-name": str }),
      returns: nothing,
      async handler({ "node-name": nodeName }) {
        await graph.blockdevDel(nodeName);
        return {};
      },
    }),
  ];
}
