/**
 * An open qcow2 image: its header, its tables as far as they are in memory, and what reads, writes
 * and allocates. The parts of the driver meet here. Thread: iothread; everything async may suspend.
 */
import * as abi from "../../../abi/qcow2.ts";
import type { Reactor } from "../../../io/reactor.ts";
import type { Timer } from "../../../io/timers.ts";
import { EIO } from "../../../runtime/errno.ts";
import type { OpenContext } from "../../driver.ts";
import type { BlockNode } from "../../node.ts";
import { Places } from "../../places.ts";
import { Allocator } from "./allocator.ts";
import { ClusterCodec } from "./compressed-codec.ts";
import { CompressedSpace } from "./compressed-space.ts";
import { DeflatePlaces } from "./deflate-places.ts";
import { type Encryption, encryptionPlace, type GuestData } from "./encryption.ts";
import { GuestLocks } from "./guest-locks.ts";
import { type HeaderExtras, type Qcow2Header, setU64, viewOf } from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import { InflatedClusters } from "./inflated-clusters.ts";
import { L2Loader } from "./l2-loader.ts";
import type { L2Tables } from "./l2-tables.ts";
import type { Layout } from "./layout.ts";
import { ClusterMap } from "./mapping.ts";
import { METADATA_NAMES, MetadataMap } from "./metadata-map.ts";
import { MetadataWriter } from "./metadata-writer.ts";
import type { Qcow2Settings } from "./options.ts";
import type { RefcountBlock, Refcounts } from "./refcounts.ts";
import { type Snapshot, snapshotTableBytes } from "./snapshots.ts";
import { StoredBitmaps } from "./stored-bitmaps.ts";

/** What is given up is free again so long afterwards, at the latest. */
const TIDY_DELAY_NS = 1_000_000_000;
/** Of at most 256 KiB each. */
const PART_PLACES = 8;
const COPY_PLACES = 16;

export interface ImageParts {
  readonly context: OpenContext;
  readonly file: ImageFile;
  /** Null: the image file. */
  readonly dataFile: ImageFile | null;
  /** Null: what is not allocated reads as zeroes. */
  readonly backing: ImageFile | null;
  readonly header: Qcow2Header;
  readonly extras: HeaderExtras;
  readonly encryption: Encryption | null;
  readonly layout: Layout;
  readonly settings: Qcow2Settings;
  readonly tables: L2Tables;
  readonly refcounts: Refcounts;
  readonly snapshots: readonly Snapshot[];
}

export class Image {
  context: OpenContext;
  readonly reactor: Reactor;
  readonly file: ImageFile;
  readonly dataFile: ImageFile | null;
  backing: ImageFile | null;
  readonly header: Qcow2Header;
  extras: HeaderExtras;
  /** Null: guest data lies there as it is. */
  readonly encryption: Encryption | null;
  /** Where guest data lies. */
  readonly data: GuestData;
  readonly layout: Layout;
  settings: Qcow2Settings;
  readonly tables: L2Tables;
  readonly map: ClusterMap;
  readonly refcounts: Refcounts;
  readonly metadata: MetadataMap;
  readonly allocator: Allocator;
  readonly writer: MetadataWriter;
  readonly loader: L2Loader;
  readonly codec: ClusterCodec;
  /** Compressed clusters as they are read. */
  readonly inflated: InflatedClusters;
  readonly deflatePlaces: DeflatePlaces;
  readonly compressedSpace: CompressedSpace;
  readonly locks: GuestLocks;
  /** For who writes zeroes, or what comes from below; taken before clusters are locked. */
  readonly partPlaces: Places;
  /** For who copies what a write does not cover; taken by who has locked them. */
  readonly copyPlaces: Places;
  snapshots: readonly Snapshot[];
  readonly bitmaps: StoredBitmaps = new StoredBitmaps(this);
  /** Found to be corrupt while it could be written: nothing is done with it any more. */
  isBroken = false;
  /** Clusters are allocated that nothing was written to; null: nobody has asked yet. */
  isPreallocated: boolean | null = null;
  #hasSignaled = false;
  #isTidying = false;
  #cleaning: Timer | null = null;
  /** Writing the mark that says so. */
  #marking: Promise<void> = Promise.resolve();
  #isClosed = false;
  /** Clusters that are given up become others'. */
  #isMover: boolean;

  constructor(parts: ImageParts) {
    const { context, file, layout, header, tables, refcounts, dataFile, settings } = parts;
    this.context = context;
    this.reactor = context.reactor;
    this.file = file;
    this.dataFile = dataFile;
    this.backing = parts.backing;
    this.header = header;
    this.extras = parts.extras;
    this.encryption = parts.encryption;
    this.data = parts.encryption?.data ?? dataFile ?? file;
    this.layout = layout;
    this.settings = settings;
    this.tables = tables;
    this.refcounts = refcounts;
    this.snapshots = parts.snapshots;
    this.map = new ClusterMap(tables);
    this.metadata = new MetadataMap(layout.clusterBytes, settings.overlapChecks);
    this.locks = new GuestLocks(context.reactor);
    this.partPlaces = new Places(context.reactor, PART_PLACES);
    this.copyPlaces = new Places(context.reactor, COPY_PLACES);
    this.allocator = new Allocator({
      reactor: context.reactor,
      file,
      layout,
      refcounts,
      checkUse: (offset, bytes) => this.checkUse(offset, bytes),
      isMetadata: (offset) => this.metadata.has(offset),
      onBlock: (offset) => this.metadata.add("refcount-block", offset, layout.clusterBytes),
      moveTable: (...table) => this.#moveRefcountTable(...table),
      exclusive: (task) => this.writer.exclusive(task),
      passesDiscard: (reason) => {
        if (reason === "request") return this.settings.passDiscardRequest;
        if (reason === "snapshot") return this.settings.passDiscardSnapshot;
        return reason === "other" && this.settings.passDiscardOther;
      },
      diskBytes: () => this.header.bytes,
      corrupt: (message) => this.corrupt(message),
      onFreed: () => this.#tidySoon(),
      onUnused: (offset) => this.compressedSpace.onUnused(offset),
    });
    this.writer = new MetadataWriter({
      reactor: context.reactor,
      file,
      dataFile,
      tables,
      refcounts,
      allocator: this.allocator,
      offsets: header,
      isLazy: () => this.settings.lazyRefcounts,
      markDirty: () => this.setIncompatible(abi.QCOW2_INCOMPAT_DIRTY, true),
    });
    this.loader = new L2Loader(this);
    const { clusterBytes } = layout;
    this.codec = new ClusterCodec(this.reactor, clusterBytes, header.compressionType);
    const { codec, reactor } = this;
    this.inflated = new InflatedClusters({ reactor, file, clusterBytes, codec });
    this.deflatePlaces = new DeflatePlaces(reactor, clusterBytes);
    this.compressedSpace = new CompressedSpace(this.allocator, refcounts);
    this.#mapMetadata();
    this.#cleanLater();
    this.#isMover = !context.readOnly && context.active !== false;
    if (this.#isMover) this.reactor.requests.moverCount++;
  }

  get backingNode(): BlockNode | null {
    return this.backing?.node ?? null;
  }

  /** It may be changed now. */
  get isWritable(): boolean {
    const { readOnly, active } = this.context;
    return !readOnly && active !== false && !this.isBroken;
  }

  #mapMetadata(): void {
    const { metadata, header, layout, tables, refcounts, file } = this;
    const { clusterBytes } = layout;
    const isInside = (offset: number): boolean =>
      offset > 0 && offset < file.node.bytes && offset % clusterBytes === 0;
    metadata.add("main-header", 0, clusterBytes);
    metadata.add("active-l1", header.l1TableOffset, header.l1Size * abi.ENTRY_BYTES);
    const tableBytes = header.refcountTableClusters * clusterBytes;
    metadata.add("refcount-table", header.refcountTableOffset, tableBytes);
    for (const offset of refcounts.table) {
      if (isInside(offset)) metadata.add("refcount-block", offset, clusterBytes);
    }
    for (let i = 0; i < header.l1Size; i++) {
      const offset = tables.tableOffset(i);
      if (isInside(offset)) metadata.add("active-l2", offset, clusterBytes);
    }
    for (const { l1TableOffset, l1Size } of this.snapshots) {
      metadata.add("inactive-l1", l1TableOffset, l1Size * abi.ENTRY_BYTES);
    }
    const snapshotBytes = snapshotTableBytes(this.snapshots);
    metadata.add("snapshot-table", header.snapshotsOffset, snapshotBytes);
    const place = encryptionPlace(header, this.extras);
    if (place !== null) metadata.add("encryption-header", place.offset, place.bytes);
  }

  /** Metadata is about to change. 0 or -errno. */
  checkDispute(): number {
    const { dispute } = this.metadata;
    if (dispute === null) return 0;
    const { kind, offset } = dispute;
    const what = `Preventing invalid write on metadata (overlaps with ${METADATA_NAMES[kind]})`;
    return this.corrupt(what, { offset, bytes: this.layout.clusterBytes });
  }

  /** Clusters that are about to be allocated. 0 or -errno. */
  checkUse(offset: number, bytes: number): number {
    const dispute = this.checkDispute();
    if (dispute < 0) return dispute;
    const overlap = this.checkOverlap(offset, bytes);
    if (overlap < 0 || offset > 0) return overlap;
    return this.corrupt("Preventing invalid allocation of data cluster at offset 0");
  }

  /** A write to the image file that is no metadata's own. 0 or -errno. */
  checkOverlap(offset: number, bytes: number): number {
    const overlap = this.metadata.overlapOf(offset, bytes);
    if (overlap === null) return 0;
    const what = `(overlaps with ${METADATA_NAMES[overlap]})`;
    return this.corrupt(`Preventing invalid write on metadata ${what}`, { offset, bytes });
  }

  /**
   * The image is not what it should be. Nothing more is written to it, but the mark that says so.
   * Returns the errno.
   */
  corrupt(message: string, where?: { readonly offset: number; readonly bytes: number }): number {
    const { context, header } = this;
    const fatal = this.isWritable;
    if (this.isBroken || (this.#hasSignaled && !fatal)) return -EIO;
    this.#hasSignaled = true;
    const suppressed = fatal ? "further corruption events" : "further non-fatal corruption events";
    const what = fatal ? "Marking image as corrupt" : "Image is corrupt";
    context.log(`qcow2: ${what}: ${message}; ${suppressed} will be suppressed`);
    context.report?.({
      event: "image-corrupted",
      nodeName: context.nodeName,
      message,
      fatal,
      ...(where === undefined ? {} : { offset: where.offset, bytes: where.bytes }),
    });
    if (!fatal) return -EIO;
    this.isBroken = true;
    if (header.version >= 3) {
      const mark = async (): Promise<void> => {
        const result = await this.setIncompatible(abi.QCOW2_INCOMPAT_CORRUPT, true);
        if (result < 0) context.log(`qcow2: Could not mark '${context.nodeName}' as corrupt`);
      };
      this.#marking = mark();
      this.reactor.spawn(() => this.#marking);
    }
    return -EIO;
  }

  /** Sets or clears a bit on the disk and flushes. 0 or -errno. */
  async setIncompatible(bit: number, isSet: boolean): Promise<number> {
    const { hi, lo } = this.header.incompatible;
    const next = (isSet ? lo | bit : lo & ~bit) >>> 0;
    if (next === lo) return 0;
    const result = await this.writeField(abi.HEADER_INCOMPATIBLE_FEATURES, hi, next);
    if (result === 0) this.header.incompatible = { hi, lo: next };
    return result;
  }

  /** A u64 of the header, on the disk when it returns. 0 or -errno. */
  async writeField(at: number, hi: number, lo: number): Promise<number> {
    const bytes = new Uint8Array(8);
    viewOf(bytes).setUint32(0, hi);
    viewOf(bytes).setUint32(4, lo);
    const result = await this.file.writeBytes(at, bytes);
    return result < 0 ? result : this.file.flush();
  }

  /** What nobody has looked at for the interval makes room. */
  #cleanLater(): void {
    const seconds = this.settings.cacheCleanSeconds;
    if (seconds === 0) return;
    const { reactor } = this;
    this.#cleaning = reactor.timers.set(reactor.nowNs() + seconds * 1e9, () => {
      this.tables.clean();
      this.#cleanLater();
    });
  }

  /** What was given up becomes free before long, also when nobody flushes. */
  #tidySoon(): void {
    if (this.#isTidying) return;
    this.#isTidying = true;
    const { reactor } = this;
    reactor.timers.set(reactor.nowNs() + TIDY_DELAY_NS, () => {
      reactor.spawn(async () => {
        if (!this.#isClosed && this.isWritable) await this.writer.commit();
        this.#isTidying = false;
        const { allocator, refcounts } = this;
        if (!this.#isClosed && (allocator.hasFreed || refcounts.dirty.size > 0)) this.#tidySoon();
      });
    });
  }

  /** Nothing is in flight; nothing is to begin. */
  async close(): Promise<number> {
    this.abandon();
    await this.inflated.close();
    await this.#marking;
    const result = await this.settle();
    this.encryption?.key.fill(0);
    return result;
  }

  /** Another one took over; all of it is on the disk. */
  abandon(): void {
    if (this.#isMover && !this.#isClosed) this.reactor.requests.moverCount--;
    this.#isClosed = true;
    if (this.#cleaning !== null) this.reactor.timers.clear(this.#cleaning);
    this.deflatePlaces.close();
    this.reactor.spawn(() => this.inflated.close());
  }

  /** All that is changed, on the disk; the image is marked clean. Nothing is in flight. */
  async settle(): Promise<number> {
    if (!this.isWritable) return 0;
    const result = await this.writer.commitAll();
    if (result < 0) return result;
    await this.allocator.trimFile();
    return this.setIncompatible(abi.QCOW2_INCOMPAT_DIRTY, false);
  }

  /**
   * Has the header name another table, on the disk when it returns. 0 or -errno: it names the one
   * of `before` then, or nothing is written any more.
   */
  async replaceTable(at: number, before: Uint8Array, after: Uint8Array): Promise<number> {
    const { file, context } = this;
    let result = await file.writeBytes(at, after);
    if (result === 0) result = await file.flush();
    if (result === 0) return 0;
    // It may be there nevertheless.
    if ((await file.writeBytes(at, before)) < 0) {
      this.isBroken = true;
      context.log(`qcow2: The header of node '${context.nodeName}' could not be written`);
    }
    return result;
  }

  /** First the blocks, then the table that points to them, then the header that points to it. */
  async #moveRefcountTable(
    offset: number,
    clusters: number,
    blocks: readonly RefcountBlock[],
  ): Promise<number> {
    const { refcounts, header, layout, file, metadata } = this;
    for (const block of blocks) {
      const result = await file.writeBytes(block.offset, block.bytes);
      if (result < 0) return result;
    }
    const table = new Uint8Array(clusters * layout.clusterBytes);
    const view = viewOf(table);
    for (const [i, at] of refcounts.table.entries()) setU64(view, i * abi.ENTRY_BYTES, at);
    // Blocks that are not on the disk yet: their entries follow them.
    for (const { index } of refcounts.fresh) setU64(view, index * abi.ENTRY_BYTES, 0);
    for (const block of blocks) setU64(view, block.index * abi.ENTRY_BYTES, block.offset);
    let result = await file.writeBytes(offset, table);
    if (result === 0) result = await file.flush();
    if (result < 0) return result;
    const before = { offset: header.refcountTableOffset, clusters: header.refcountTableClusters };
    const fieldOf = (place: { offset: number; clusters: number }): Uint8Array => {
      const bytes = new Uint8Array(12);
      setU64(viewOf(bytes), 0, place.offset);
      viewOf(bytes).setUint32(8, place.clusters);
      return bytes;
    };
    const at = abi.HEADER_REFCOUNT_TABLE_OFFSET;
    result = await this.replaceTable(at, fieldOf(before), fieldOf({ offset, clusters }));
    if (result < 0) return result;
    header.refcountTableOffset = offset;
    header.refcountTableClusters = clusters;
    refcounts.growTable(table.length / abi.ENTRY_BYTES, blocks);
    for (const block of blocks) metadata.add("refcount-block", block.offset, layout.clusterBytes);
    metadata.remove(before.offset, before.clusters * layout.clusterBytes);
    metadata.add("refcount-table", offset, clusters * layout.clusterBytes);
    this.allocator.free(before.offset, before.clusters, "other");
    return 0;
  }
}
