/**
 * Gives several open nodes new permissions, all or nothing: first everybody gains what is new to
 * it, which the host may refuse, and only then everybody drops what it no longer needs. So nothing
 * that was dropped must be had again. Thread: iothread.
 */
import type { NodePermissions } from "../iothread/messages.ts";
import type { Permissions } from "./driver.ts";
import type { BlockNode } from "./node.ts";

/** An open node, and what it was given. */
export interface NodeEntry {
  readonly node: BlockNode;
  permissions: Permissions;
}

export interface PermissionChange {
  readonly entry: NodeEntry;
  readonly next: NodePermissions;
}

type Log = (text: string) => void;

/**
 * Returns what takes it back. Throws OutportError, and nothing has changed. `handedOver`: another
 * open file of this process holds the same, and shields this one until it is closed.
 */
export async function gainPermissions(
  changes: readonly PermissionChange[],
  handedOver: boolean,
  log: Log,
): Promise<() => Promise<void>> {
  const done: { entry: NodeEntry; before: Permissions }[] = [];
  const undo = async (): Promise<void> => {
    for (const { entry, before } of done.reverse()) await give(entry, before, log);
  };
  try {
    for (const { entry, next } of changes) {
      const before = entry.permissions;
      const used = before.used | next.used;
      const shared = before.shared & next.shared;
      if (used === before.used && shared === before.shared) continue;
      await entry.node.setPermissions(used, shared, handedOver);
      done.push({ entry, before });
      entry.permissions = { used, shared };
    }
  } catch (error) {
    await undo();
    throw error;
  }
  return undo;
}

/** Drops what is no longer needed, after gainPermissions(). */
export async function dropPermissions(
  changes: readonly PermissionChange[],
  log: Log,
): Promise<void> {
  for (const { entry, next } of changes) {
    const { used, shared } = entry.permissions;
    if (used !== next.used || shared !== next.shared) await give(entry, next, log);
  }
}

/** Only less than it has: a failure leaves it with too much, never with too little. */
async function give(entry: NodeEntry, { used, shared }: Permissions, log: Log): Promise<void> {
  try {
    await entry.node.setPermissions(used, shared);
    entry.permissions = { used, shared };
  } catch (error) {
    log(`Could not drop permissions of node '${entry.node.nodeName}': ${error}`);
  }
}
