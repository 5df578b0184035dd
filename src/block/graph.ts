/**
 * The graph of block nodes: adds, deletes, connects and moves them. The nodes themselves are open
 * on iothreads; here is who they are, who uses whom, and what each may do. Thread: main.
 * Spec: qapi/block-core.json blockdev-add, blockdev-del, blockdev-reopen, blockdev-set-active,
 * x-blockdev-set-iothread
 */
import { type Iothread, type Iothreads, MAIN_LOOP } from "../iothread/pool.ts";
import { OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { trace } from "../util/trace.ts";
import { activate, inactivate, inactivateAll } from "./activation.ts";
import { planNode } from "./catalogue.ts";
import { drained } from "./drained.ts";
import type { BlockDriver, Permissions, Surroundings } from "./driver.ts";
import {
  attachEdge,
  checkNotBacking,
  connectedNodes,
  detachEdge,
  Edge,
  type GraphNode,
  isRootUsed,
  type RootUser,
} from "./graph-node.ts";
import { moveNodes } from "./node-move.ts";
import { checkDepth, OpenNodes } from "./open-nodes.ts";
import { updatePermissions } from "./permission-update.ts";
import { Placement } from "./placement.ts";
import { reopenNodes } from "./reopen.ts";
import { rollBack } from "./roll-back.ts";

type Wire = Readonly<Record<string, unknown>>;

export interface BlockGraphParts {
  readonly drivers: readonly BlockDriver[];
  readonly iothreads: Iothreads;
  /** What block drivers refer to beside nodes. */
  readonly findObject?: Surroundings["findObject"];
  readonly servedDevices?: Surroundings["servedDevices"];
  /** Checks BlockdevOptions that an image names. Throws OutportError. */
  readonly checkOptions?: (options: Wire) => Wire;
  readonly log?: Log;
}

/** What an export or job holds of its node. */
export type RootUse = Edge;

export class BlockGraph {
  #drivers: ReadonlyMap<string, BlockDriver>;
  #iothreads: Iothreads;
  #nodes: OpenNodes;
  #log: Log;
  #last: Promise<unknown> = Promise.resolve();

  constructor(parts: BlockGraphParts) {
    const { drivers, iothreads, findObject, servedDevices, checkOptions, log } = parts;
    this.#log = log ?? (() => {});
    this.#drivers = new Map(drivers.map((driver) => [driver.name, driver]));
    this.#iothreads = iothreads;
    this.#nodes = new OpenNodes({
      drivers: this.#drivers,
      checkOptions: checkOptions ?? ((options) => options),
      findObject: findObject ?? (() => undefined),
      servedDevices: servedDevices ?? (() => []),
      log: this.#log,
    });
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
      const references = this.#nodes.references(plan);
      await this.#placed(async (placement) => {
        const iothread = await placement.gather(references, this.#iothreads.get(MAIN_LOOP));
        const node = await this.#nodes.open(plan, iothread);
        node.monitorOwned = true;
      });
    });
  }

  /** blockdev-reopen. `list`: BlockdevOptions, wire names, checked against their schema. */
  blockdevReopen(list: readonly Wire[]): Promise<void> {
    return this.exclusive(async () => {
      await this.#placed(async (placement) => {
        const replaced = await reopenNodes(list, {
          find: (nodeName) => this.find(nodeName),
          bind: (node) => this.#nodes.bind(node),
          join: (node, child) => placement.join(node, child),
          checkDepth,
        });
        await rollBack(replaced.map((node) => () => this.#nodes.closeUnused(node)));
      });
    });
  }

  /** blockdev-set-active. Without a name: all nodes. */
  blockdevSetActive(nodeName: string | undefined, active: boolean): Promise<void> {
    return this.exclusive(async () => {
      const nodes = nodeName === undefined ? this.nodes : [this.#nodes.named(nodeName)];
      if (active) await activate(nodes);
      else if (nodeName === undefined) await inactivateAll(nodes);
      else for (const node of nodes) await inactivate(node);
    });
  }

  /** x-blockdev-set-iothread. `id` null: the built-in one. `force`: also nodes in use. */
  setIothread(nodeName: string, id: string | null, force: boolean): Promise<void> {
    return this.exclusive(async () => {
      const node = this.#nodes.named(nodeName);
      if (!force && isRootUsed(node)) {
        const why = "is associated with a BlockBackend and could be in use";
        const message = `Node ${nodeName} ${why} (use force=true to override this check)`;
        throw new OutportError("in-use", message);
      }
      await this.move(node, this.#iothreadFor(id));
    });
  }

  /** blockdev-del */
  blockdevDel(nodeName: string): Promise<void> {
    return this.exclusive(async () => {
      const node = this.#nodes.named(nodeName);
      if (isRootUsed(node)) {
        throw new OutportError("in-use", `Node ${nodeName} is in use`);
      }
      checkNotBacking(node);
      if (!node.monitorOwned) {
        throw new OutportError("in-use", `Node ${nodeName} is not owned by the monitor`);
      }
      if (node.parents.length > 0) {
        throw new OutportError("in-use", `Block device ${nodeName} is in use`);
      }
      node.monitorOwned = false;
      try {
        await this.#nodes.closeUnused(node);
      } catch (error) {
        node.monitorOwned = true;
        throw error;
      }
    });
  }

  /** Before all else that ends: what is being opened may take minutes to find its key. */
  endUnlocking(): void {
    this.#nodes.endUnlocking();
  }

  /** Closes all nodes, parents first. Exports are closed already. */
  closeAll(): Promise<void> {
    return this.exclusive(async () => {
      for (const node of this.nodes) node.monitorOwned = false;
      for (const node of this.nodes.reverse()) await this.#nodes.closeUnused(node);
    });
  }

  // For exports and jobs, inside exclusive().

  /** The oldest first. */
  get nodes(): GraphNode[] {
    return this.#nodes.list();
  }

  find(nodeName: string): GraphNode | undefined {
    return this.#nodes.find(nodeName);
  }

  /**
   * Runs `task` while no request is in flight on `nodes` and all that is connected with them, and
   * none starts. They go on afterwards, whatever happens.
   */
  drained<T>(nodes: readonly GraphNode[], task: () => Promise<T>): Promise<T> {
    return drained(nodes, task);
  }

  /** Makes the node and all below it active. Returns what takes it back. */
  activate(node: GraphNode): Promise<() => Promise<void>> {
    return activate([node]);
  }

  /** A user of `node` from outside the graph. Throws OutportError, and nothing has changed. */
  async attachRoot(
    node: GraphNode,
    permissions: Permissions,
    user: RootUser = {},
  ): Promise<RootUse> {
    const use = new Edge(null, "root", node, user);
    if (trace.blk_root_attach.enabled) trace.blk_root_attach.write(`node ${node.nodeName}`);
    attachEdge(use);
    try {
      await this.changeRoot(use, permissions);
    } catch (error) {
      detachEdge(use);
      throw error;
    }
    return use;
  }

  /** Opens a node where another one lives; closeUnused() closes it. Throws OutportError. */
  open(options: Wire, beside: GraphNode): Promise<GraphNode> {
    return this.#nodes.open(planNode(this.#drivers, options), beside.iothread);
  }

  /** Unless somebody uses or owns it. */
  closeUnused(node: GraphNode): Promise<void> {
    return this.#nodes.closeUnused(node);
  }

  driver(name: string): BlockDriver | undefined {
    return this.#drivers.get(name);
  }

  /**
   * The same of a node by its name, or of one that is opened for this and closed after it.
   * `reference`: else BlockdevOptions, checked. `beside`: where it must come to live.
   */
  async attachReference(
    reference: string | Wire,
    permissions: Permissions,
    beside: GraphNode | null,
  ): Promise<RootUse> {
    const place = beside?.iothread ?? this.#iothreads.get(MAIN_LOOP);
    let use: RootUse | undefined;
    await this.#placed(async (placement) => {
      const node = await this.#referred(reference, placement, place);
      if (beside !== null) await placement.join(beside, node);
      try {
        use = await this.attachRoot(node, permissions);
      } catch (error) {
        await rollBack([() => this.#nodes.closeUnused(node)]);
        throw error;
      }
    });
    return use!;
  }

  async #referred(
    reference: string | Wire,
    placement: Placement,
    place: Iothread,
  ): Promise<GraphNode> {
    if (typeof reference !== "string") {
      const plan = planNode(this.#drivers, reference);
      const iothread = await placement.gather(this.#nodes.references(plan), place);
      return this.#nodes.open(plan, iothread);
    }
    const node = this.find(reference);
    if (node !== undefined) return node;
    const message = `Cannot find device='${reference}' nor node-name='${reference}'`;
    throw new OutportError("not-found", message);
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
    if (trace.blk_root_detach.enabled) trace.blk_root_detach.write(`node ${use.child.nodeName}`);
    detachEdge(use);
    // Only less than before: it fails with its thread, if ever.
    await rollBack([() => updatePermissions([use.child])]);
    await this.#nodes.closeUnused(use.child);
  }

  /**
   * Takes the node and all that is connected with it to another iothread, with those that use it.
   * Throws OutportError, and nothing has changed.
   */
  async move(node: GraphNode, iothread: Iothread): Promise<void> {
    if (node.iothread === iothread) return;
    const facts = { node: node.nodeName, from: node.iothread.id, to: iothread.id };
    if (trace.bdrv_move.enabled) {
      trace.bdrv_move.write(`node ${facts.node} from ${facts.from} to ${facts.to}`);
    }
    await moveNodes(connectedNodes(node), iothread);
    this.#log("info", "node moved", facts);
  }

  /** What the command moved goes back when it fails. */
  async #placed(command: (placement: Placement) => Promise<void>): Promise<void> {
    const placement = new Placement((node, iothread) => this.move(node, iothread));
    try {
      await command(placement);
    } catch (error) {
      await placement.undo();
      throw error;
    }
  }

  #iothreadFor(id: string | null): Iothread {
    if (id === null) return this.#iothreads.get(MAIN_LOOP);
    try {
      if (id !== MAIN_LOOP) return this.#iothreads.get(id);
    } catch {
      // Said below.
    }
    throw new OutportError("not-found", `Cannot find iothread ${id}`);
  }
}
