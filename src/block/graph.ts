/**
 * The graph of block nodes: adds, deletes, connects and moves them. The nodes themselves are open
 * on iothreads; here is who they are, who uses whom, and what each may do. Thread: main.
 * Spec: qapi/block-core.json blockdev-add, blockdev-del, query-named-block-nodes
 */
import { type Iothread, type Iothreads, MAIN_LOOP } from "../iothread/pool.ts";
import { OutportError } from "../util/error.ts";
import {
  type ChildPlan,
  checkCommonOptions,
  checkNodeName,
  type NodePlan,
  planNode,
} from "./catalogue.ts";
import type { BlockDriver, Permissions } from "./driver.ts";
import { attachEdge, connectedNodes, detachEdge, Edge, GraphNode } from "./graph-node.ts";
import { moveNodes } from "./node-move.ts";
import { updatePermissions } from "./permission-update.ts";

type Wire = Readonly<Record<string, unknown>>;

export interface BlockGraphParts {
  readonly drivers: readonly BlockDriver[];
  readonly iothreads: Iothreads;
}

/** What an export or job holds of its node. */
export type RootUse = Edge;

export class BlockGraph {
  #drivers: ReadonlyMap<string, BlockDriver>;
  #iothreads: Iothreads;
  /** By name, in the order of opening. */
  #nodes = new Map<string, GraphNode>();
  #generatedCount = 0;
  #last: Promise<unknown> = Promise.resolve();

  constructor({ drivers, iothreads }: BlockGraphParts) {
    this.#drivers = new Map(drivers.map((driver) => [driver.name, driver]));
    this.#iothreads = iothreads;
  }

  /** Runs tasks that look at or change the graph one after the other. */
  exclusive<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#last.then(task);
    this.#last = result.catch(() => {});
    return result;
  }

  /** blockdev-add. `options`: BlockdevOptions, wire names, checked against its schema. */
  blockdevAdd(options: Wire): Promise<void> {
    return this.exclusive(async () => {
      if (options["node-name"] === undefined) {
        throw new OutportError("invalid", "'node-name' must be specified for the root node");
      }
      const plan = planNode(this.#drivers, options);
      const iothread = await this.#placeFor(plan);
      const node = await this.#openPlan(plan, iothread);
      node.monitorOwned = true;
    });
  }

  /** blockdev-del */
  blockdevDel(nodeName: string): Promise<void> {
    return this.exclusive(async () => {
      const node = this.#nodes.get(nodeName);
      if (node === undefined) {
        throw new OutportError("not-found", `Failed to find node with node-name='${nodeName}'`);
      }
      if (isRootUsed(node)) {
        throw new OutportError("in-use", `Node ${nodeName} is in use`);
      }
      if (!node.monitorOwned) {
        throw new OutportError("in-use", `Node ${nodeName} is not owned by the monitor`);
      }
      if (node.parents.length > 0) {
        throw new OutportError("in-use", `Block device ${nodeName} is in use`);
      }
      node.monitorOwned = false;
      await this.#closeUnused(node);
    });
  }

  /** query-named-block-nodes: BlockDeviceInfo, newest first. */
  queryNamedBlockNodes(): Promise<Record<string, unknown>[]> {
    return this.exclusive(() =>
      Promise.all([...this.#nodes.values()].reverse().map((node) => describe(node))),
    );
  }

  /** Closes all nodes, parents first. Exports are closed already. */
  closeAll(): Promise<void> {
    return this.exclusive(async () => {
      for (const node of this.#nodes.values()) node.monitorOwned = false;
      for (const node of [...this.#nodes.values()].reverse()) await this.#closeUnused(node);
    });
  }

  // For exports and jobs, inside exclusive().

  find(nodeName: string): GraphNode | undefined {
    return this.#nodes.get(nodeName);
  }

  /** A user of `node` from outside the graph. Throws OutportError, and nothing has changed. */
  async attachRoot(node: GraphNode, permissions: Permissions): Promise<RootUse> {
    const use = new Edge(null, "root", node);
    attachEdge(use);
    try {
      await this.changeRoot(use, permissions);
    } catch (error) {
      detachEdge(use);
      throw error;
    }
    return use;
  }

  /** Other permissions for a user. Throws OutportError, and nothing has changed. */
  async changeRoot(use: RootUse, permissions: Permissions): Promise<void> {
    const before = use.permissions;
    use.permissions = permissions;
    try {
      await updatePermissions([use.child]);
    } catch (error) {
      use.permissions = before;
      throw error;
    }
  }

  async detachRoot(use: RootUse): Promise<void> {
    detachEdge(use);
    await updatePermissions([use.child]);
    await this.#closeUnused(use.child);
  }

  /** Takes the node and all that is connected with it to another iothread. Nobody may use them. */
  async move(node: GraphNode, iothread: Iothread): Promise<void> {
    if (node.iothread === iothread) return;
    const nodes = connectedNodes(node);
    if (nodes.some(isRootUsed)) {
      throw new OutportError("in-use", "Cannot change iothread of active block backend");
    }
    await moveNodes(nodes, iothread);
  }

  /** Where the nodes of a plan go: to those that it refers to, which come together if they must. */
  async #placeFor(plan: NodePlan): Promise<Iothread> {
    const references = this.#references(plan);
    const used = references.find((node) => connectedNodes(node).some(isRootUsed));
    const place = (used ?? references[0])?.iothread ?? this.#iothreads.get(MAIN_LOOP);
    for (const node of references) await this.move(node, place);
    return place;
  }

  #references(plan: NodePlan): GraphNode[] {
    return plan.children.flatMap((child) =>
      "plan" in child ? this.#references(child.plan) : [this.#reference(child.reference)],
    );
  }

  #reference(name: string): GraphNode {
    const node = this.#nodes.get(name);
    if (node !== undefined) return node;
    throw new OutportError("not-found", `Cannot find device='${name}' nor node-name='${name}'`);
  }

  /** Opens children, then the node. When it throws, all is as before. */
  async #openPlan(plan: NodePlan, iothread: Iothread): Promise<GraphNode> {
    const children: { role: string; node: GraphNode }[] = [];
    try {
      for (const child of plan.children) {
        children.push({ role: child.role, node: await this.#openChild(child, iothread) });
      }
      checkCommonOptions(plan.common);
      const nodeName = plan.nodeName ?? this.#generateName();
      if (plan.nodeName !== undefined) checkNodeName(nodeName, (name) => this.#nodes.has(name));
      return await this.#openNode(plan, nodeName, children, iothread);
    } catch (error) {
      for (const { node } of children.reverse()) await this.#closeUnused(node);
      throw error;
    }
  }

  #openChild(child: ChildPlan, iothread: Iothread): GraphNode | Promise<GraphNode> {
    return "plan" in child
      ? this.#openPlan(child.plan, iothread)
      : this.#reference(child.reference);
  }

  async #openNode(
    plan: NodePlan,
    nodeName: string,
    children: readonly { role: string; node: GraphNode }[],
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
    for (const child of children) attachEdge(new Edge(node, child.role, child.node));
    try {
      // Children first: open() may already read from them.
      await updatePermissions([node]);
      node.info = await iothread.call("node-open", definition);
    } catch (error) {
      await this.#releaseChildren(node);
      throw error;
    }
    this.#nodes.set(nodeName, node);
    iothread.userCount++;
    return node;
  }

  /** Closes a node that nobody uses or owns any more, and then such children. */
  async #closeUnused(node: GraphNode): Promise<void> {
    if (node.monitorOwned || node.parents.length > 0) return;
    if (this.#nodes.get(node.nodeName) !== node) return;
    await node.iothread.call("node-close", { nodeName: node.nodeName });
    this.#nodes.delete(node.nodeName);
    node.iothread.userCount--;
    for (const child of await this.#releaseChildren(node)) await this.#closeUnused(child);
  }

  /** Ends a node's use of its children. */
  async #releaseChildren(node: GraphNode): Promise<GraphNode[]> {
    const children = node.children.map((edge) => edge.child);
    for (const edge of [...node.children]) detachEdge(edge);
    await updatePermissions(children);
    return children;
  }

  /** As QEMU's: a count and two random digits. Users can't give such names. */
  #generateName(): string {
    const random = Math.floor(Math.random() * 100);
    return `#block${this.#generatedCount++}${String(random).padStart(2, "0")}`;
  }
}

/** By an export or a job. */
function isRootUsed(node: GraphNode): boolean {
  return node.parents.some((edge) => edge.parent === null);
}

/** BlockDeviceInfo of one node. Throttling is the business of a filter: always 0 here. */
async function describe(node: GraphNode): Promise<Record<string, unknown>> {
  node.info = await node.iothread.call("node-query", { nodeName: node.nodeName });
  return {
    "node-name": node.nodeName,
    active: true,
    ...node.info.description,
    children: node.children.map(({ role, child }) => ({
      child: role,
      "node-name": child.nodeName,
    })),
    write_threshold: 0,
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
  };
}
