/**
 * External snapshots: an overlay takes the place of a node, which becomes its backing node. All
 * that used the node uses the overlay from then on, clients of exports in the midst of their work
 * included. Thread: main.
 * Spec: qapi/block-core.json blockdev-snapshot; QEMU blockdev.c external_snapshot_action(),
 * block.c bdrv_append()
 */
import { strerror } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import { inactivate } from "./activation.ts";
import type { BlockGraph } from "./graph.ts";
import {
  checkNotBacking,
  connectedNodes,
  Edge,
  type GraphNode,
  isRootUsed,
  replaceChild,
  retargetEdges,
  withDescendants,
} from "./graph-node.ts";
import { PERM_CONSISTENT_READ } from "./node.ts";
import { checkDepth } from "./open-nodes.ts";
import { setReadOnly } from "./read-only-switch.ts";
import { applyReopen, checkBothActive } from "./reopen.ts";
import { rollBack } from "./roll-back.ts";
import type { Undo } from "./transactions.ts";

/** What has been checked of a node that is to get an overlay. Throws OutportError. */
export async function prepareBase(base: GraphNode): Promise<void> {
  checkNotBacking(base);
  if (!base.info.writable || !base.active) return;
  const { nodeName, iothread } = base;
  const { result } = await iothread.call("node-flush", { nodeName });
  if (result === 0) return;
  throw new OutportError("io", `Write to node '${nodeName}' failed: ${strerror(-result)}`);
}

/**
 * Puts `overlay` on top of `base`, inside exclusive() and a drained section. Throws OutportError,
 * and nothing has changed.
 */
export async function appendOverlay(
  graph: BlockGraph,
  base: GraphNode,
  overlay: GraphNode,
): Promise<Undo> {
  checkOverlay(base, overlay);
  const home = overlay.iothread;
  const undos: (() => Promise<unknown>)[] = [];
  const undo = (): Promise<void> => rollBack(undos.reverse());
  try {
    if (!base.active && overlay.active) {
      await inactivate(overlay);
      undos.push(() => graph.activate(overlay));
    }
    checkBothActive(overlay, "backing", base);
    if (home !== base.iothread) {
      checkUnused(connectedNodes(overlay));
      await graph.move(overlay, base.iothread);
      undos.push(() => graph.move(overlay, home));
    }
    const moved = followersOf(base, overlay);
    const backing = new Edge(overlay, "backing", base);
    const { inheritsFrom } = base;
    await link(backing, moved);
    undos.push(async () => {
      await unlink(backing, moved);
      base.inheritsFrom = inheritsFrom;
    });
    return { keep: () => keep(base, moved), undo };
  } catch (error) {
    await undo();
    throw error;
  }
}

/** In QSD's order. */
function checkOverlay(base: GraphNode, overlay: GraphNode): void {
  const { driver, parents, children } = overlay;
  const refuse = (message: string): never => {
    throw new OutportError("in-use", message);
  };
  const used = parents.reduce((all, { permissions }) => all | permissions.used, 0);
  if ((used & PERM_CONSISTENT_READ) !== 0) refuse("The overlay is already in use");
  if (driver.filtered !== undefined) refuse("Filters cannot be used as overlays");
  if (children.some(({ role }) => role === "backing")) {
    refuse("The overlay already has a backing image");
  }
  if (!driver.children.some(({ role }) => role === "backing")) {
    refuse("The overlay does not support backing images");
  }
  if (withDescendants([base]).includes(overlay)) {
    const [name, above] = [base.nodeName, overlay.nodeName];
    refuse(`Making '${name}' a backing child of '${above}' would create a cycle`);
  }
}

/** Nodes that are to move. Throws OutportError. */
function checkUnused(nodes: readonly GraphNode[]): void {
  if (!nodes.some(isRootUsed)) return;
  // QSD differs: it moves them. Here they would wait for requests that the drained section holds.
  throw new OutportError("in-use", "Cannot change iothread of active block backend");
}

/** Those who go on with the overlay. Throws OutportError. */
function followersOf(base: GraphNode, overlay: GraphNode): Edge[] {
  const below = withDescendants([overlay]);
  const moved = base.parents.filter(({ parent, user }) => {
    return parent === null ? user.onReplaced !== undefined : !below.includes(parent);
  });
  for (const { frozen, role, parent } of moved) {
    if (frozen) {
      const message = `Cannot change '${role}' link to '${base.nodeName}'`;
      throw new OutportError("in-use", message);
    }
    const { reopenable, filtered } = parent?.driver ?? {};
    if (parent !== null && reopenable === undefined && filtered !== role) {
      // QSD differs: it gives any node another child.
      const what = `Block format '${parent.driver.name}' used by node '${parent.nodeName}'`;
      throw new OutportError("unsupported", `${what} does not support reopening files`);
    }
  }
  return moved;
}

/** All or nothing. Throws OutportError. */
async function link(backing: Edge, moved: readonly Edge[]): Promise<void> {
  const { child: base } = backing;
  const overlay = backing.parent!;
  const { definition } = overlay;
  const owners = ownersOf(moved);
  const detach = replaceChild(overlay, null, backing);
  overlay.definition = {
    ...definition,
    children: { ...definition.children, backing: base.nodeName },
  };
  retargetEdges(moved, overlay);
  try {
    checkDepth(overlay);
    const users = { from: base.nodeName, to: overlay.nodeName };
    await applyReopen([overlay, ...owners], [base], users);
  } catch (error) {
    retargetEdges(moved, base);
    detach();
    overlay.definition = definition;
    throw error;
  }
  if (base.inheritsFrom !== null && owners.includes(base.inheritsFrom)) base.inheritsFrom = null;
}

/** The way back. */
async function unlink(backing: Edge, moved: readonly Edge[]): Promise<void> {
  const { child: base } = backing;
  const overlay = backing.parent!;
  const { definition } = overlay;
  const { backing: _, ...children } = definition.children;
  retargetEdges(moved, base);
  const attach = replaceChild(overlay, backing, null);
  overlay.definition = { ...definition, children };
  try {
    const users = { from: overlay.nodeName, to: base.nodeName };
    await applyReopen([overlay, ...ownersOf(moved)], [base], users);
  } catch (error) {
    // It stays, then: what clients have written since is in the overlay.
    attach();
    overlay.definition = definition;
    retargetEdges(moved, overlay);
    throw error;
  }
}

function ownersOf(edges: readonly Edge[]): GraphNode[] {
  return edges.flatMap(({ parent }) => parent ?? []);
}

async function keep(base: GraphNode, moved: readonly Edge[]): Promise<void> {
  for (const { user } of moved) await user.onReplaced?.(base);
  // Nobody writes to it any more; if it can't be told so, that does no harm.
  if (base.active) await rollBack([() => setReadOnly(base, true)]);
}
