/** Takes a tree of nodes that nobody uses from one iothread to another. Thread: main. */
import type { Iothread } from "../iothread/pool.ts";
import { assert } from "../util/error.ts";
import type { GraphNode } from "./graph-node.ts";
import { NO_PERMISSIONS } from "./permissions.ts";

/**
 * Opens there, hands the permissions over, closes here, so that whatever fails, the tree is still
 * open in the end. `nodes`: all that are connected, parents before their children.
 */
export async function moveNodes(nodes: readonly GraphNode[], target: Iothread): Promise<void> {
  const source = nodes[0]!.iothread;
  assert(
    nodes.every((node) => node.iothread === source),
    "a tree lives in one iothread",
  );
  const opened: GraphNode[] = [];
  try {
    for (const node of [...nodes].reverse()) {
      node.info = await target.call("node-open", node.definition);
      opened.push(node);
    }
    await handOver(nodes, source, target);
  } catch (error) {
    for (const node of opened.reverse()) {
      await target.call("node-close", { nodeName: node.nodeName });
    }
    throw error;
  }
  for (const node of nodes) {
    await source.call("node-close", { nodeName: node.nodeName });
    node.iothread = target;
    source.userCount--;
    target.userCount++;
  }
}

/** Image locks stand against each other also within this process: dropped here, taken there. */
async function handOver(
  nodes: readonly GraphNode[],
  source: Iothread,
  target: Iothread,
): Promise<void> {
  const dropped = nodes.map(({ nodeName }) => ({ nodeName, ...NO_PERMISSIONS }));
  await source.call("node-permissions", { nodes: dropped });
  const held = nodes.map(({ nodeName, permissions }) => ({ nodeName, ...permissions }));
  try {
    await target.call("node-permissions", { nodes: held });
  } catch (error) {
    await source.call("node-permissions", { nodes: held });
    throw error;
  }
}
