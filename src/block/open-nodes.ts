/**
 * The nodes that are open, by name, on whatever iothread: opens what a blockdev-add plans, and
 * closes what nobody uses. Thread: main.
 */
import { unlockLuks } from "../crypto/luks-lock.ts";
import { passphraseOf } from "../crypto/passphrase.ts";
import type { ImageLock, NodeInfo } from "../iothread/messages.ts";
import type { Iothread } from "../iothread/pool.ts";
import { ECANCELED, strerror } from "../runtime/errno.ts";
import { assert, OutportError } from "../util/error.ts";
import type { Log } from "../util/log.ts";
import { trace } from "../util/trace.ts";
import {
  type ChildPlan,
  type ChildReference,
  checkCommonOptions,
  checkNodeName,
  inheritedOptions,
  type NodePlan,
  planNode,
} from "./catalogue.ts";
import type { BlockDriver, Surroundings } from "./driver.ts";
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
  readonly isImplied: boolean;
}

type Wire = Readonly<Record<string, unknown>>;

export interface OpenNodesParts {
  readonly drivers: ReadonlyMap<string, BlockDriver>;
  /** Of BlockdevOptions that an image names. Throws OutportError. */
  readonly checkOptions: (options: Wire) => Wire;
  readonly findObject: Surroundings["findObject"];
  readonly servedDevices: Surroundings["servedDevices"];
  readonly log: Log;
}

export class OpenNodes {
  #drivers: OpenNodesParts["drivers"];
  #checkOptions: OpenNodesParts["checkOptions"];
  #findObject: Surroundings["findObject"];
  #servedDevices: Surroundings["servedDevices"];
  #log: Log;
  /** By name, in the order of opening. */
  #nodes = new Map<string, GraphNode>();
  #generatedCount = 0;
  #isEnding = false;
  #giveUp: () => void = () => {};

  constructor({ drivers, checkOptions, findObject, servedDevices, log }: OpenNodesParts) {
    this.#drivers = drivers;
    this.#checkOptions = checkOptions;
    this.#findObject = findObject;
    this.#servedDevices = servedDevices;
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
      "plan" in child ? this.references(child.plan) : this.#earlyReference(child, plan),
    );
  }

  /** Of an image that names children itself, others than its file are looked for later. */
  #earlyReference(child: ChildReference, above: NodePlan): GraphNode[] {
    const isLater = above.driver.impliedChildren !== undefined && child.role !== "file";
    if (isLater && !this.#nodes.has(child.reference)) return [];
    return [this.#reference(child, above)];
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
  async open(
    plan: NodePlan,
    iothread: Iothread,
    above: readonly string[] = [],
  ): Promise<GraphNode> {
    const children: OpenedChild[] = [];
    try {
      const early = plan.children.filter(({ role }) => !isLate(plan, role));
      for (const child of early) {
        children.push(await this.#openChild(plan, child, iothread, above));
      }
      const late = plan.children.filter(({ role }) => isLate(plan, role));
      late.push(...(await this.#implied(plan, children, iothread, above)));
      const through = [...above, ...filenamesOf(children)];
      const before = this.#nodes.size;
      for (const child of late.sort(backingLast)) {
        this.#checkOwn(plan);
        children.push(await this.#openChild(plan, child, iothread, through));
      }
      this.#checkOwn(plan);
      const nodeName = plan.nodeName ?? this.#generateName();
      const node = await this.#openNode(plan, nodeName, children, iothread);
      this.#placeAt(before, node);
      return node;
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

  /** Nodes count from when they look at themselves: before they open what they find then. */
  #placeAt(index: number, node: GraphNode): void {
    if (index === this.#nodes.size - 1) return;
    const nodes = [...this.#nodes.values()];
    nodes.splice(index, 0, nodes.pop()!);
    this.#nodes.clear();
    for (const one of nodes) this.#nodes.set(one.nodeName, one);
    assert(nodes[index] === node, "the node was opened last");
  }

  async #openChild(
    plan: NodePlan,
    child: ChildPlan,
    iothread: Iothread,
    above: readonly string[],
  ): Promise<OpenedChild> {
    const { role } = child;
    const isInline = "plan" in child;
    try {
      const node = isInline
        ? await this.open(child.plan, iothread, above)
        : this.#reference(child, plan);
      const isImplied = isInline && child.isImplied === true;
      return { role, isInline, isImplied, node };
    } catch (error) {
      const isCycle = !isInline && child.reference === plan.nodeName;
      throw role === "backing" && !isCycle ? backingError(error) : error;
    }
  }

  /** Children that only the image itself names. Throws OutportError. */
  async #implied(
    plan: NodePlan,
    children: readonly OpenedChild[],
    iothread: Iothread,
    above: readonly string[],
  ): Promise<readonly ChildPlan[]> {
    const { driver, common, options, active, nodeName = "" } = plan;
    if (driver.impliedChildren === undefined) return [];
    this.#checkOwn(plan);
    const names = children.map(({ role, node }) => [role, node.nodeName]);
    const implied = await iothread.call("node-implied", {
      ...{ nodeName, driver: driver.name, options, ...common, active },
      children: Object.fromEntries(names),
    });
    const given = new Set([...plan.children.map(({ role }) => role), ...plan.absent]);
    return implied
      .filter(({ role }) => !given.has(role))
      .map(({ role, options: ofChild, failure }) => {
        if (failure !== undefined) throw backingError(new OutportError("invalid", failure));
        const through = [...above, ...filenamesOf(children)];
        // Each image has a node for its file.
        if (through.length > DEPTH_MAX / 2) throw tooDeep(nodeName);
        checkLoop(through, ofChild);
        const handed = { common: inheritedOptions(common, role), active };
        return { role, plan: this.#planImplied(role, ofChild, handed), isImplied: true };
      });
  }

  #planImplied(role: string, options: Wire, parent: Parameters<typeof planNode>[2]): NodePlan {
    return ofRole(role, () => planNode(this.#drivers, this.#checkOptions(options), parent));
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
    for (const child of children) {
      const edge = new Edge(node, child.role, child.node);
      edge.isImplied = child.isImplied;
      attachEdge(edge);
    }
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
      node.info = await this.#openUnlocked(node, iothread);
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

  /** With the key, if its image is encrypted. Throws OutportError. */
  async #openUnlocked(node: GraphNode, iothread: Iothread): Promise<NodeInfo> {
    const { encryption } = node.driver;
    const id = encryption?.keySecret(node.definition.options);
    const lock = id === undefined ? null : await iothread.call("node-lock", openOf(node));
    if (id === undefined || lock === null) return iothread.call("node-open", openOf(node));
    const key = await this.#unlock(lock, passphraseOf(id, this.#findObject));
    try {
      return await iothread.call("node-open", { ...openOf(node), key });
    } finally {
      key.fill(0);
    }
  }

  /** Throws OutportError. */
  async #unlock(lock: ImageLock, passphrase: Uint8Array): Promise<Uint8Array> {
    if (this.#isEnding) throw canceled();
    const { promise, reject } = Promise.withResolvers<never>();
    this.#giveUp = () => reject(canceled());
    try {
      return await Promise.race([unlockLuks(lock, passphrase), promise]);
    } finally {
      this.#giveUp = () => {};
    }
  }

  /** From here on nobody waits for keys: an image may have one that takes minutes to find. */
  endUnlocking(): void {
    this.#isEnding = true;
    this.#giveUp();
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
      servedDevices: this.#servedDevices,
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

function canceled(): OutportError {
  return new OutportError("io", strerror(ECANCELED));
}

/** Throws OutportError. */
export function checkDepth(node: GraphNode): void {
  if (depthThrough(node) <= DEPTH_MAX) return;
  // QSD differs: it ends when its stack does.
  throw tooDeep(node.nodeName);
}

function tooDeep(nodeName: string): OutportError {
  const message = `Node '${nodeName}' makes a chain of more than ${DEPTH_MAX} nodes`;
  return new OutportError("limit", message);
}

/** Where the images of a chain lie, as far as that has a name. */
function filenamesOf(children: readonly OpenedChild[]): readonly string[] {
  const file = children.find(({ role }) => role === "file");
  return [file?.node.info.description.exactFilename ?? ""];
}

/** Throws OutportError. */
function checkLoop(above: readonly string[], { file }: Wire): void {
  const { filename } = (file ?? {}) as { filename?: string };
  if (filename === undefined || !above.includes(filename)) return;
  // QSD differs: it opens them all until it runs out of something.
  const message = `Backing file '${filename}' creates an infinite loop.`;
  throw backingError(new OutportError("invalid", message));
}

function ofRole<T>(role: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw role === "backing" ? backingError(error) : error;
  }
}

function backingError(error: unknown): unknown {
  // Of a chain that is too deep, one word is enough.
  if (!(error instanceof OutportError) || error.kind === "limit") return error;
  return new OutportError(error.kind, `Could not open backing file: ${error.message}`);
}

/** As images open them. */
function backingLast(one: ChildPlan, other: ChildPlan): number {
  return Number(one.role === "backing") - Number(other.role === "backing");
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
