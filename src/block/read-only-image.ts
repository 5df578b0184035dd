/**
 * What drivers of image formats that are only read have in common: a node whose image file holds
 * the guest's data in runs, told of by tables of which a bounded part is in memory.
 * Thread: iothread; everything async may suspend.
 */
import type { NodeDescription } from "../iothread/messages.ts";
import { EIO, EPERM, strerror } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import { nodeBytes } from "./description.ts";
import type { OpenContext, Permissions } from "./driver.ts";
import { ImageTables } from "./image-tables.ts";
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  OP_CACHE,
  OP_FLUSH,
  OP_READ,
  type Op,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "./node.ts";

/** In the image file, at out.offset. */
export const PLACED = 1;
/** Nothing is here. */
export const HOLE = 2;
/** Reads as zeroes, and the image says so. */
export const ZEROES = 3;
/** Only readPacked() can tell. */
export const PACKED = 4;
/** The table that tells is not in memory: tables.load() brings what was missed. */
export const UNLOADED = 5;
/** What the image says can't be. */
export const DAMAGED = 6;
export type PlaceKind = 1 | 2 | 3 | 4 | 5 | 6;

/** A run from the asked offset on; reused. */
export interface Place {
  offset: number;
  bytes: number;
}

/** Neighbours that are looked at for one run. */
const MERGES_MAX = 16 * 1024;

/** What open() found out about an image. */
export interface ImageFacts {
  readonly context: OpenContext;
  readonly tables: ImageTables;
  readonly driver: string;
  /** Of the disk. */
  readonly bytes: number;
  /** Missing: it has none. */
  readonly clusterBytes?: number;
  /** What runs hold may be holes of the file. */
  readonly isPreallocated?: boolean;
  readonly requestAlignment?: number;
  /** More members of ImageInfo and of BlockLimitsInfo. */
  readonly image?: Readonly<Record<string, unknown>>;
  readonly limits?: Readonly<Record<string, number>>;
}

export abstract class ReadOnlyImage implements BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  readonly bytes: number;
  readonly writable = false;
  protected readonly tables: ImageTables;
  #facts: ImageFacts;
  #context: OpenContext;
  #place: Place = { offset: 0, bytes: 0 };
  #next: Place = { offset: 0, bytes: 0 };
  #drained: (readonly BlockNode[])[] = [];
  #isDamageKnown = false;
  /** Of the file, and what they come to here. */
  #limitsOfFile: BlockLimits | null = null;
  #limits!: BlockLimits;

  constructor(facts: ImageFacts) {
    this.nodeName = facts.context.nodeName;
    this.driver = facts.driver;
    this.bytes = nodeBytes(facts.bytes);
    this.tables = facts.tables;
    this.#facts = facts;
    this.#context = facts.context;
  }

  /**
   * Where the range begins; out.bytes is at most `bytes`. Of the disk, in bounds. Synchronous,
   * allocates nothing. What it places need not be inside the file.
   */
  protected abstract locate(offset: number, bytes: number, out: Place): PlaceKind;

  /**
   * To native memory at `address`: the run at `offset` that locate() found PACKED, at `place`. 0 or
   * -errno.
   */
  protected async readPacked(
    _place: number,
    _offset: number,
    _bytes: number,
    _address: number,
  ): Promise<number> {
    return -EIO;
  }

  get #file(): BlockNode {
    return this.#context.children.file!;
  }

  get limits(): BlockLimits {
    const { requestAlignment = 1 } = this.#facts;
    const { limits } = this.#file;
    if (limits.requestAlignment >= requestAlignment) return limits;
    if (this.#limitsOfFile !== limits) {
      this.#limitsOfFile = limits;
      this.#limits = { ...limits, requestAlignment };
    }
    return this.#limits;
  }

  /** The run at the offset, with its neighbours. What lies outside of the file is DAMAGED. */
  #run(offset: number, bytes: number): PlaceKind {
    const out = this.#place;
    const inside = Math.min(bytes, this.bytes - offset);
    if (inside <= 0) {
      // Of the last block: it is larger than a sector.
      out.bytes = bytes;
      return ZEROES;
    }
    const kind = this.locate(offset, inside, out);
    if (kind < PACKED) this.#merge(kind, offset, inside);
    if (kind !== PLACED) return kind;
    const { bytes: fileBytes } = this.#file;
    if (out.offset + out.bytes <= fileBytes) return kind;
    // QSD differs: it reads zeroes there.
    if (!(out.offset < fileBytes)) return DAMAGED;
    out.bytes = fileBytes - out.offset;
    return kind;
  }

  #merge(kind: PlaceKind, offset: number, bytes: number): void {
    const out = this.#place;
    const next = this.#next;
    for (let merges = 0; out.bytes < bytes && merges < MERGES_MAX; merges++) {
      if (this.locate(offset + out.bytes, bytes - out.bytes, next) !== kind) return;
      if (kind === PLACED && next.offset !== out.offset + out.bytes) return;
      out.bytes += next.bytes;
    }
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.bytes = bytes;
    // Nobody wrote anything. Who tries nevertheless gets an error, the slow way.
    if (op === OP_FLUSH || op === OP_CACHE) return ZERO;
    if (op !== OP_READ) return SLOW;
    const kind = this.#run(offset, bytes);
    const place = this.#place;
    if (kind === HOLE || kind === ZEROES) {
      out.bytes = place.bytes;
      return ZERO;
    }
    if (kind !== PLACED) return SLOW;
    const { requestAlignment } = this.#file.limits;
    if (place.offset % requestAlignment !== 0 || place.bytes % requestAlignment !== 0) return SLOW;
    const result = this.#file.resolve(OP_READ, place.offset, place.bytes, out);
    // The file speaks of its own range.
    if (result === SLOW) out.bytes = bytes;
    return result;
  }

  async read(offset: number, bytes: number, address: number): Promise<number> {
    const { memory } = this.#context.reactor;
    const place = this.#place;
    for (let done = 0; done < bytes; ) {
      const kind = this.#run(offset + done, bytes - done);
      const part = place.bytes;
      let result = 0;
      if (kind === UNLOADED) {
        result = await this.tables.load();
        if (result === 0) continue;
      } else if (kind === PLACED) {
        result = await this.tables.readFile(place.offset, part, address + done);
      } else if (kind === PACKED) {
        result = await this.readPacked(place.offset, offset + done, part, address + done);
      } else if (kind === DAMAGED) {
        this.#reportDamage(offset + done);
        result = -EIO;
      } else {
        memory.zero(address + done, part);
      }
      if (result < 0) return result;
      done += part;
    }
    return 0;
  }

  /** Once: a guest may try for ever. */
  #reportDamage(offset: number): void {
    if (this.#isDamageKnown) return;
    this.#isDamageKnown = true;
    const what = `the image of node '${this.nodeName}' is damaged or truncated`;
    this.#context.log(`${this.driver}: ${what}: no data for offset ${offset}`);
  }

  async write(): Promise<number> {
    return -EPERM;
  }

  async writeZeroes(): Promise<number> {
    return -EPERM;
  }

  async discard(): Promise<number> {
    return -EPERM;
  }

  async flush(): Promise<number> {
    return 0;
  }

  blockStatus(offset: number, bytes: number, out: BlockStatus): number | Promise<number> {
    const kind = this.#run(offset, bytes);
    out.bytes = this.#place.bytes;
    out.depth = 1;
    switch (kind) {
      case UNLOADED:
        return this.#statusAfterLoad(offset, bytes, out);
      case HOLE:
        out.flags = STATUS_ZERO;
        out.depth = 0;
        return 0;
      case ZEROES:
        out.flags = STATUS_ZERO | STATUS_ALLOCATED;
        return 0;
      default:
        out.flags = STATUS_DATA | STATUS_ALLOCATED;
        return kind === PLACED && this.#facts.isPreallocated === true ? this.#fileStatus(out) : 0;
    }
  }

  async #statusAfterLoad(offset: number, bytes: number, out: BlockStatus): Promise<number> {
    const result = await this.tables.load();
    return result < 0 ? result : this.blockStatus(offset, bytes, out);
  }

  /** Of the run just found. */
  #fileStatus(out: BlockStatus): number | Promise<number> {
    const { offset, bytes } = this.#place;
    const result = this.#file.blockStatus(offset, bytes, out);
    const settle = (status: number): number => {
      const isZero = status === 0 && (out.flags & STATUS_ZERO) !== 0;
      if (status < 0) out.bytes = bytes;
      out.flags = STATUS_DATA | STATUS_ALLOCATED | (isZero ? STATUS_ZERO : 0);
      out.depth = 1;
      return 0;
    };
    return typeof result === "number" ? settle(result) : result.then(settle);
  }

  isKnownData(offset: number, bytes: number): boolean {
    if (this.#facts.isPreallocated === true) return false;
    const kind = this.#run(offset, bytes);
    return (kind === PLACED || kind === PACKED) && this.#place.bytes >= bytes;
  }

  onMappedError(op: Op, errno: number): number {
    return this.#file.onMappedError(op, errno);
  }

  async setPermissions(): Promise<void> {}

  drainBegin(): void {
    const children = Object.values(this.#context.children);
    this.#drained.push(children);
    for (const child of children) child.drainBegin?.();
  }

  drainEnd(): void {
    for (const child of this.#drained.pop() ?? []) child.drainEnd?.();
  }

  /** The image stays what it was when it was opened, whatever file it is in now. */
  async reopen(context: OpenContext): Promise<ReopenedNode> {
    checkReadOnly(context);
    const before = this.#context;
    const use = (now: OpenContext): void => {
      this.#context = now;
      this.tables.use(now.children.file!);
    };
    use(context);
    return { commit: () => {}, undo: () => use(before) };
  }

  async invalidate(): Promise<void> {
    this.tables.forget();
  }

  describe(): NodeDescription {
    const { clusterBytes, requestAlignment = 1, image, limits } = this.#facts;
    const { actualBytes } = this.#file.describe();
    return {
      ...(actualBytes === undefined ? {} : { actualBytes }),
      image: {
        "dirty-flag": false,
        ...(clusterBytes === undefined ? {} : { "cluster-size": clusterBytes }),
        ...image,
      },
      limits: { "request-alignment": requestAlignment, ...limits },
    };
  }

  async close(): Promise<void> {}
}

/** Nobody writes to the file of an image whose tables are in memory. */
export function readOnlyPermissions(_role: string, { used, shared }: Permissions): Permissions {
  return { used: used | PERM_CONSISTENT_READ, shared: shared & ~(PERM_WRITE | PERM_RESIZE) };
}

/** The file as bytes, for a driver that begins to open an image. Throws OutportError. */
export function openReadOnly(context: OpenContext): ImageTables {
  checkReadOnly(context);
  const file = context.children.file!;
  // It may have grown in other hands.
  file.refreshLength?.();
  return new ImageTables(context.reactor, file);
}

// QSD differs: it writes to these formats, too. Its words for those that it only reads.
function checkReadOnly({ readOnly, autoReadOnly }: OpenContext): void {
  if (!readOnly && !autoReadOnly) throw new OutportError("permission", "Image is read-only");
}

/** Where QSD says no more than an errno. `errno` may be negative. */
export function couldNotOpen(context: OpenContext, errno: number): OutportError {
  const { exactFilename } = context.children.file!.describe();
  const what = exactFilename === undefined ? "image" : `'${exactFilename}'`;
  return new OutportError("invalid", `Could not open ${what}: ${strerror(errno)}`);
}
