/**
 * What the parents of a node may do together, and who stands in whose way. Pure. Thread: any.
 * Spec: QEMU include/block/block-common.h, BLK_PERM_*
 */
import { OutportError } from "../util/error.ts";
import type { Permissions } from "./driver.ts";
import {
  type BlockLimits,
  type BlockNode,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
} from "./node.ts";

/** A node without parents: nothing used, everything shared. */
export const NO_PERMISSIONS: Permissions = { used: 0, shared: PERM_ALL };

/** How messages name a parent that is no node: an export or a job. */
export const UNNAMED_BLOCK_DEVICE = "an unnamed block device";

/** One use of a node: an edge of the graph. */
export interface ParentUse extends Permissions {
  /** How messages name the parent: nodeParent() or UNNAMED_BLOCK_DEVICE. */
  readonly parent: string;
  /** "root" for exports and jobs, else the role of the child: "file", "backing". */
  readonly role: string;
}

export function nodeParent(nodeName: string): string {
  return `node '${nodeName}'`;
}

const NAMES: readonly (readonly [number, string])[] = [
  [PERM_CONSISTENT_READ, "consistent read"],
  [PERM_WRITE, "write"],
  [PERM_WRITE_UNCHANGED, "write unchanged"],
  [PERM_RESIZE, "resize"],
];

/** PERM_* bits as messages show them: "consistent read, write". */
export function permissionNames(bits: number): string {
  return NAMES.filter(([bit]) => (bits & bit) !== 0)
    .map(([, name]) => name)
    .join(", ");
}

/** What all parents together use, and what all of them let others use. */
export function cumulate(parents: readonly Permissions[]): Permissions {
  let used = 0;
  let shared = PERM_ALL;
  for (const parent of parents) {
    used |= parent.used;
    shared &= parent.shared;
  }
  return { used, shared };
}

/**
 * Checks that the parents of a node can live together and that the node can serve them, and
 * returns what they come to. `parents`: the newest first. Throws OutportError in QSD's words.
 */
export function checkParents(
  node: { readonly nodeName: string; readonly writable: boolean; readonly isReopened?: boolean },
  parents: readonly ParentUse[],
): Permissions {
  for (const one of parents) {
    for (const other of parents) {
      const denied = other.used & ~one.shared;
      if (one !== other && denied !== 0) throw conflict(node.nodeName, denied, other, one);
    }
  }
  const permissions = cumulate(parents);
  if ((permissions.used & (PERM_WRITE | PERM_WRITE_UNCHANGED)) !== 0 && !node.writable) {
    const message =
      node.isReopened === true
        ? `Read-only block node '${node.nodeName}' cannot support read-write users`
        : "Block node is read-only";
    throw new OutportError("permission", message);
  }
  return permissions;
}

function conflict(
  nodeName: string,
  denied: number,
  user: ParentUse,
  owner: ParentUse,
): OutportError {
  const describe = (use: ParentUse) =>
    `${use.parent} (uses node '${nodeName}' as '${use.role}' child)`;
  return new OutportError(
    "permission",
    `Permission conflict on node '${nodeName}': permissions '${permissionNames(denied)}' are ` +
      `both required by ${describe(user)} and unshared by ${describe(owner)}.`,
  );
}

/** What clients are asked to keep to. */
export function blockBytesOf({ requestAlignment, blockBytes = 1 }: BlockLimits): number {
  return Math.max(requestAlignment, blockBytes);
}

/**
 * A write may cover the last block, which would reach beyond the end of the node. Throws
 * OutportError. `used`: PERM_* bits.
 */
export function checkWriteLength({ bytes, limits }: BlockNode, used: number): void {
  if ((used & PERM_WRITE) === 0 || (used & PERM_RESIZE) !== 0) return;
  if (bytes % blockBytesOf(limits) === 0) return;
  throw new OutportError(
    "permission",
    "Cannot get 'write' permission without 'resize': " +
      "Image size is not a multiple of request alignment",
  );
}

/**
 * What a node asks of its child in the end: `asked` by its driver's rules, but nothing is kept
 * from others on a child that was opened with force-share.
 */
export function childUse(asked: Permissions, childForceShare: boolean): Permissions {
  return childForceShare ? { used: asked.used, shared: PERM_ALL } : asked;
}
