/**
 * blkverify: does everything to a node under test and to a raw node, and compares. Schema and
 * child rules on main, nodes on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsBlkverify; QEMU docs/devel/testing/blkverify.rst
 */
import type { NodeDescription } from "../../iothread/messages.ts";
import { EIO, ENOTSUP } from "../../runtime/errno.ts";
import { ChildIo } from "../child-io.ts";
import type { BlockDriver, OpenContext, Permissions } from "../driver.ts";
import { FilterNode } from "../filter-node.ts";
import {
  ALIGNMENT_MAX,
  type BlockLimits,
  type BlockNode,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  type ResolutionKind,
  SLOW,
} from "../node.ts";

/** Compared at once. */
const PART_BYTES = ALIGNMENT_MAX;

class BlkverifyNode extends FilterNode {
  #test: BlockNode;
  #testIo: ChildIo;

  constructor(context: OpenContext) {
    super("blkverify", context, "raw");
    this.#test = context.children.test!;
    this.#testIo = new ChildIo(context.reactor, this.#test);
  }

  override get bytes(): number {
    return this.#test.bytes;
  }

  override get limits(): BlockLimits {
    const test = this.#test.limits;
    const raw = this.child.limits;
    return {
      requestAlignment: Math.max(test.requestAlignment, raw.requestAlignment),
      memoryAlignment: Math.max(test.memoryAlignment, raw.memoryAlignment),
      transferBytesMax: PART_BYTES,
      discardAlignment: 1,
    };
  }

  override resolve(): ResolutionKind {
    return SLOW;
  }

  override async read(offset: number, bytes: number, address: number): Promise<number> {
    const { reactor } = this.context;
    const { memory, buffers } = reactor;
    const at = await reactor.allocate(2 * PART_BYTES);
    const testAt = memory.address + at;
    const rawAt = testAt + PART_BYTES;
    const result = await this.#both("read", offset, bytes, (io, isTest) =>
      io.read(offset, bytes, isTest ? testAt : rawAt),
    );
    const different = result === 0 ? this.#firstDifference(at, bytes) : bytes;
    if (result === 0 && different === bytes) memory.copy(address, testAt, bytes);
    buffers.free(at);
    if (result < 0 || different === bytes) return result;
    return this.#mismatch("read", offset, bytes, `contents mismatch at ${offset + different}`);
  }

  protected override writeData(
    offset: number,
    bytes: number,
    address: number,
    flags: number,
  ): Promise<number> {
    return this.#both("write", offset, bytes, (io) => io.write(offset, bytes, address, flags));
  }

  /** Written as data, so that both get the same. */
  override async writeZeroes(): Promise<number> {
    return -ENOTSUP;
  }

  override async discard(): Promise<number> {
    return 0;
  }

  /** The raw node is only there to compare with. */
  override flush(): Promise<number> {
    return this.#testIo.flush();
  }

  override isKnownData(): boolean {
    return false;
  }

  override describe(): NodeDescription {
    return {};
  }

  async #both(
    what: string,
    offset: number,
    bytes: number,
    request: (io: ChildIo, isTest: boolean) => Promise<number>,
  ): Promise<number> {
    // The raw node may be the shorter one.
    const isInside = offset + bytes <= this.child.bytes;
    const [test, raw] = await Promise.all([
      request(this.#testIo, true),
      isInside ? request(this.io, false) : -EIO,
    ]);
    if (test === raw) return test;
    return this.#mismatch(what, offset, bytes, `return value mismatch ${test} != ${raw}`);
  }

  /** In the first `bytes` of two buffers, one after the other in memory; `bytes`: none. */
  #firstDifference(at: number, bytes: number): number {
    const { u8 } = this.context.reactor.memory;
    let index = 0;
    while (index < bytes && u8[at + index] === u8[at + PART_BYTES + index]) index++;
    return index;
  }

  /** QSD differs: it ends, and takes all other exports with it. */
  #mismatch(what: string, offset: number, bytes: number, text: string): number {
    this.context.log(`blkverify: ${what} offset=${offset} bytes=${bytes} ${text}`);
    return -EIO;
  }
}

export const blkverify: BlockDriver = {
  name: "blkverify",
  members: {},
  children: [
    { role: "raw", optional: false, after: "test" },
    { role: "test", optional: false },
  ],
  filtered: "raw",
  isProtocol: true,
  exactFilename(_options, filenameOf) {
    const [raw, test] = [filenameOf("raw"), filenameOf("test")];
    return raw === undefined || test === undefined ? undefined : `blkverify:${raw}:${test}`;
  },
  childPermissions(role, { used, shared }): Permissions {
    if (role === "raw") return { used, shared };
    // What may write to an image may let it grow.
    const isWritten = (used & (PERM_WRITE | PERM_WRITE_UNCHANGED)) !== 0;
    return {
      used: isWritten ? used | PERM_WRITE | PERM_RESIZE : used,
      shared: shared & ~PERM_RESIZE,
    };
  },
  async open(context) {
    return new BlkverifyNode(context);
  },
};
