/** Which nodes are inactive, for whoever serves them; main says so. Thread: iothread. */
import type { BlockNode } from "./node.ts";

const inactive = new WeakSet<BlockNode>();

/** It changes in drained sections of the node only. */
export function isInactive(node: BlockNode): boolean {
  return inactive.has(node);
}

export function markActive(node: BlockNode, active: boolean): void {
  if (active) inactive.delete(node);
  else inactive.add(node);
}
