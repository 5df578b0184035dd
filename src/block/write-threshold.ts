/**
 * Write thresholds: the first write beyond one is told of. Thread: iothread.
 * Spec: qapi/block-core.json block-set-write-threshold
 *
 * While a node has one, its methods give way to ones that look at where writes end, whoever sends
 * them and however deep the node lies. Nodes without one pay nothing.
 */
import {
  type BlockNode,
  OP_DISCARD,
  OP_WRITE,
  type Resolution,
  type ResolutionKind,
  ZERO,
} from "./node.ts";

type Watched = Pick<BlockNode, "resolve" | "write" | "writeZeroes" | "discard">;

const thresholds = new WeakMap<BlockNode, number>();

/** 0: none. */
export function writeThresholdOf(node: BlockNode): number {
  return thresholds.get(node) ?? 0;
}

/** `onExceeded`: once, when a write is about to end `amount` bytes beyond `offset`. 0: none. */
export function setWriteThreshold(
  node: BlockNode,
  offset: number,
  onExceeded: (amount: number) => void,
): void {
  const own: Partial<Watched> = node;
  delete own.resolve;
  delete own.write;
  delete own.writeZeroes;
  delete own.discard;
  thresholds.delete(node);
  if (offset === 0) return;
  thresholds.set(node, offset);
  Object.assign(
    node,
    watched(node, (end) => {
      if (end <= offset) return;
      setWriteThreshold(node, 0, () => {});
      onExceeded(end - offset);
    }),
  );
}

/** Methods of the node that first say where a write ends. */
function watched(node: BlockNode, onWrite: (end: number) => void): Watched {
  const { resolve, write, writeZeroes, discard } = node;
  const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
  return {
    resolve(op, offset, bytes, result): ResolutionKind {
      if (op === OP_WRITE) onWrite(offset + bytes);
      return resolve.call(node, op, offset, bytes, result);
    },
    write(offset, bytes, address, flags) {
      onWrite(offset + bytes);
      return write.call(node, offset, bytes, address, flags);
    },
    writeZeroes(offset, bytes, flags) {
      onWrite(offset + bytes);
      return writeZeroes.call(node, offset, bytes, flags);
    },
    discard(offset, bytes) {
      // Where a discard is nothing, nothing is written.
      if (resolve.call(node, OP_DISCARD, offset, bytes, out) !== ZERO) onWrite(offset + bytes);
      return discard.call(node, offset, bytes);
    },
  };
}
