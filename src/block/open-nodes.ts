/**
 * The nodes that are open, by name, on whatever iothread: opens what a blockdev-add plans, and
 * closes what nobody uses. Thread: main.
 */
import type { Iothread } from "../iothread/pool.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { trace } from "../util/trace.ts";
import {
  type ChildReference,
  checkCommonOptions,
  checkNodeName,
  type NodePlan,
} from "./catalogue.ts";
import type { Surroundings } from "./driver.ts";
import { attachEdge, chainLinks, depthThrough, detachEdge, Edge, GraphNode } from "./graph-node.ts";
import { updatePermissions } from "./permission-update.ts";
import { checkBothActive, openOf } from "./reopen.ts";
import { rollBack } from "./roll-back.ts";

/** Nodes above each other. Requests go down through all of them on one thread's stack. */
const DEPTH_MAX = 1024;

interface OpenedChild {
  readonly role: string;
  readonly node: GraphNode;
  /** Defined inside its parent, not by reference. */
  readonly isInline: boolean;
}

export interface OpenNodesParts {
  readonly findObject: Surroundings["findObject"];
  readonly log: Log;
}

export class OpenNodes {
  #findObject: Surroundings["findObject"];
  #log: Log;
  /** By name, in the order of opening. */
  #nodes = new Map<string, GraphNode>();
  #generatedCount = 0;

  constructor({ findObject, log }: OpenNodesParts) {
    this.#findObject = findObject;
    this.#log = log;
  }

  /** The oldest first. */
  list(): GraphNode[] {
    return [...this.#nodes.values()];
  }

  find(nodeName: string): GraphNode | undefined {
    return this.#nodes.get(nodeName);
  }

  /** Throws OutportError. */
  named(nodeName: string): GraphNode {
    const node = this.#nodes.get(nodeName);
    if (node !== undefined) return node;
    throw new OutportError("not-found", `Failed to find node with node-name='${nodeName}'`);
  }

  /** Nodes that the plan refers to. Throws OutportError. */
  references(plan: NodePlan): GraphNode[] {
    if (plan.driver.isProtocol === true) this.#checkOwn(plan);
    return plan.children.flatMap((child) =>
      "plan" in child ? this.references(child.plan) : [this.#reference(child, plan)],
    );
  }

  #reference({ role, reference: name }: ChildReference, above: NodePlan): GraphNode {
    const node = this.#nodes.get(name);
    if (node !== undefined) return node;
    if (above.nodeName === name && isLate(above, role)) {
      const message = `Making '${name}' a ${role} child of '${name}' would create a cycle`;
      throw new OutportError("invalid", message);
    }
    throw new OutportError("not-found", `Cannot find device='${name}' nor node-name='${name}'`);
  }

  /** Opens children, then the node. When it throws, all is as before. */
  async open(plan: NodePlan, iothread: Iothread): Promise<GraphNode> {
    const children: OpenedChild[] = [];
    try {
      for (const child of plan.children) {
        const { role } = child;
        const isInline = "plan" in child;
        if (isLate(plan, role)) this.#checkOwn(plan);
        const node = isInline
          ? await this.open(child.plan, iothread)
          : this.#reference(child, plan);
        children.push({ role, isInline, node });
      }
      this.#checkOwn(plan);
      const nodeName = plan.nodeName ?? this.#generateName();
      return await this.#openNode(plan, nodeName, children, iothread);
    } catch (error) {
      await rollBack(
        children.reverse().map(
          ({ node }) =>
            () =>
              this.closeUnused(node),
        ),
      );
      throw error;
    }
  }

  /** Throws OutportError. */
  #checkOwn({ common, nodeName }: NodePlan): void {
    checkCommonOptions(common);
    if (nodeName !== undefined) checkNodeName(nodeName, (name) => this.#nodes.has(name));
  }

  async #openNode(
    plan: NodePlan,
    nodeName: string,
    children: readonly OpenedChild[],
    iothread: Iothread,
  ): Promise<GraphNode> {
    const definition = {
      nodeName,
      driver: plan.driver.name,
      options: plan.options,
      ...plan.common,
      children: Object.fromEntries(children.map(({ role, node }) => [role, node.nodeName])),
    };
    const node = new GraphNode(plan.driver, definition, iothread);
    node.explicit = plan.explicit;
    node.active = plan.active;
    node.toldActive = plan.active;
    for (const child of children) attachEdge(new Edge(node, child.role, child.node));
    try {
      for (const child of children) checkBothActive(node, child.role, child.node);
      checkDepth(node);
      // Children first: open() may already read from them.
      await updatePermissions([node]);
      this.bind(node);
      freezeChain(node);
      if (trace.bdrv_open_common.enabled) {
        const { name } = plan.driver;
        trace.bdrv_open_common.write(
          `node ${nodeName} iothread ${iothread.id} format_name "${name}"`,
        );
      }
      node.info = await iothread.call("node-open", openOf(node));
    } catch (error) {
      await rollBack([() => this.#releaseChildren(node)]);
      throw error;
    }
    for (const child of children) if (child.isInline) child.node.inheritsFrom = node;
    this.#nodes.set(nodeName, node);
    iothread.userCount++;
    this.#log("info", "node opened", { node: nodeName, driver: node.driver.name });
    return node;
  }

  /** Gives the node what it needs to know beside its options. Throws OutportError. */
  bind(node: GraphNode): void {
    const { driver, definition } = node;
    if (driver.bind === undefined) return;
    const bound = driver.bind({
      node,
      options: definition.options,
      findNode: (nodeName) => this.#nodes.get(nodeName),
      findObject: this.#findObject,
    });
    node.definition = { ...definition, bound };
  }

  /** Closes a node that nobody uses or owns any more, and then such children. */
  async closeUnused(node: GraphNode): Promise<void> {
    if (node.monitorOwned || node.parents.length > 0) return;
    if (this.#nodes.get(node.nodeName) !== node) return;
    if (trace.bdrv_close.enabled) trace.bdrv_close.write(`node ${node.nodeName}`);
    await node.iothread.call("node-close", { nodeName: node.nodeName });
    this.#nodes.delete(node.nodeName);
    this.#log("info", "node closed", { node: node.nodeName });
    node.iothread.userCount--;
    for (const child of await this.#releaseChildren(node)) await this.closeUnused(child);
  }

  /** Ends a node's use of its children. */
  async #releaseChildren(node: GraphNode): Promise<GraphNode[]> {
    const children = node.children.map((edge) => edge.child);
    for (const edge of node.frozen) edge.frozen = false;
    for (const edge of [...node.children]) detachEdge(edge);
    for (const child of children) if (child.inheritsFrom === node) child.inheritsFrom = null;
    // Only less than before: it fails with its thread, if ever.
    await rollBack([() => updatePermissions(children)]);
    return children;
  }

  /** As QEMU's: a count and two random digits. Users can't give such names. */
  #generateName(): string {
    const random = Math.floor(Math.random() * 100);
    return `#block${this.#generatedCount++}${String(random).padStart(2, "0")}`;
  }
}

/** The node looks at itself before it looks for this child: a format does so after its file. */
function isLate({ driver }: NodePlan, role: string): boolean {
  return driver.isProtocol === true || role !== "file";
}

/** Throws OutportError. */
export function checkDepth(node: GraphNode): void {
  if (depthThrough(node) <= DEPTH_MAX) return;
  // QSD differs: it ends when its stack does.
  const message = `Node '${node.nodeName}' makes a chain of more than ${DEPTH_MAX} nodes`;
  throw new OutportError("limit", message);
}

/** Keeps the links that the node relies on. Throws OutportError. */
function freezeChain(node: GraphNode): void {
  const bottom = node.driver.chainBottom?.(node.definition.options);
  if (bottom === undefined) return;
  const links = chainLinks(node, bottom);
  for (const { frozen, role, parent, child } of links) {
    if (!frozen) continue;
    const link = `'${role}' link from '${parent?.nodeName}' to '${child.nodeName}'`;
    throw new OutportError("in-use", `Cannot change ${link}`);
  }
  for (const link of links) link.frozen = true;
  node.frozen = links;
}
