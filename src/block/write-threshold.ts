/**
 * Write thresholds: the first write beyond one is told of. Thread: iothread.
 * Spec: qapi/block-core.json block-set-write-threshold
 */
import type { BlockNode } from "./node.ts";
import { addWriteObserver, removeWriteObserver, type WriteObserver } from "./write-observers.ts";

interface Threshold {
  readonly offset: number;
  readonly observer: WriteObserver;
}

const thresholds = new WeakMap<BlockNode, Threshold>();

/** 0: none. */
export function writeThresholdOf(node: BlockNode): number {
  return thresholds.get(node)?.offset ?? 0;
}

/**
 * `onExceeded`: once, when a write is about to end `amount` bytes beyond `offset`. 0: none. Throws
 * OutportError when others write to the node past us.
 */
export function setWriteThreshold(
  node: BlockNode,
  offset: number,
  onExceeded: (amount: number) => void,
): void {
  const before = thresholds.get(node);
  if (offset > 0) {
    const observer = (start: number, bytes: number): void => {
      if (start + bytes <= offset) return;
      setWriteThreshold(node, 0, () => {});
      onExceeded(start + bytes - offset);
    };
    addWriteObserver(node, observer);
    thresholds.set(node, { offset, observer });
  } else {
    thresholds.delete(node);
  }
  if (before !== undefined) removeWriteObserver(node, before.observer);
}
