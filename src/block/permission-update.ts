/**
 * Brings the permissions of nodes up to date with the graph: worked out and checked for all of
 * them, then given to their iothread in one call, then kept. All or nothing. Thread: main.
 */
import type { NodePermissions } from "../iothread/messages.ts";
import type { Iothread } from "../iothread/pool.ts";
import { assert } from "../util/error.ts";
import type { Permissions } from "./driver.ts";
import { type Edge, type GraphNode, withDescendants } from "./graph-node.ts";
import { checkParents, childUse } from "./permissions.ts";

/** Throws OutportError, and nothing has changed. All `nodes` live in one iothread. */
export async function updatePermissions(nodes: readonly GraphNode[]): Promise<void> {
  const edges = new Map<Edge, Permissions>();
  const changed = new Map<GraphNode, Permissions>();
  for (const node of withDescendants(nodes)) {
    const { nodeName, parents } = node;
    const uses = parents.map((edge) => ({
      ...(edges.get(edge) ?? edge.permissions),
      parent: edge.parentName,
      role: edge.role,
    }));
    const permissions = checkParents({ nodeName, writable: node.info.writable }, uses);
    if (!samePermissions(permissions, node.permissions)) changed.set(node, permissions);
    for (const edge of node.children) edges.set(edge, childPermissions(node, edge, permissions));
  }
  if (changed.size > 0) await send(changed);
  for (const [edge, permissions] of edges) edge.permissions = permissions;
  for (const [node, permissions] of changed) node.permissions = permissions;
}

function childPermissions(node: GraphNode, edge: Edge, of: Permissions): Permissions {
  const { driver, definition, info } = node;
  assert(driver.childPermissions !== undefined, "a driver with children has rules for them");
  const asked = driver.childPermissions(edge.role, of, definition.options, info.writable);
  return childUse(asked, edge.child.definition.forceShare);
}

async function send(changed: ReadonlyMap<GraphNode, Permissions>): Promise<void> {
  let iothread: Iothread | null = null;
  const nodes: NodePermissions[] = [];
  for (const [node, { used, shared }] of changed) {
    assert(iothread === null || iothread === node.iothread, "a tree lives in one iothread");
    iothread = node.iothread;
    nodes.push({ nodeName: node.nodeName, used, shared });
  }
  await iothread?.call("node-permissions", { nodes });
}

function samePermissions(one: Permissions, other: Permissions): boolean {
  return one.used === other.used && one.shared === other.shared;
}
