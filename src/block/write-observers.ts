/**
 * Those who must see where a node is written to: dirty bitmaps, thresholds. Thread: iothread.
 *
 * While a node has any, its methods give way to ones that tell them, whoever sends the writes and
 * however deep the node lies: who resolves a range asks every node on its way down. Nodes without
 * one pay nothing.
 */
import { watchWrites } from "./direct-access.ts";
import {
  type BlockNode,
  OP_DISCARD,
  OP_WRITE,
  type Resolution,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "./node.ts";

/** Bytes [offset, offset + bytes) are about to be written, zeroed or discarded. */
export type WriteObserver = (offset: number, bytes: number) => void;

type Observed = Pick<
  BlockNode,
  "resolve" | "write" | "writeCompressed" | "writeZeroes" | "discard"
>;

interface Watch {
  readonly observers: Set<WriteObserver>;
  readonly end: () => void;
}

const watches = new WeakMap<BlockNode, Watch>();

/** Throws OutportError when others write to the node past us. */
export function addWriteObserver(node: BlockNode, observer: WriteObserver): void {
  let watch = watches.get(node);
  if (watch === undefined) {
    watch = { observers: new Set(), end: watchWrites(node) };
    watches.set(node, watch);
    Object.assign(node, observed(node, watch.observers));
  }
  watch.observers.add(observer);
}

export function removeWriteObserver(node: BlockNode, observer: WriteObserver): void {
  const watch = watches.get(node);
  if (watch?.observers.delete(observer) !== true || watch.observers.size > 0) return;
  watches.delete(node);
  watch.end();
  const own: Partial<Observed> = node;
  delete own.resolve;
  delete own.write;
  delete own.writeCompressed;
  delete own.writeZeroes;
  delete own.discard;
}

/** Methods of the node that first say what is written. */
function observed(node: BlockNode, observers: ReadonlySet<WriteObserver>): Observed {
  const { resolve, write, writeCompressed, writeZeroes, discard } = node;
  const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
  const tell = (offset: number, bytes: number): void => {
    for (const observer of observers) observer(offset, bytes);
  };
  const compressing: Pick<BlockNode, "writeCompressed"> = {
    writeCompressed(offset, bytes, address) {
      tell(offset, bytes);
      return writeCompressed!.call(node, offset, bytes, address);
    },
  };
  return {
    ...(writeCompressed === undefined ? {} : compressing),
    resolve(op, offset, bytes, result): ResolutionKind {
      const kind = resolve.call(node, op, offset, bytes, result);
      // What is slow comes to the methods below; what is mapped is only seen here.
      if (op === OP_WRITE && kind !== SLOW) tell(offset, Math.min(bytes, result.bytes));
      return kind;
    },
    write(offset, bytes, address, flags) {
      tell(offset, bytes);
      return write.call(node, offset, bytes, address, flags);
    },
    writeZeroes(offset, bytes, flags) {
      tell(offset, bytes);
      return writeZeroes.call(node, offset, bytes, flags);
    },
    discard(offset, bytes) {
      // Where a discard is nothing, nothing is written.
      if (resolve.call(node, OP_DISCARD, offset, bytes, out) !== ZERO) tell(offset, bytes);
      return discard.call(node, offset, bytes);
    },
  };
}
