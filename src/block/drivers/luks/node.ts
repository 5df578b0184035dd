/**
 * A LUKS volume as a node: what lies behind its header, decrypted. Thread: iothread.
 * Spec: QEMU block/crypto.c
 */
import { LUKS_HEADER_BYTES } from "../../../abi/luks.ts";
import { type LuksHeader, parseLuksHeader } from "../../../crypto/luks-header.ts";
import { luksInfo } from "../../../crypto/luks-info.ts";
import type { ReadVolume } from "../../../crypto/luks-lock.ts";
import { SECTOR_BYTES, XtsCipher } from "../../../crypto/xts.ts";
import type { NodeDescription } from "../../../iothread/messages.ts";
import { EIO, ENOTSUP, strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import type { OpenContext, Permissions } from "../../driver.ts";
import { EncryptedData } from "../../encrypted-data.ts";
import { FilterNode } from "../../filter-node.ts";
import { ImageTables } from "../../image-tables.ts";
import {
  type BlockLimits,
  type BlockStatus,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_WRITE,
  type Op,
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  ZERO,
} from "../../node.ts";
import { truncateNode } from "../../truncate.ts";

export class LuksNode extends FilterNode {
  #header: LuksHeader;
  #key: Uint8Array;
  #data: EncryptedData;
  /** Its own, made of those of the child. */
  #limits: BlockLimits;
  #childLimits: BlockLimits;

  /** `key`: taken over. Throws OutportError. */
  constructor(context: OpenContext, header: LuksHeader, key: Uint8Array) {
    super("luks", context);
    this.#header = header;
    this.#key = key;
    this.#data = new EncryptedData(
      context.reactor,
      new XtsCipher(key),
      {
        read: (...range) => this.io.read(...range),
        write: (offset, bytes, address) => this.io.write(offset, bytes, address, 0),
      },
      header.payloadOffset,
    );
    this.#childLimits = this.child.limits;
    this.#limits = limitsOver(this.#childLimits);
    this.refreshLength();
  }

  override get bytes(): number {
    return Math.max(0, this.child.bytes - this.#header.payloadOffset);
  }

  override get limits(): BlockLimits {
    const { limits } = this.child;
    if (limits !== this.#childLimits) {
      this.#childLimits = limits;
      this.#limits = limitsOver(limits);
    }
    return this.#limits;
  }

  override resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    if (op === OP_FLUSH) return this.child.resolve(op, 0, 0, out);
    // What is encrypted has no holes.
    if (op === OP_DISCARD || op === OP_CACHE) return ZERO;
    if (op === OP_WRITE) this.noteWrite(offset + bytes);
    out.bytes = bytes;
    return SLOW;
  }

  override read(offset: number, bytes: number, address: number): Promise<number> {
    return this.#data.read(offset, bytes, address);
  }

  protected override writeData(offset: number, bytes: number, address: number): Promise<number> {
    return this.#data.write(offset, bytes, address);
  }

  override async writeZeroes(): Promise<number> {
    return -ENOTSUP;
  }

  override async discard(): Promise<number> {
    return 0;
  }

  override async copyUp(): Promise<number> {
    return 0;
  }

  override blockStatus(_offset: number, bytes: number, out: BlockStatus): number {
    out.flags = STATUS_DATA | STATUS_ALLOCATED;
    out.bytes = bytes;
    out.depth = 1;
    return 0;
  }

  override isKnownData(): boolean {
    return true;
  }

  override truncate(bytes: number): Promise<void> {
    return truncateNode(this.child, this.#header.payloadOffset + bytes);
  }

  override async reopen(context: OpenContext, permissions: Permissions): Promise<ReopenedNode> {
    const reopened = await super.reopen(context, permissions);
    try {
      this.refreshLength();
    } catch (error) {
      await reopened.undo();
      throw error;
    }
    return reopened;
  }

  refreshLength(): void {
    const { child } = this;
    const { payloadOffset } = this.#header;
    if (child.bytes < payloadOffset) {
      const why = strerror(EIO);
      throw new OutportError("io", `Could not refresh total sector count: ${why}`);
    }
    const { requestAlignment } = child.limits;
    if (payloadOffset % requestAlignment === 0) return;
    // QSD differs: it pays with a read-modify-write for every write.
    const what = `a multiple of the request alignment (${requestAlignment})`;
    throw new OutportError("unsupported", `Payload offset (${payloadOffset}) is not ${what}`);
  }

  /** Who has the key may have it on another thread, too. */
  handOver(): unknown {
    return { key: this.#key };
  }

  override describe(): NodeDescription {
    return {
      ...super.describe(),
      image: {
        encrypted: true,
        "format-specific": { type: "luks", data: luksInfo(this.#header) },
      },
      limits: { "request-alignment": this.limits.requestAlignment },
    };
  }

  override async close(): Promise<void> {
    this.#key.fill(0);
  }
}

function limitsOver(limits: BlockLimits): BlockLimits {
  const requestAlignment = Math.max(limits.requestAlignment, SECTOR_BYTES);
  return { ...limits, requestAlignment, discardAlignment: 1 };
}

/** Of the volume's header, which may lie in a child of its own. */
export function headerReader({ reactor, children }: OpenContext): ReadVolume {
  const tables = new ImageTables(reactor, (children.header ?? children.file)!);
  return async (offset, bytes) => {
    const view = await tables.header(offset, bytes, "Could not read encryption header");
    return new Uint8Array(view.buffer);
  };
}

/** Throws OutportError. */
export async function openLuks(context: OpenContext): Promise<LuksNode> {
  const isDetached = context.children.header !== undefined;
  const bytes = await headerReader(context)(0, LUKS_HEADER_BYTES);
  const header = parseLuksHeader(bytes, isDetached);
  const given = context.key ?? (context.handedOver as { key?: Uint8Array } | undefined)?.key;
  if (given === undefined) {
    throw new OutportError("invalid", "Parameter 'key-secret' is required for cipher");
  }
  const key = given.slice();
  given.fill(0);
  return new LuksNode(context, header, key);
}
