/** Commands on the graph of block nodes. Thread: main. Spec: qapi/block-core.json */
import type { GenericSchema } from "valibot";
import { blockdevCommonMembers } from "../../block/catalogue.ts";
import type { BlockDriver } from "../../block/driver.ts";
import { defineCommand } from "../../qapi/define.ts";
import {
  alternate,
  any,
  arrayOf,
  bool,
  enumeration,
  lazy,
  nothing,
  nullValue,
  object,
  optional,
  str,
  union,
} from "../../qapi/scalars.ts";
import type { AnyCommand, ObjectMembers } from "../../qapi/types.ts";

type Wire = Readonly<Record<string, unknown>>;

/** What the commands need of the graph. */
export interface BlockGraphCommands {
  blockdevAdd(options: Wire): Promise<void>;
  blockdevDel(nodeName: string): Promise<void>;
  queryNamedBlockNodes(): Promise<Record<string, unknown>[]>;
}

/** BlockdevOptions: one branch per driver, its children before its own members. */
function blockdevOptions(drivers: readonly BlockDriver[]): GenericSchema<unknown, Wire> {
  const self: GenericSchema = lazy(() => options);
  const reference = alternate("BlockdevRef", [self, str]);
  const referenceOrNull = alternate("BlockdevRefOrNull", [self, str, nullValue]);
  const branch = ({ children, members }: BlockDriver): ObjectMembers => ({
    ...Object.fromEntries(
      children.map(({ role, optional: mayMiss }) => [
        role,
        mayMiss ? optional(referenceOrNull) : reference,
      ]),
    ),
    ...members,
  });
  const options: GenericSchema = union("BlockdevOptions", {
    base: {
      driver: enumeration(
        "BlockdevDriver",
        drivers.map(({ name }) => name),
      ),
      ...blockdevCommonMembers,
    },
    tag: "driver",
    branches: Object.fromEntries(drivers.map((driver) => [driver.name, branch(driver)])),
  });
  return options as GenericSchema<unknown, Wire>;
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
    defineCommand({
      name: "query-named-block-nodes",
      documentation: "Facts about every block node.",
      errors: [],
      arguments: object("q_obj_query-named-block-nodes-arg", {
        flat: optional(bool, "Leave out the facts about backing images (default: false)"),
      }),
      returns: arrayOf(any),
      handler: () => graph.queryNamedBlockNodes(),
    }),
  ];
}
