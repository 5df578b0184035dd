/**
 * compress: what is written through it is kept compressed by the image below. Schema and child
 * rules on main, nodes on an iothread.
 *
 * Clients are asked for whole clusters. The image takes parts of them, too: it knows best what it
 * has to read around them, and in whose way that is.
 * Spec: qapi/block-core.json BlockdevDriver "compress"; QEMU block/filter-compress.c
 */
import type { NodeDescription } from "../../iothread/messages.ts";
import { OutportError } from "../../util/error.ts";
import type { BlockDriver, OpenContext } from "../driver.ts";
import { FilterNode, passPermissions } from "../filter-node.ts";
import {
  type BlockLimits,
  OP_WRITE,
  type Op,
  type Resolution,
  type ResolutionKind,
  SLOW,
} from "../node.ts";

class CompressNode extends FilterNode {
  /** Of the child, and what became of them. */
  #childLimits: BlockLimits | null = null;
  #limits!: BlockLimits;

  constructor(context: OpenContext) {
    super("compress", context);
    if (this.child.writeCompressed !== undefined) return;
    const message = `Compression is not supported for underlying format: ${this.child.driver}`;
    throw new OutportError("unsupported", message);
  }

  override get limits(): BlockLimits {
    const { limits } = this.child;
    if (limits !== this.#childLimits) {
      this.#childLimits = limits;
      this.#limits = { ...limits, blockBytes: limits.clusterBytes ?? limits.requestAlignment };
    }
    return this.#limits;
  }

  override resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    if (op !== OP_WRITE) return super.resolve(op, offset, bytes, out);
    out.bytes = bytes;
    return SLOW;
  }

  protected override writeData(offset: number, bytes: number, address: number): Promise<number> {
    return this.passCompressed(offset, bytes, address);
  }

  override describe(): NodeDescription {
    const { clusterBytes, requestAlignment } = this.limits;
    const limits = { "request-alignment": clusterBytes ?? requestAlignment };
    return { ...super.describe(), limits };
  }
}

export const compress: BlockDriver = {
  name: "compress",
  members: {},
  children: [{ role: "file", optional: false }],
  filtered: "file",
  childPermissions: passPermissions,
  async open(context) {
    return new CompressNode(context);
  },
};
