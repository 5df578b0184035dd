/**
 * A qcow2 image as a node: maps reads of allocated clusters and overwrites of clusters that are
 * nobody else's straight to the host; all else is done by the parts of the image.
 * Thread: iothread.
 */
import { bitmapsOf } from "../../../bitmaps/node-bitmaps.ts";
import type { NodeDescription } from "../../../iothread/messages.ts";
import { ENOENT, ENOMEDIUM, strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import { nodeBytes } from "../../description.ts";
import type { OpenContext, Permissions } from "../../driver.ts";
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  type Op,
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "../../node.ts";
import { checkWriteLength } from "../../permissions.ts";
import { WriteGate } from "../../write-gate.ts";
import { writeDetectedZeroes } from "../../zeroes.ts";
import { allocateNow } from "./allocate-now.ts";
import { changeBackingName } from "./backing-name.ts";
import { writeCompressedGuest } from "./compressed-write.ts";
import { copyUpGuest } from "./copy-up.ts";
import { describeImage } from "./describe.ts";
import { discardGuest, zeroGuest } from "./discard.ts";
import type { Image } from "./image.ts";
import { limitsOf } from "./limits.ts";
import {
  COMPRESSED,
  INVALID,
  MISSING,
  NORMAL,
  newMapping,
  UNALLOCATED,
  UNALLOCATED_PLACED,
} from "./mapping.ts";
import {
  adoptBitmaps,
  checkNewBitmap,
  checkResizable,
  handBitmapsOver,
  storeBitmaps,
  takeBitmapsBack,
} from "./node-bitmaps.ts";
import { openImage } from "./open.ts";
import { readGuest } from "./read.ts";
import { reopenImage } from "./reopen.ts";
import { resizeImage } from "./resize.ts";
import { deleteSnapshot, takeSnapshot } from "./snapshot-change.ts";
import { statusOfGuest } from "./status.ts";
import { writeGuest } from "./write.ts";

export class Qcow2Node implements BlockNode {
  readonly nodeName: string;
  readonly driver = "qcow2";
  bytes = 0;
  limits!: BlockLimits;
  highestWrite = 0;
  #image!: Image;
  #context!: OpenContext;
  #mapping = newMapping();
  /** It was inactivated since the image was last looked at. */
  #isHandedOver = false;
  #drained: (readonly BlockNode[])[] = [];

  constructor(image: Image) {
    this.nodeName = image.context.nodeName;
    this.writeGate = new WriteGate(image.reactor);
    this.#use(image);
  }

  #use(image: Image): void {
    this.#image = image;
    this.#context = image.context;
    adoptBitmaps(this, image);
    this.bytes = nodeBytes(image.header.bytes);
    this.limits = limitsOf(image);
  }

  /** Its own: what passes through it passes through the image file's, too. */
  readonly writeGate: WriteGate;

  get writable(): boolean {
    return !this.#context.readOnly;
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.bytes = bytes;
    if (this.#image.isBroken) return SLOW;
    switch (op) {
      case OP_READ:
        return this.#resolveRead(offset, bytes, out);
      case OP_WRITE:
        return this.#resolveWrite(offset, bytes, out);
      case OP_FLUSH:
        if (this.#image.writer.isDirty) return SLOW;
        return this.#image.file.node.resolve(OP_FLUSH, 0, 0, out);
      case OP_DISCARD:
        return this.#context.discardUnmap ? SLOW : ZERO;
      case OP_CACHE:
        return this.#image.backing === null ? ZERO : SLOW;
      default:
        return SLOW;
    }
  }

  #resolveRead(offset: number, bytes: number, out: Resolution): ResolutionKind {
    const mapping = this.#mapping;
    const kind = this.#image.map.lookup(offset, bytes, mapping);
    const run = mapping.bytes;
    if (kind === NORMAL) {
      if (this.#image.encryption !== null) return SLOW;
      return resolveInside(this.#image.data.node, mapping.host, run, out);
    }
    if (kind === COMPRESSED || kind === INVALID || kind === MISSING) return SLOW;
    if (kind === UNALLOCATED || kind === UNALLOCATED_PLACED) {
      const { backingNode } = this.#image;
      if (backingNode !== null) return resolveInside(backingNode, offset, run, out);
    }
    out.bytes = run;
    return ZERO;
  }

  #resolveWrite(offset: number, bytes: number, out: Resolution): ResolutionKind {
    const image = this.#image;
    this.#noteWrite(offset + bytes);
    if (this.#context.detectZeroes !== "off" || image.encryption !== null) return SLOW;
    const mapping = this.#mapping;
    const kind = image.map.lookup(offset, bytes, mapping);
    if (!(kind === NORMAL && mapping.copied) && !allocateNow(image, offset, mapping)) return SLOW;
    const run = mapping.bytes;
    const { host } = mapping;
    const { node } = image.data;
    if (host + run > node.bytes) return SLOW;
    if (image.dataFile === null) {
      if (host + run > image.allocator.usedEnd) return SLOW;
      if (image.metadata.overlapOf(host, run) !== null) return SLOW;
    }
    // Blocks that hold something else, too, are read, changed and written back.
    if (node.limits.requestAlignment > image.layout.subclusterBytes) return SLOW;
    return node.resolve(OP_WRITE, host, run, out);
  }

  #noteWrite(end: number): void {
    if (end > this.highestWrite) this.highestWrite = end;
  }

  async read(offset: number, bytes: number, address: number): Promise<number> {
    return readGuest(this.#image, offset, bytes, address);
  }

  async write(offset: number, bytes: number, address: number): Promise<number> {
    if (this.#image.isBroken) return -ENOMEDIUM;
    this.#noteWrite(offset + bytes);
    if (await writeDetectedZeroes(this.#context, this, offset, bytes, address)) return 0;
    return writeGuest(this.#image, offset, bytes, address);
  }

  async writeCompressed(offset: number, bytes: number, address: number): Promise<number> {
    if (this.#image.isBroken) return -ENOMEDIUM;
    this.#noteWrite(offset + bytes);
    if (await writeDetectedZeroes(this.#context, this, offset, bytes, address)) return 0;
    return writeCompressedGuest(this.#image, offset, bytes, address);
  }

  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    if (this.#image.isBroken) return -ENOMEDIUM;
    this.#noteWrite(offset + bytes);
    return zeroGuest(this.#image, offset, bytes, flags);
  }

  async discard(offset: number, bytes: number): Promise<number> {
    if (this.#image.isBroken) return -ENOMEDIUM;
    return this.#context.discardUnmap ? discardGuest(this.#image, offset, bytes) : 0;
  }

  async flush(): Promise<number> {
    if (this.#image.isBroken) return -ENOMEDIUM;
    return this.#context.readOnly ? 0 : this.#image.writer.commit();
  }

  async copyUp(offset: number, bytes: number): Promise<number> {
    const { backing, isBroken } = this.#image;
    if (isBroken) return -ENOMEDIUM;
    return backing === null ? 0 : copyUpGuest(this.#image, offset, bytes);
  }

  blockStatus(offset: number, bytes: number, out: BlockStatus): number | Promise<number> {
    return statusOfGuest(this.#image, offset, bytes, out);
  }

  isKnownData(offset: number, bytes: number): boolean {
    const mapping = this.#mapping;
    const kind = this.#image.map.lookup(offset, bytes, mapping);
    if (mapping.bytes < bytes) return false;
    if (kind === NORMAL) {
      return this.#image.encryption !== null || this.#image.isPreallocated === false;
    }
    if (kind === COMPRESSED) return true;
    if (kind !== UNALLOCATED && kind !== UNALLOCATED_PLACED) return false;
    const { backingNode } = this.#image;
    if (backingNode === null || offset + bytes > backingNode.bytes) return false;
    return backingNode.isKnownData(offset, bytes);
  }

  onMappedError(op: Op, errno: number): number {
    // A failed read may be the backing file's: only what was written can be the image's alone.
    return op === OP_READ ? errno : this.#image.data.node.onMappedError(op, errno);
  }

  async setPermissions(used: number): Promise<void> {
    checkWriteLength(this, used);
  }

  drainBegin(): void {
    const children = Object.values(this.#context.children);
    this.#drained.push(children);
    for (const child of children) child.drainBegin?.();
  }

  drainEnd(): void {
    for (const child of this.#drained.pop() ?? []) child.drainEnd?.();
  }

  async reopen(context: OpenContext, _permissions: Permissions): Promise<ReopenedNode> {
    return reopenImage(this, this.#image, context, (image) => this.#use(image));
  }

  async truncate(bytes: number): Promise<void> {
    if (bytes !== this.#image.header.bytes) checkResizable(this, this.#image);
    await resizeImage(this.#image, bytes);
    this.bytes = nodeBytes(this.#image.header.bytes);
  }

  async settle(next: "read-only" | "handover" | null): Promise<void> {
    const handsOver = next === "handover";
    const endBitmaps = handsOver ? await handBitmapsOver(this, this.#image) : () => {};
    if (next === "read-only") await storeBitmaps(this, this.#image);
    const result = await this.#image.settle();
    if (result < 0) {
      await this.unsettle();
      throw new OutportError("io", `Could not write the metadata: ${strerror(result)}`);
    }
    endBitmaps();
    if (!handsOver) return;
    this.#isHandedOver = true;
    // Closing must not write to it either.
    this.#image.context = { ...this.#image.context, active: false };
  }

  unsettle(): Promise<void> {
    return takeBitmapsBack(this.#image);
  }

  async takeSnapshot(name: string, timeUs: number): Promise<{ readonly id: string } | number> {
    if (this.#image.isBroken) return -ENOMEDIUM;
    return takeSnapshot(this.#image, name, timeUs);
  }

  async changeBackingFile(backingFile: string, format: string): Promise<number> {
    if (this.#image.isBroken) return -ENOMEDIUM;
    return changeBackingName(this.#image, backingFile, format);
  }

  async deleteSnapshot(id: string, name: string): Promise<number> {
    const image = this.#image;
    if (image.isBroken) return -ENOMEDIUM;
    const snapshot = image.snapshots.find((one) => one.id === id && one.name === name);
    return snapshot === undefined ? -ENOENT : deleteSnapshot(image, snapshot);
  }

  async invalidate(): Promise<void> {
    const hasBitmap = (name: string): boolean => bitmapsOf(this).find(name) !== undefined;
    const context = { ...this.#context, active: true };
    let image: Image;
    try {
      image = await openImage(context, this.#image, hasBitmap);
    } catch (error) {
      // What it knows may be out of date, and nobody keeps the bitmaps up to date.
      this.#image.isBroken ||= this.#isHandedOver;
      throw error;
    }
    this.#image.abandon();
    this.#isHandedOver = false;
    this.#use(image);
  }

  /** Its own length it knows; those below may have other limits. */
  refreshLength(): void {
    this.limits = limitsOf(this.#image);
  }

  async checkNewBitmap(name: string, granularity: number): Promise<void> {
    checkNewBitmap(this, this.#image, name, granularity);
  }

  async removeStoredBitmap(name: string): Promise<void> {
    if (!this.#image.isBroken) await this.#image.bitmaps.remove(name);
  }

  describe(): NodeDescription {
    return describeImage(this.#image);
  }

  handOver(): unknown {
    const { encryption } = this.#image;
    return encryption === null ? undefined : { key: encryption.key };
  }

  async close(): Promise<void> {
    try {
      await storeBitmaps(this, this.#image);
    } catch (error) {
      const text = error instanceof OutportError ? error.message : String(error);
      const what = "Lost persistent bitmaps during inactivation of node";
      this.#context.log(`${what} '${this.nodeName}': ${text}`);
    }
    const result = await this.#image.close();
    if (result < 0) {
      this.#context.log(`Could not write the metadata of node '${this.nodeName}'`);
    }
  }
}

/** A read of a child, which may be shorter than its parent. */
function resolveInside(
  node: BlockNode,
  offset: number,
  bytes: number,
  out: Resolution,
): ResolutionKind {
  const { requestAlignment } = node.limits;
  const inside = node.bytes - offset;
  if (inside <= 0) {
    out.bytes = bytes;
    return ZERO;
  }
  const part = Math.min(bytes, inside);
  if (requestAlignment > 1) {
    if (offset % requestAlignment !== 0 || part % requestAlignment !== 0) return SLOW;
  }
  out.bytes = part;
  return node.resolve(OP_READ, offset, part, out);
}
