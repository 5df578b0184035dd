/** The nodes and edges of the graph as main keeps them. Thread: main. */
import type { NodeInfo, NodeOpen } from "../iothread/messages.ts";
import type { Iothread } from "../iothread/pool.ts";
import type { BlockDriver, Permissions } from "./driver.ts";
import { NO_PERMISSIONS, nodeParent, UNNAMED_BLOCK_DEVICE } from "./permissions.ts";

/** One use of a node: by a parent node, or by an export or job. */
export class Edge {
  /** Null for an export or job. */
  readonly parent: GraphNode | null;
  readonly role: string;
  readonly child: GraphNode;
  permissions: Permissions = NO_PERMISSIONS;

  constructor(parent: GraphNode | null, role: string, child: GraphNode) {
    this.parent = parent;
    this.role = role;
    this.child = child;
  }

  /** How messages name the parent. */
  get parentName(): string {
    return this.parent === null ? UNNAMED_BLOCK_DEVICE : nodeParent(this.parent.nodeName);
  }
}

export class GraphNode {
  readonly driver: BlockDriver;
  /** As it was opened, so that it can be opened elsewhere. */
  readonly definition: NodeOpen;
  iothread: Iothread;
  info: NodeInfo;
  /** By blockdev-add itself, not by a parent's inline definition. */
  monitorOwned = false;
  readonly children: Edge[] = [];
  /** Newest first. */
  readonly parents: Edge[] = [];
  /** What its iothread was told last. */
  permissions: Permissions = NO_PERMISSIONS;

  constructor(driver: BlockDriver, definition: NodeOpen, iothread: Iothread) {
    this.driver = driver;
    this.definition = definition;
    this.iothread = iothread;
    this.info = { bytes: 0, writable: !definition.readOnly, description: {} };
  }

  get nodeName(): string {
    return this.definition.nodeName;
  }
}

/** Puts an edge into the graph; permissions are the caller's business. */
export function attachEdge(edge: Edge): void {
  edge.child.parents.unshift(edge);
  edge.parent?.children.push(edge);
}

/** Takes an edge out of the graph; permissions are the caller's business. */
export function detachEdge(edge: Edge): void {
  remove(edge.child.parents, edge);
  if (edge.parent !== null) remove(edge.parent.children, edge);
}

function remove(edges: Edge[], edge: Edge): void {
  const index = edges.indexOf(edge);
  if (index >= 0) edges.splice(index, 1);
}

/** All nodes below and including `nodes`, each once, parents before their children. */
export function withDescendants(nodes: readonly GraphNode[]): GraphNode[] {
  const order: GraphNode[] = [];
  const seen = new Set<GraphNode>();
  const visit = (node: GraphNode): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const edge of node.children) visit(edge.child);
    order.push(node);
  };
  for (const node of nodes) visit(node);
  return order.reverse();
}

/** All nodes that are connected with `node`, parents before their children. */
export function connectedNodes(node: GraphNode): GraphNode[] {
  const seen = new Set<GraphNode>([node]);
  for (const one of seen) {
    for (const edge of one.children) seen.add(edge.child);
    for (const edge of one.parents) if (edge.parent !== null) seen.add(edge.parent);
  }
  return withDescendants([...seen].filter((one) => one.parents.every((e) => e.parent === null)));
}
