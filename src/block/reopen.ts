/**
 * blockdev-reopen: new options and children for nodes that stay open, all or nothing. The graph is
 * changed first and checked; then the iothreads change their nodes, and everything is kept when all
 * of them could, or goes back. Thread: main.
 * Spec: qapi/block-core.json blockdev-reopen; QEMU block.c bdrv_reopen_multiple()
 */
import type { NodeOpen, NodesReopen } from "../iothread/messages.ts";
import type { Iothread } from "../iothread/pool.ts";
import { OutportError } from "../util/error.ts";
import { trace } from "../util/trace.ts";
import { ownOptions } from "./catalogue.ts";
import { drained } from "./drained.ts";
import {
  connectedNodes,
  Edge,
  type GraphNode,
  replaceChild,
  withDescendants,
} from "./graph-node.ts";
import { type PermissionPlan, planPermissions } from "./permission-update.ts";
import { checkReset, checkUnchanged, type ReopenEntry, ReopenQueue } from "./reopen-options.ts";

type Wire = Readonly<Record<string, unknown>>;

export interface ReopenParts {
  readonly find: (nodeName: string) => GraphNode | undefined;
  /** See BlockDriver.bind(). Throws OutportError. */
  readonly bind: (node: GraphNode) => void;
  /** Brings two trees together in one iothread. Throws OutportError. */
  readonly join: (node: GraphNode, child: GraphNode) => Promise<void>;
  /** Throws OutportError when the tree has become too deep. */
  readonly checkDepth: (node: GraphNode) => void;
}

/** `list`: BlockdevOptions, checked. Returns the children that were replaced. */
export async function reopenNodes(
  list: readonly Wire[],
  parts: ReopenParts,
): Promise<readonly GraphNode[]> {
  const queue = queueOf(list, parts.find);
  await joinTrees(queue, parts);
  const { replaced, added, undo } = changeGraph(queue, parts);
  try {
    const nodes = queue.map(({ node }) => node);
    await drained([...nodes, ...replaced], () => applyReopen(nodes, [...replaced, ...added]));
  } catch (error) {
    undo();
    throw error;
  }
  for (const { node, explicit } of queue) node.explicit = explicit;
  for (const child of replaced) {
    const isStill = child.parents.some(({ parent }) => parent === child.inheritsFrom);
    if (!isStill) child.inheritsFrom = null;
  }
  return replaced;
}

/**
 * Brings the new children to where their parents are, before anything changes, and only when
 * nothing else is wrong. Throws OutportError.
 */
async function joinTrees(queue: readonly ReopenEntry[], parts: ReopenParts): Promise<void> {
  const pairs = queue.flatMap(({ node, references }) =>
    [...references.values()].flatMap((name) => {
      const child = name === null ? undefined : parts.find(name);
      return child === undefined ? [] : { node, child };
    }),
  );
  const areApart = (): boolean => pairs.some(({ node, child }) => node.iothread !== child.iothread);
  if (!areApart()) return;
  changeGraph(queue, parts).undo();
  for (const { node, child } of pairs) await parts.join(node, child);
  // One that followed its child may have left another one behind.
  if (areApart()) {
    throw new OutportError("in-use", "Cannot change iothread of active block backend");
  }
}

/** Throws OutportError, and nothing has changed. */
function changeGraph(
  queue: readonly ReopenEntry[],
  { find, bind, checkDepth }: ReopenParts,
): { replaced: readonly GraphNode[]; added: readonly GraphNode[]; undo: () => void } {
  const undos: (() => void)[] = [];
  const undo = (): void => {
    for (const step of undos.reverse()) step();
  };
  const replaced: GraphNode[] = [];
  const added: GraphNode[] = [];
  try {
    for (const entry of queue) {
      if (trace.bdrv_reopen.enabled) trace.bdrv_reopen.write(`node ${entry.node.nodeName}`);
      checkReset(entry);
      for (const [role, name] of entry.references) {
        const child = childFor(entry.node, role, name, find);
        if (child === undefined) continue;
        const edge = entry.node.children.find((one) => one.role === role);
        if (edge?.frozen === true) throw frozenLink(edge);
        undos.push(setChild(entry.node, role, edge, child));
        if (edge !== undefined) replaced.push(edge.child);
        if (child !== null) added.push(child);
        checkDepth(entry.node);
      }
      checkUnchanged(entry);
      undos.push(define(entry));
      bind(entry.node);
    }
  } catch (error) {
    undo();
    throw error;
  }
  return { replaced, added, undo };
}

function queueOf(list: readonly Wire[], find: ReopenParts["find"]): readonly ReopenEntry[] {
  const queue = new ReopenQueue();
  for (const given of list) {
    const name = given["node-name"] as string | undefined;
    if (name === undefined) throw new OutportError("invalid", "node-name not specified");
    const node = find(name);
    if (node === undefined) {
      throw new OutportError("not-found", `Failed to find node with node-name='${name}'`);
    }
    queue.add(node, given);
  }
  return queue.entries;
}

/** The new child; null for none, undefined when nothing changes. Throws OutportError. */
function childFor(
  node: GraphNode,
  role: string,
  name: string | null,
  find: ReopenParts["find"],
): GraphNode | null | undefined {
  const before = node.children.find((edge) => edge.role === role)?.child;
  if (name === null) return before === undefined ? undefined : null;
  const isReplaceable = role === "file" || role === "backing";
  if (!isReplaceable && name !== before?.nodeName) {
    throw new OutportError("invalid", `Cannot change the option '${role}'`);
  }
  const child = find(name);
  if (child === undefined) {
    throw new OutportError("not-found", `Cannot find device='' nor node-name='${name}'`);
  }
  if (withDescendants([child]).includes(node)) {
    const message = `Making '${name}' a ${role} child of '${node.nodeName}' would create a cycle`;
    throw new OutportError("invalid", message);
  }
  if (child === before) return undefined;
  checkBothActive(node, role, child);
  return child;
}

export function checkBothActive(parent: GraphNode, role: string, child: GraphNode): void {
  if (child.active || !parent.active) return;
  const use = `a ${role} child of active '${parent.nodeName}'`;
  throw new OutportError("invalid", `Inactive '${child.nodeName}' can't be ${use}`);
}

/** Returns what takes it back. */
function setChild(
  node: GraphNode,
  role: string,
  edge: Edge | undefined,
  child: GraphNode | null,
): () => void {
  return replaceChild(node, edge ?? null, child === null ? null : new Edge(node, role, child));
}

/** Returns what takes it back. */
function define({ node, explicit, common }: ReopenEntry): () => void {
  const { definition, info } = node;
  const children = node.children.map(({ role, child }) => [role, child.nodeName]);
  node.definition = {
    ...definition,
    ...common,
    options: ownOptions(node.driver, explicit),
    children: Object.fromEntries(children),
  };
  const sameMode = common.readOnly === definition.readOnly;
  node.info = { ...info, writable: sameMode ? info.writable : !common.readOnly };
  return () => {
    node.definition = definition;
    node.info = info;
  };
}

/**
 * Has the iothreads do what the graph says already, in a drained section: all of it, or it throws
 * OutportError. `nodes`: those with other options or children; `others`: children that came or
 * went; `users`: see NodesReopen.
 */
export async function applyReopen(
  nodes: readonly GraphNode[],
  others: readonly GraphNode[],
  users?: NodesReopen["users"],
): Promise<void> {
  // Of users that come from elsewhere, QSD says what it says of new ones.
  const reopened = new Set(users === undefined ? nodes : []);
  const plan = planPermissions([...nodes, ...others], reopened);
  const begun: { iothread: Iothread; reopen: number; nodes: readonly GraphNode[] }[] = [];
  const infos = new Map<GraphNode, GraphNode["info"]>();
  try {
    for (const iothread of new Set(nodes.map((node) => node.iothread))) {
      const connected = bottomUp(nodes.filter((node) => node.iothread === iothread));
      const params = paramsFor(iothread, nodes, connected, plan);
      const all = users === undefined ? params : { ...params, users };
      const reply = await iothread.call("nodes-reopen", all);
      begun.push({ iothread, reopen: reply.reopen, nodes: connected });
      for (const [index, info] of reply.infos.entries()) infos.set(connected[index]!, info);
    }
  } catch (error) {
    for (const { iothread, reopen } of begun.reverse()) {
      await iothread.call("nodes-reopen-end", { reopen, keep: false });
    }
    throw error;
  }
  for (const { iothread, reopen } of begun) {
    await iothread.call("nodes-reopen-end", { reopen, keep: true });
  }
  for (const [node, info] of infos) node.info = info;
  plan.keep();
}

function paramsFor(
  iothread: Iothread,
  nodes: readonly GraphNode[],
  connected: readonly GraphNode[],
  plan: PermissionPlan,
): NodesReopen {
  return {
    nodes: connected.filter((node) => nodes.includes(node)).map(openOf),
    permissions: plan.changes.get(iothread) ?? [],
    connected: connected.map(({ nodeName }) => nodeName),
  };
}

/** What opens a node again as it is. */
export function openOf({ definition, active }: GraphNode): NodeOpen {
  return { ...definition, active };
}

/** All that is connected, children before their parents. */
function bottomUp(nodes: readonly GraphNode[]): GraphNode[] {
  return [...new Set(nodes.flatMap((node) => connectedNodes(node).reverse()))];
}

function frozenLink({ role, parent, child }: Edge): OutportError {
  const link = `'${role}' link from '${parent?.nodeName}' to '${child.nodeName}'`;
  return new OutportError("in-use", `Cannot change frozen ${link}`);
}
