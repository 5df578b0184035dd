/**
 * Active and inactive nodes: an inactive node takes no image locks, and nobody changes its image,
 * so that another process may. Thread: main.
 * Spec: qapi/block-core.json blockdev-set-active; QEMU block.c bdrv_activate(), bdrv_inactivate()
 */
import { strerror } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import { drained } from "./drained.ts";
import { type GraphNode, withDescendants } from "./graph-node.ts";
import { PERMS_OF_CHANGERS, updatePermissions } from "./permission-update.ts";

/**
 * Activates the nodes and all below them. Returns what takes it back. Throws OutportError, and
 * nothing has changed.
 */
export async function activate(nodes: readonly GraphNode[]): Promise<() => Promise<void>> {
  const changing = withDescendants(nodes).filter(({ active }) => !active);
  await change(changing, true);
  return () => change(changing, false);
}

/** Inactivates a node, and of those below it all that no other active node uses. */
export async function inactivate(node: GraphNode): Promise<void> {
  if (!node.active) return;
  if (hasActiveParent(node)) throw new OutportError("in-use", "Node has active parent node");
  const changing = new Set([node]);
  for (const one of withDescendants([node])) {
    const fromAbove = one.parents.some(({ parent }) => parent !== null && changing.has(parent));
    if (fromAbove && one.active && !hasActiveParent(one, changing)) changing.add(one);
  }
  await flushAndInactivate([...changing], "Failed to inactivate node");
}

/** Inactivates all nodes. */
export function inactivateAll(nodes: readonly GraphNode[]): Promise<void> {
  const changing = nodes.filter(({ active }) => active);
  return flushAndInactivate(changing, "Failed to inactivate all nodes");
}

function hasActiveParent(node: GraphNode, but: ReadonlySet<GraphNode> = new Set()): boolean {
  return node.parents.some(({ parent }) => parent?.active === true && !but.has(parent));
}

async function flushAndInactivate(nodes: readonly GraphNode[], failure: string): Promise<void> {
  for (const { parents } of nodes) {
    for (const { parent, user, permissions } of parents) {
      if (parent !== null || user.allowInactive === true) continue;
      if ((permissions.used & PERMS_OF_CHANGERS) === 0) continue;
      throw new OutportError("in-use", `${failure}: Operation not permitted`);
    }
  }
  await drained(nodes, async () => {
    for (const { iothread, nodeName } of nodes) {
      // Whoever takes over the image must find all of it.
      const { result } = await iothread.call("node-flush", { nodeName });
      if (result < 0) throw new OutportError("io", `${failure}: ${strerror(-result)}`);
    }
    await setActive(nodes, false);
  });
}

function change(nodes: readonly GraphNode[], active: boolean): Promise<void> {
  return drained(nodes, () => setActive(nodes, active));
}

async function setActive(nodes: readonly GraphNode[], active: boolean): Promise<void> {
  for (const node of nodes) node.active = active;
  try {
    await updatePermissions(nodes);
  } catch (error) {
    for (const node of nodes) node.active = !active;
    throw error;
  }
}
