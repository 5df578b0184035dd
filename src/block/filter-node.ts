/**
 * What filter drivers have in common: a node that is its child but for what the driver adds, and
 * that keeps to the common options of nodes. Thread: iothread.
 */
import type { NodeDescription } from "../iothread/messages.ts";
import { ENOTSUP } from "../runtime/errno.ts";
import { ChildIo } from "./child-io.ts";
import type { OpenContext, Permissions } from "./driver.ts";
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  OP_DISCARD,
  OP_WRITE,
  type Op,
  REQ_MAY_UNMAP,
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "./node.ts";
import { checkWriteLength } from "./permissions.ts";
import { truncateNode } from "./truncate.ts";
import type { WriteGate } from "./write-gate.ts";
import { writeDetectedZeroes } from "./zeroes.ts";

export class FilterNode implements BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  highestWrite = 0;
  protected context: OpenContext;
  protected child: BlockNode;
  /** On the child. */
  protected io: ChildIo;
  #role: string;

  /** Of open drained sections, in which children may change. */
  readonly #drained: (readonly BlockNode[])[] = [];

  /** `role`: of the child that it filters. */
  constructor(driver: string, context: OpenContext, role = "file") {
    this.nodeName = context.nodeName;
    this.driver = driver;
    this.context = context;
    this.#role = role;
    this.child = context.children[role]!;
    this.io = new ChildIo(context.reactor, this.child);
  }

  get bytes(): number {
    return this.child.bytes;
  }

  get writable(): boolean {
    return !this.context.readOnly;
  }

  get limits(): BlockLimits {
    return this.child.limits;
  }

  get writeGate(): WriteGate | undefined {
    return this.child.writeGate;
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    if (op === OP_DISCARD && !this.context.discardUnmap) return ZERO;
    if (op === OP_WRITE) {
      this.noteWrite(offset + bytes);
      if (this.context.detectZeroes !== "off") {
        out.bytes = bytes;
        return SLOW;
      }
    }
    return this.child.resolve(op, offset, bytes, out);
  }

  read(offset: number, bytes: number, address: number): Promise<number> {
    return this.io.read(offset, bytes, address);
  }

  async write(offset: number, bytes: number, address: number, flags: number): Promise<number> {
    this.noteWrite(offset + bytes);
    if (await writeDetectedZeroes(this.context, this, offset, bytes, address)) return 0;
    return this.writeData(offset, bytes, address, flags);
  }

  /** A write that is no zeroes in disguise. */
  protected writeData(
    offset: number,
    bytes: number,
    address: number,
    flags: number,
  ): Promise<number> {
    return this.io.write(offset, bytes, address, flags);
  }

  /** A write that the child keeps compressed; -ENOTSUP when it can't. */
  protected async passCompressed(offset: number, bytes: number, address: number): Promise<number> {
    this.noteWrite(offset + bytes);
    return (await this.child.writeCompressed?.(offset, bytes, address)) ?? -ENOTSUP;
  }

  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    this.noteWrite(offset + bytes);
    const allowed = this.context.discardUnmap ? flags : flags & ~REQ_MAY_UNMAP;
    return this.io.writeZeroes(offset, bytes, allowed);
  }

  async discard(offset: number, bytes: number): Promise<number> {
    return this.context.discardUnmap ? this.io.discard(offset, bytes) : 0;
  }

  flush(): Promise<number> {
    return this.io.flush();
  }

  copyUp(offset: number, bytes: number): Promise<number> {
    return this.io.copyUp(offset, bytes);
  }

  blockStatus(offset: number, bytes: number, out: BlockStatus): number | Promise<number> {
    const result = this.child.blockStatus(offset, bytes, out);
    if (typeof result !== "number") return result.then((late) => countFilter(late, out));
    return countFilter(result, out);
  }

  isKnownData(offset: number, bytes: number): boolean {
    return this.child.isKnownData(offset, bytes);
  }

  onMappedError(op: Op, errno: number): number {
    return this.child.onMappedError(op, errno);
  }

  async setPermissions(used: number): Promise<void> {
    checkWriteLength(this, used);
  }

  drainBegin(): void {
    const children = Object.values(this.context.children);
    this.#drained.push(children);
    for (const child of children) child.drainBegin?.();
  }

  drainEnd(): void {
    for (const child of this.#drained.pop() ?? []) child.drainEnd?.();
  }

  /** Drivers that take other options, too, have their own. */
  async reopen(context: OpenContext, _permissions: Permissions): Promise<ReopenedNode> {
    const before = this.context;
    this.use(context);
    return { commit: () => {}, undo: async () => this.use(before) };
  }

  truncate(bytes: number): Promise<void> {
    return truncateNode(this.child, bytes);
  }

  describe(): NodeDescription {
    const { actualBytes } = this.child.describe();
    return actualBytes === undefined ? {} : { actualBytes };
  }

  async close(): Promise<void> {}

  /** For reopen(): other options and another child, perhaps. */
  protected use(context: OpenContext): void {
    this.context = context;
    this.child = context.children[this.#role]!;
    this.io = new ChildIo(context.reactor, this.child);
  }

  protected noteWrite(end: number): void {
    if (end > this.highestWrite) this.highestWrite = end;
  }
}

/** What its own image lacks lies one layer further down, as QSD counts: past the filter, too. */
function countFilter(result: number, out: BlockStatus): number {
  if (result === 0 && out.depth > 1) out.depth++;
  return result;
}

/** What a filter asks of its child: all that its parents ask. */
export function passPermissions(_role: string, of: Permissions): Permissions {
  return of;
}
