/** The nodes and edges of the graph as main keeps them. Thread: main. */
import type { NodeInfo, NodeOpen } from "../iothread/messages.ts";
import type { Iothread } from "../iothread/pool.ts";
import { assert, OutportError } from "../util/error.ts";
import type { BlockDriver, Permissions } from "./driver.ts";
import { NO_PERMISSIONS, nodeParent, UNNAMED_BLOCK_DEVICE } from "./permissions.ts";

/**
 * An export or job as the graph sees it. Inside exclusive(); both calls outside of drained
 * sections: beforeMove() waits for requests under way, and lets none start until afterMove().
 */
export interface RootUser {
  /** It serves an inactive node, too: its permissions rest then. */
  readonly allowInactive?: boolean;
  /**
   * Lets go of the node on its iothread, as the node's tree is about to move. Missing: the tree
   * can't move. Throws OutportError, and still has the node then.
   */
  beforeMove?(): Promise<void>;
  /**
   * It follows when another node takes the place of its node, which is told here; in a drained
   * section. Missing: it stays where it is.
   */
  onReplaced?(from: GraphNode): Promise<void>;
  /** Takes the node up again, on node.iothread: the new one, or the old one after a failure. */
  afterMove?(): Promise<void>;
}

/** One use of a node: by a parent node, or by an export or job. */
export class Edge {
  static #count = 0;
  /** Older ones have smaller ones. */
  readonly serial = Edge.#count++;
  /** Null for an export or job. */
  readonly parent: GraphNode | null;
  readonly role: string;
  child: GraphNode;
  /** Of an export or job. */
  readonly user: RootUser;
  permissions: Permissions = NO_PERMISSIONS;
  /** A node above relies on it: it must stay. */
  frozen = false;
  /** The child is the one that the parent's image names. */
  isImplied = false;

  constructor(parent: GraphNode | null, role: string, child: GraphNode, user: RootUser = {}) {
    this.parent = parent;
    this.role = role;
    this.child = child;
    this.user = user;
  }

  /** How messages name the parent. */
  get parentName(): string {
    return this.parent === null ? UNNAMED_BLOCK_DEVICE : nodeParent(this.parent.nodeName);
  }
}

export class GraphNode {
  readonly driver: BlockDriver;
  /** As it is open now, so that it can be opened elsewhere. */
  definition: NodeOpen;
  /** Members of BlockdevOptions that were given for this node itself, but children. */
  explicit: Readonly<Record<string, unknown>> = {};
  /** Defined inside it: takes over its options when it is reopened. */
  inheritsFrom: GraphNode | null = null;
  /** An inactive node takes no locks, and nobody changes its image. */
  active = true;
  iothread: Iothread;
  info: NodeInfo;
  /** By blockdev-add itself, not by a parent's inline definition. */
  monitorOwned = false;
  readonly children: Edge[] = [];
  /** Links below it that it has frozen. */
  frozen: readonly Edge[] = [];
  /** Newest first. */
  readonly parents: Edge[] = [];
  /** Of which nothing was heard yet; 0: none. */
  writeThreshold = 0;
  /** What its iothread was told last. */
  permissions: Permissions = NO_PERMISSIONS;
  toldActive = true;

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

/** How many nodes the longest path through `node` has. */
export function depthThrough(node: GraphNode): number {
  const below = (one: GraphNode): readonly GraphNode[] => one.children.map((edge) => edge.child);
  const above = (one: GraphNode): readonly GraphNode[] =>
    one.parents.flatMap((edge) => edge.parent ?? []);
  return longestPath(node, below, new Map()) + longestPath(node, above, new Map()) - 1;
}

function longestPath(
  node: GraphNode,
  next: (node: GraphNode) => readonly GraphNode[],
  known: Map<GraphNode, number>,
): number {
  let length = known.get(node);
  if (length === undefined) {
    length = 1 + Math.max(0, ...next(node).map((one) => longestPath(one, next, known)));
    known.set(node, length);
  }
  return length;
}

/**
 * Puts another child, or none, in the place of one, or of none; permissions are the caller's
 * business. Returns what takes it back.
 */
export function replaceChild(node: GraphNode, from: Edge | null, to: Edge | null): () => void {
  const lists = [node.children, from?.child.parents, to?.child.parents].filter((list) => list);
  const before = lists.map((list) => [...list!]);
  const index = from === null ? node.children.length : node.children.indexOf(from);
  node.children.splice(index, from === null ? 0 : 1, ...(to === null ? [] : [to]));
  if (from !== null) remove(from.child.parents, from);
  to?.child.parents.unshift(to);
  return () => {
    for (const [i, list] of lists.entries()) list!.splice(0, Infinity, ...before[i]!);
  };
}

/** The edges lead to another node; permissions are the caller's business. */
export function retargetEdges(edges: readonly Edge[], to: GraphNode): void {
  // As they are the newest first, so they stay.
  for (const edge of [...edges].reverse()) {
    remove(edge.child.parents, edge);
    edge.child = to;
    to.parents.unshift(edge);
    const { parent, role } = edge;
    if (parent === null) continue;
    const { definition } = parent;
    const children = { ...definition.children, [role]: to.nodeName };
    parent.definition = { ...definition, children };
  }
}

/** The links of the chain from `top` down to `bottom`, which is in it. */
export function chainLinks(top: GraphNode, bottom: string): Edge[] {
  const links: Edge[] = [];
  for (let node = top; node === top || node.nodeName !== bottom; ) {
    const role = node.driver.filtered ?? "backing";
    const link = node.children.find((edge) => edge.role === role);
    assert(link !== undefined, "the bottom of a chain is in it");
    links.push(link);
    node = link.child;
  }
  return links;
}

/** The image that others stand on must stay as it is. Throws OutportError. */
export function checkNotBacking({ nodeName, parents }: GraphNode): void {
  const overlay = parents.find(({ parent, role }) => parent !== null && role === "backing");
  if (overlay === undefined) return;
  const why = `node is used as backing hd of '${overlay.parent?.nodeName}'`;
  throw new OutportError("in-use", `Node '${nodeName}' is busy: ${why}`);
}

/** By an export or a job. */
export function isRootUsed(node: GraphNode): boolean {
  return node.parents.some((edge) => edge.parent === null);
}
