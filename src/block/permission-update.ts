/**
 * Brings the permissions of nodes up to date with the graph: worked out and checked for all of
 * them, then given to their iothreads, then kept. All or nothing. Thread: main.
 */
import type { NodePermissions } from "../iothread/messages.ts";
import type { Iothread } from "../iothread/pool.ts";
import { assert, OutportError } from "../util/error.ts";
import type { Permissions } from "./driver.ts";
import { type Edge, type GraphNode, withDescendants } from "./graph-node.ts";
import { PERM_ALL, PERM_RESIZE, PERM_WRITE, PERM_WRITE_UNCHANGED } from "./node.ts";
import { checkParents, childUse, NO_PERMISSIONS, permissionNames } from "./permissions.ts";

/** What nobody may do with an inactive node. */
export const PERMS_OF_CHANGERS = PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE;

/** What is to be told to iothreads so that they know what the graph says. */
export interface PermissionPlan {
  readonly changes: ReadonlyMap<Iothread, readonly NodePermissions[]>;
  /** All of it has been told. */
  keep(): void;
}

/** Throws OutportError in QSD's words. `reopened`: nodes whose definitions are new. */
export function planPermissions(
  nodes: readonly GraphNode[],
  reopened: ReadonlySet<GraphNode> = new Set(),
): PermissionPlan {
  const edges = new Map<Edge, Permissions>();
  const told = new Map<GraphNode, Permissions>();
  for (const node of withDescendants(nodes)) {
    const uses = node.parents.map((edge) => ({
      ...(edge.parent === null ? rootUse(edge) : (edges.get(edge) ?? edge.permissions)),
      parent: edge.parentName,
      role: edge.role,
    }));
    const { nodeName, info } = node;
    const isReopened = reopened.has(node);
    const permissions = checkParents({ nodeName, writable: info.writable, isReopened }, uses);
    if (!node.active) checkInactive(permissions);
    told.set(node, node.active ? permissions : NO_PERMISSIONS);
    for (const edge of node.children) edges.set(edge, childPermissions(node, edge, permissions));
  }
  return {
    changes: changesOf(told),
    keep() {
      for (const [edge, permissions] of edges) edge.permissions = permissions;
      for (const [node, permissions] of told) {
        node.permissions = permissions;
        node.toldActive = node.active;
      }
    },
  };
}

/** Throws OutportError, and nothing has changed. */
export async function updatePermissions(nodes: readonly GraphNode[]): Promise<void> {
  const plan = planPermissions(nodes);
  const done: GraphNode["iothread"][] = [];
  try {
    for (const [iothread, changes] of plan.changes) {
      await iothread.call("node-permissions", { nodes: changes });
      done.push(iothread);
    }
  } catch (error) {
    for (const iothread of done.reverse()) await tellAgain(iothread, plan, nodes);
    throw error;
  }
  plan.keep();
}

/** What the iothread knew before. */
async function tellAgain(
  iothread: Iothread,
  plan: PermissionPlan,
  nodes: readonly GraphNode[],
): Promise<void> {
  const names = new Set(plan.changes.get(iothread)?.map(({ nodeName }) => nodeName));
  const before = withDescendants(nodes).filter(({ nodeName }) => names.has(nodeName));
  await iothread.call("node-permissions", { nodes: before.map(toldOf) });
}

/** What the node's iothread was told last. */
export function toldOf({ nodeName, permissions, toldActive }: GraphNode): NodePermissions {
  return { nodeName, ...permissions, active: toldActive };
}

/** While the node is inactive, those who only read and those who know how to wait need nothing. */
export function rootUse({ child, user, permissions }: Edge): Permissions {
  const isReader = (permissions.used & PERMS_OF_CHANGERS) === 0;
  return !child.active && (isReader || user.allowInactive === true) ? NO_PERMISSIONS : permissions;
}

function checkInactive({ used }: Permissions): void {
  const names = permissionNames(used & PERMS_OF_CHANGERS);
  if (names === "") return;
  throw new OutportError("permission", `Permission '${names}' unavailable on inactive node`);
}

function childPermissions(node: GraphNode, edge: Edge, of: Permissions): Permissions {
  const { driver, definition, info } = node;
  assert(driver.childPermissions !== undefined, "a driver with children has rules for them");
  const asked = driver.childPermissions(edge.role, of, definition.options, info.writable);
  if (!node.active) return { used: asked.used & ~PERMS_OF_CHANGERS, shared: PERM_ALL };
  return childUse(asked, edge.child.definition.forceShare);
}

function changesOf(
  told: ReadonlyMap<GraphNode, Permissions>,
): ReadonlyMap<Iothread, readonly NodePermissions[]> {
  const changes = new Map<Iothread, NodePermissions[]>();
  for (const [node, { used, shared }] of told) {
    const { nodeName, iothread, active, permissions: before } = node;
    if (used === before.used && shared === before.shared && active === node.toldActive) continue;
    const ofIothread = changes.get(iothread);
    const change = { nodeName, used, shared, active };
    if (ofIothread === undefined) changes.set(iothread, [change]);
    else ofIothread.push(change);
  }
  return changes;
}
