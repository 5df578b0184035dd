/**
 * raw: a disk image without a format, or a window of one. Schema and child rules on main, nodes
 * on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsRaw, QEMU block/raw-format.c
 */

import type { NodeDescription } from "../../iothread/messages.ts";
import { int, optional } from "../../qapi/scalars.ts";
import { EINVAL, ENOSPC } from "../../runtime/errno.ts";
import { OutportError } from "../../util/error.ts";
import { ChildIo } from "../child-io.ts";
import { nodeBytes, SECTOR_BYTES } from "../description.ts";
import type { DirectFile } from "../direct-access.ts";
import type { BlockDriver, OpenContext, Permissions } from "../driver.ts";
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  type Op,
  PERM_RESIZE,
  REQ_MAY_UNMAP,
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_ZERO,
  ZERO,
} from "../node.ts";
import { checkWriteLength } from "../permissions.ts";
import { truncateNode } from "../truncate.ts";
import type { WriteGate } from "../write-gate.ts";
import { writeDetectedZeroes } from "../zeroes.ts";

interface RawOptions {
  readonly offset?: number;
  readonly size?: number;
}

class RawNode implements BlockNode {
  readonly nodeName: string;
  readonly driver = "raw";
  bytes: number;
  writable: boolean;
  highestWrite = 0;
  #context: OpenContext;
  #child: BlockNode;
  /** Of open drained sections, in which the child may change. */
  #drainedChildren: BlockNode[] = [];
  #offset: number;
  /** What the child really has of this node's bytes; they are rounded up. */
  #childBytes: number;
  /** Whatever the child has: the size option. */
  #fixedBytes: number | undefined;

  constructor(context: OpenContext, child: BlockNode, offset: number, bytes: number) {
    this.nodeName = context.nodeName;
    this.bytes = nodeBytes(bytes);
    this.writable = !context.readOnly;
    this.#context = context;
    this.#child = child;
    this.#offset = offset;
    this.#childBytes = bytes;
    this.#fixedBytes = (context.options as RawOptions).size;
  }

  get limits(): BlockLimits {
    return this.#child.limits;
  }

  get writeGate(): WriteGate | undefined {
    return this.#child.writeGate;
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    if (op === OP_FLUSH) return this.#child.resolve(op, 0, 0, out);
    if (op === OP_DISCARD && !this.#context.discardUnmap) return ZERO;
    if (op === OP_WRITE) {
      this.#noteWrite(offset + bytes);
      if (this.#context.detectZeroes !== "off") return SLOW;
    }
    if (offset + bytes > this.#childBytes) return this.#resolveTail(op, offset, bytes, out);
    return this.#child.resolve(op, offset + this.#offset, bytes, out);
  }

  #noteWrite(end: number): void {
    if (end > this.highestWrite) this.highestWrite = end;
  }

  /** The last sector may reach beyond the child: it reads as zeroes there. */
  #resolveTail(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    if (op !== OP_READ) return SLOW;
    const inside = this.#childBytes - offset;
    if (inside > 0) return this.#child.resolve(op, offset + this.#offset, inside, out);
    out.bytes = bytes;
    return ZERO;
  }

  async read(offset: number, bytes: number, address: number): Promise<number> {
    if (offset + bytes > this.#childBytes) return -EINVAL;
    this.#child.onBlockEvent?.("read_aio");
    return this.#child.read(offset + this.#offset, bytes, address);
  }

  async write(offset: number, bytes: number, address: number, flags: number): Promise<number> {
    if (offset + bytes > this.#childBytes) return -ENOSPC;
    this.#noteWrite(offset + bytes);
    if (await writeDetectedZeroes(this.#context, this, offset, bytes, address)) return 0;
    this.#child.onBlockEvent?.("write_aio");
    return this.#child.write(offset + this.#offset, bytes, address, flags);
  }

  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    if (offset + bytes > this.#childBytes) return -ENOSPC;
    this.#noteWrite(offset + bytes);
    const allowed = this.#context.discardUnmap ? flags : flags & ~REQ_MAY_UNMAP;
    return this.#child.writeZeroes(offset + this.#offset, bytes, allowed);
  }

  async discard(offset: number, bytes: number): Promise<number> {
    const inside = Math.min(bytes, this.#childBytes - offset);
    if (!this.#context.discardUnmap || inside <= 0) return 0;
    // Blocks of the child begin elsewhere.
    const io = new ChildIo(this.#context.reactor, this.#child);
    return io.discard(offset + this.#offset, inside);
  }

  flush(): Promise<number> {
    this.#child.onBlockEvent?.("flush_to_os");
    this.#child.onBlockEvent?.("flush_to_disk");
    return this.#child.flush();
  }

  async copyUp(offset: number, bytes: number): Promise<number> {
    const inside = Math.min(bytes, this.#childBytes - offset);
    if (inside <= 0) return 0;
    return (await this.#child.copyUp?.(offset + this.#offset, inside)) ?? 0;
  }

  blockStatus(offset: number, bytes: number, out: BlockStatus): number | Promise<number> {
    const inside = Math.min(bytes, this.#childBytes - offset);
    // QSD differs: of a chain below it knows the topmost image only, and calls the rest holes.
    if (inside > 0) return this.#child.blockStatus(offset + this.#offset, inside, out);
    out.flags = STATUS_ZERO | STATUS_ALLOCATED;
    out.bytes = bytes;
    out.depth = 1;
    return 0;
  }

  isKnownData(offset: number, bytes: number): boolean {
    return (
      offset + bytes <= this.#childBytes && this.#child.isKnownData(offset + this.#offset, bytes)
    );
  }

  onMappedError(op: Op, errno: number): number {
    return this.#child.onMappedError(op, errno);
  }

  async setPermissions(used: number): Promise<void> {
    checkWriteLength(this, used);
  }

  drainBegin(): void {
    this.#drainedChildren.push(this.#child);
    this.#child.drainBegin?.();
  }

  drainEnd(): void {
    this.#drainedChildren.pop()?.drainEnd?.();
  }

  async truncate(bytes: number): Promise<void> {
    if (this.#fixedBytes !== undefined) {
      throw new OutportError("unsupported", "Cannot resize fixed-size raw disks");
    }
    await truncateNode(this.#child, bytes + this.#offset);
    this.#measure();
  }

  async reopen(context: OpenContext): Promise<ReopenedNode> {
    const child = context.children.file!;
    const { offset = 0, size } = context.options as RawOptions;
    checkWindow(child, offset, size);
    const before = { context: this.#context, child: this.#child, offset: this.#offset };
    const use = (now: typeof before): void => {
      this.#context = now.context;
      this.#child = now.child;
      this.#offset = now.offset;
      this.#fixedBytes = (now.context.options as RawOptions).size;
      this.writable = !now.context.readOnly;
      this.#measure();
    };
    use({ context, child, offset });
    return { commit: () => {}, undo: () => use(before) };
  }

  refreshLength(): void {
    checkAlignment(this.#child, this.#offset);
    this.#measure();
  }

  directFile(through: BlockNode[]): DirectFile | null {
    const { detectZeroes } = this.#context;
    if (this.#offset > 0 || this.#fixedBytes !== undefined || detectZeroes !== "off") return null;
    through.push(this);
    return this.#child.directFile?.(through) ?? null;
  }

  #measure(): void {
    this.#childBytes = this.#fixedBytes ?? Math.max(0, this.#child.bytes - this.#offset);
    this.bytes = nodeBytes(this.#childBytes);
  }

  describe(): NodeDescription {
    const { actualBytes } = this.#child.describe();
    return actualBytes === undefined ? {} : { actualBytes };
  }

  async close(): Promise<void> {}
}

export const raw: BlockDriver = {
  name: "raw",
  members: {
    offset: optional(int, "Bytes of the file before the disk (default: 0)"),
    size: optional(int, "Bytes of the disk (default: all that follow)"),
  },
  children: [{ role: "file", optional: false }],
  strongOptions: ["offset", "size"],
  reopenable: ["offset", "size"],
  childPermissions(_role, of, options): Permissions {
    const { offset = 0, size } = options as RawOptions;
    // Whoever relies on the window relies on the child's length.
    const window = offset > 0 || size !== undefined;
    return { used: of.used, shared: window ? of.shared & ~PERM_RESIZE : of.shared };
  },
  async open(context) {
    const child = context.children.file!;
    const { offset = 0, size } = context.options as RawOptions;
    checkWindow(child, offset, size);
    return new RawNode(context, child, offset, size ?? child.bytes - offset);
  },
};

function checkWindow(child: BlockNode, offset: number, size: number | undefined): void {
  for (const [name, value] of [
    ["offset", offset],
    ["size", size ?? 0],
  ] as const) {
    // QSD differs: it aborts.
    if (value < 0) fail(`Value '${value}' is out of range for parameter '${name}'`);
  }
  const whole = child.bytes;
  if (offset > whole) {
    fail(`Offset (${offset}) cannot be greater than size of the containing file (${whole})`);
  }
  if (size !== undefined && size > whole - offset) {
    fail(
      `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the ` +
        ` actual size of the containing file (${whole})`,
    );
  }
  if (size !== undefined && size % SECTOR_BYTES !== 0) {
    fail(`Specified size is not multiple of ${SECTOR_BYTES}`);
  }
  checkAlignment(child, offset);
}

function checkAlignment(child: BlockNode, offset: number): void {
  const { requestAlignment } = child.limits;
  // QSD differs: it takes such a window and pays with a read-modify-write for every write.
  if (offset % requestAlignment !== 0) {
    fail(`Offset (${offset}) is not a multiple of the request alignment (${requestAlignment})`);
  }
}

function fail(message: string): never {
  throw new OutportError("invalid", message);
}
