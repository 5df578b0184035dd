/**
 * Makes an open node read-only or writable, with the children that were defined inside it; nothing
 * else about it changes. Thread: main.
 * Spec: QEMU block.c bdrv_reopen_set_read_only()
 */
import { OutportError } from "../util/error.ts";
import type { GraphNode } from "./graph-node.ts";
import { applyReopen } from "./reopen.ts";

/** In a drained section. Throws OutportError, and nothing has changed. */
export async function setReadOnly(node: GraphNode, readOnly: boolean): Promise<void> {
  if (node.definition.readOnly === readOnly) return;
  const nodes = followersOf(node);
  const before = nodes.map(({ definition, explicit, info }) => ({ definition, explicit, info }));
  for (const { driver, nodeName } of nodes) {
    if (driver.reopenable !== undefined) continue;
    const what = `Block format '${driver.name}' used by node '${nodeName}'`;
    throw new OutportError("unsupported", `${what} does not support reopening files`);
  }
  for (const one of nodes) {
    one.definition = { ...one.definition, readOnly };
    one.info = { ...one.info, writable: !readOnly };
  }
  node.explicit = { ...node.explicit, "read-only": readOnly };
  try {
    await applyReopen(nodes, []);
  } catch (error) {
    for (const [i, one] of nodes.entries()) Object.assign(one, before[i]);
    throw error;
  }
}

/** The node, and below it those that take over what nobody has told them. */
function followersOf(node: GraphNode): GraphNode[] {
  const below = node.children.flatMap(({ role, child }) => {
    const follows = child.inheritsFrom === node && role !== "backing";
    return follows && child.explicit["read-only"] === undefined ? followersOf(child) : [];
  });
  return [node, ...below];
}
