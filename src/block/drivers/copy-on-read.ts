/**
 * copy-on-read: what is read from layers below the topmost one is copied there. Schema and child
 * rules on main, nodes on an iothread.
 *
 * The copying itself is the topmost layer's, copyUp(): it must keep writes out of the clusters that
 * it allocates whoever writes them, also past this node.
 * Spec: qapi/block-core.json BlockdevOptionsCor; QEMU block/copy-on-read.c
 */
import { optional, str } from "../../qapi/scalars.ts";
import { OutportError } from "../../util/error.ts";
import type { BlockDriver, NodeView, OpenContext, Permissions } from "../driver.ts";
import { FilterNode } from "../filter-node.ts";
import { isInactive } from "../inactive-nodes.ts";
import { KnownData } from "../known-data.ts";
import {
  type BlockStatus,
  OP_CACHE,
  OP_READ,
  type Op,
  PERM_WRITE_UNCHANGED,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  ZERO,
} from "../node.ts";

class CopyOnReadNode extends FilterNode {
  /** What is found further down is not copied: 1 is the topmost layer. */
  #depthMax: number;
  /** Ranges with nothing to copy. To forget one costs a question, to err a copy not made. */
  #settled = new KnownData();

  constructor(context: OpenContext) {
    super("copy-on-read", context);
    this.#depthMax = context.bound as number;
  }

  override resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    const needsCopy = (op === OP_READ || op === OP_CACHE) && !this.#isSettled(offset, bytes);
    if (!needsCopy) return op === OP_CACHE ? ZERO : super.resolve(op, offset, bytes, out);
    out.bytes = bytes;
    return SLOW;
  }

  override async read(offset: number, bytes: number, address: number): Promise<number> {
    return (await this.copyUp(offset, bytes)) || super.read(offset, bytes, address);
  }

  override async copyUp(offset: number, bytes: number): Promise<number> {
    const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    const end = offset + bytes;
    // Another process may have the image then.
    if (isInactive(this)) return 0;
    for (let at = offset; at < end; ) {
      if (this.#isSettled(at, end - at)) return 0;
      let result = await this.child.blockStatus(at, end - at, status);
      // Where the status can't be had, copying may say why.
      const part = result < 0 ? end - at : status.bytes;
      if (result < 0 || this.#isBelow(status)) result = (await this.#copy(at, part)) ?? 0;
      if (result < 0) return result;
      this.#settled.add(at, at + part);
      at += part;
    }
    return 0;
  }

  writeCompressed(offset: number, bytes: number, address: number): Promise<number> {
    return this.passCompressed(offset, bytes, address);
  }

  override async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    const result = await super.writeZeroes(offset, bytes, flags);
    this.#settled.cut(offset, offset + bytes);
    return result;
  }

  override async discard(offset: number, bytes: number): Promise<number> {
    const result = await super.discard(offset, bytes);
    this.#settled.cut(offset, offset + bytes);
    return result;
  }

  /** Whoever drains may change what is below. */
  override drainEnd(): void {
    this.#settled = new KnownData();
    super.drainEnd();
  }

  #isSettled(offset: number, bytes: number): boolean {
    return this.#settled.covers(offset, offset + bytes);
  }

  #isBelow({ flags, depth }: BlockStatus): boolean {
    if ((flags & STATUS_ALLOCATED) !== 0 && depth <= 1) return false;
    return this.#depthMax === Infinity || (depth > 1 && depth <= this.#depthMax);
  }

  async #copy(offset: number, bytes: number): Promise<number | undefined> {
    return this.child.copyUp?.(offset, bytes);
  }
}

export const copyOnRead: BlockDriver = {
  name: "copy-on-read",
  members: {
    bottom: optional(str, "Lowest node of the chain whose data is copied (default: all)"),
  },
  children: [{ role: "file", optional: false }],
  filtered: "file",
  childPermissions(_role, of): Permissions {
    return {
      used: of.used | PERM_WRITE_UNCHANGED,
      shared: of.shared | PERM_WRITE_UNCHANGED,
    };
  },
  bind({ node, options, findNode }) {
    const { bottom: name } = options as { bottom?: string };
    if (name === undefined) return Infinity;
    const bottom = findNode(name);
    if (bottom === undefined)
      throw new OutportError("not-found", `Bottom node '${name}' not found`);
    if (bottom.driver.filtered !== undefined) {
      throw new OutportError("invalid", `Bottom node '${name}' is a filter`);
    }
    return depthOf(bottom, node);
  },
  chainBottom: (options) => (options as { bottom?: string }).bottom,
  async open(context) {
    return new CopyOnReadNode(context);
  },
};

/** The depth of `bottom` in block status that the child of `top` tells; filters count, too. */
function depthOf(bottom: NodeView, top: NodeView): number {
  let depth = 0;
  for (let node: NodeView | undefined = below(top); node !== undefined; node = below(node)) {
    depth++;
    if (node === bottom) return depth;
  }
  // QSD differs: it goes round in circles from then on.
  const message = `Bottom node '${bottom.nodeName}' is not below '${top.nodeName}'`;
  throw new OutportError("invalid", message);
}

/** The next node of a backing chain. */
function below({ driver, children }: NodeView): NodeView | undefined {
  return children.find(({ role }) => role === (driver.filtered ?? "backing"))?.child;
}
