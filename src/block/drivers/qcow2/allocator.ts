/**
 * Finds free clusters of the image file and gives back those that nobody needs any more.
 * Thread: iothread; everything async may suspend.
 *
 * A cluster that was given up keeps its refcount until the image no longer refers to it on disk,
 * and until no request can still be on its way to it. So whatever is found free may be overwritten.
 * Spec: QEMU docs/interop/qcow2.rst "Host cluster management"
 */
import { ENTRY_BYTES, QCOW_MAX_REFTABLE_SIZE } from "../../../abi/qcow2.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { EFBIG, EINVAL, EIO } from "../../../runtime/errno.ts";
import { assert } from "../../../util/error.ts";
import { roundUp } from "../../child-io.ts";
import { RequestFence } from "../../request-fence.ts";
import { hex } from "./hex.ts";
import type { ImageFile } from "./image-file.ts";
import type { Layout } from "./layout.ts";
import { RefcountBlock, type Refcounts } from "./refcounts.ts";

/** What is appended to the file beyond need, so that not each allocation makes it longer. */
const GROWTH_BYTES = 64 * 1024 * 1024;
const GROWTH_BYTES_MIN = 1024 * 1024;

/** Clusters next to each other. */
export interface Allocation {
  readonly offset: number;
  readonly count: number;
  /** They read as zeroes. */
  readonly isZero: boolean;
}

/** Why clusters were given up; whether they are discarded follows from it. */
export type FreeReason = "request" | "snapshot" | "other" | "never";

interface Freed {
  readonly offset: number;
  count: number;
  readonly reason: FreeReason;
}

/** What was given up between two commits. */
export interface FreedBatch {
  readonly runs: readonly Freed[];
  /** Those who may still be on their way there. */
  readonly fence: RequestFence;
}

export interface AllocatorParts {
  readonly reactor: Reactor;
  readonly file: ImageFile;
  readonly layout: Layout;
  readonly refcounts: Refcounts;
  /** Checks and announces clusters that are about to be used. 0 or -errno. */
  readonly checkUse: (offset: number, bytes: number) => number;
  /** Metadata lies there. */
  readonly isMetadata: (offset: number) => boolean;
  /** A refcount block at this place, from now on. */
  readonly onBlock: (offset: number) => void;
  /** Writes a longer refcount table to a place that is free, and has the header point there. */
  readonly moveTable: (
    offset: number,
    clusters: number,
    blocks: readonly RefcountBlock[],
  ) => Promise<number>;
  /** See MetadataWriter.exclusive(). */
  readonly exclusive: (task: () => Promise<number>) => Promise<number>;
  readonly passesDiscard: (reason: FreeReason) => boolean;
  /** Of the guest's disk. */
  readonly diskBytes: () => number;
  /** Says what is wrong with the image. Returns -errno. */
  readonly corrupt: (message: string) => number;
  /** Something waits to be free. */
  readonly onFreed: () => void;
  /** The cluster at this place is no longer in use. */
  readonly onUnused: (offset: number) => void;
}

export class Allocator {
  #parts: AllocatorParts;
  #clusterBytes: number;
  /** All clusters below are in use. */
  #next = 0;
  /** What lies behind has never been written to: the file was made longer, no more. */
  #freshFrom: number;
  /** The end of what is in use, as far as that has changed. */
  #usedEnd: number;
  #freed: Freed[] = [];
  /** Those whose references are gone from the disk. */
  #settled: FreedBatch[] = [];
  #growth: Promise<number> = Promise.resolve(0);
  /** Of what takeFresh() took. */
  freshOffset = 0;
  #isLengthening = false;
  #giving: Promise<void> = Promise.resolve();

  constructor(parts: AllocatorParts) {
    this.#parts = parts;
    this.#clusterBytes = parts.layout.clusterBytes;
    const fileBytes = parts.file.node.bytes;
    this.#freshFrom = roundUp(fileBytes, this.#clusterBytes);
    this.#usedEnd = fileBytes;
  }

  /** Clusters that wait to be free. */
  get freedCount(): number {
    return this.#freed.reduce((sum, { count }) => sum + count, 0);
  }

  /** What lies behind is cut off in the end. */
  get usedEnd(): number {
    return this.#usedEnd;
  }

  get hasFreed(): boolean {
    return this.#freed.length + this.#settled.length > 0;
  }

  /** At most `count` clusters next to each other, at least one, or -errno. */
  async allocate(count: number): Promise<Allocation | number> {
    const { refcounts, layout } = this.#parts;
    this.release();
    for (;;) {
      const blockIndex = refcounts.blockIndexOf(this.#next);
      const block = refcounts.find(blockIndex);
      if (block === null) {
        const result = await this.#needBlock(blockIndex);
        if (result < 0) return result;
        continue;
      }
      const entries = layout.refcountBlockEntries;
      const first = this.#findFree(block, this.#next % entries);
      if (first === entries) {
        this.#next = (blockIndex + 1) * entries;
        continue;
      }
      let end = first + 1;
      while (end < entries && end - first < count && refcounts.get(block, end) === 0) end++;
      for (let entry = first; entry < end; entry++) refcounts.set(block, entry, 1);
      this.#next = blockIndex * entries + end;
      return this.#take(blockIndex * entries + first, end - first);
    }
  }

  /**
   * The same at once, of clusters that were never written to, in a file that is long enough:
   * returns how many, from freshOffset on; 0 when there are none.
   */
  takeFresh(count: number): number {
    const { refcounts, layout, file } = this.#parts;
    this.release();
    const blockIndex = refcounts.blockIndexOf(this.#next);
    const block = refcounts.find(blockIndex);
    const offset = this.#next * this.#clusterBytes;
    if (block === null || offset < this.#freshFrom) return 0;
    const entries = layout.refcountBlockEntries;
    const first = this.#next % entries;
    const fitting = Math.floor((file.node.bytes - offset) / this.#clusterBytes);
    const end = Math.min(first + Math.min(count, fitting), entries);
    let entry = first;
    while (entry < end && refcounts.get(block, entry) === 0) entry++;
    const taken = entry - first;
    if (taken <= 0 || this.#parts.checkUse(offset, taken * this.#clusterBytes) < 0) return 0;
    for (let i = first; i < entry; i++) refcounts.set(block, i, 1);
    this.#next += taken;
    this.freshOffset = offset;
    const used = offset + taken * this.#clusterBytes;
    this.#freshFrom = used;
    this.#usedEnd = Math.max(this.#usedEnd, used);
    if (file.node.bytes - used < this.#growthBytes() / 2) this.#lengthenSoon(used);
    return taken;
  }

  /** Before somebody has to wait for it. */
  #lengthenSoon(used: number): void {
    if (this.#isLengthening) return;
    this.#isLengthening = true;
    this.#parts.reactor.spawn(async () => {
      const { file } = this.#parts;
      await file.lengthen(Math.max(used, file.node.bytes + 1), this.#growthBytes());
      this.#isLengthening = false;
    });
  }

  /** Not much more than what the guest's disk could ever need. */
  #growthBytes(): number {
    return Math.max(Math.min(GROWTH_BYTES, this.#parts.diskBytes()), 2 * GROWTH_BYTES_MIN);
  }

  #findFree(block: RefcountBlock, from: number): number {
    const { refcounts, layout } = this.#parts;
    let entry = from;
    while (entry < layout.refcountBlockEntries && refcounts.get(block, entry) !== 0) entry++;
    return entry;
  }

  /** Exactly so many next to each other, for tables. */
  async allocateContiguous(count: number): Promise<Allocation | number> {
    let found = await this.allocate(count);
    while (typeof found !== "number" && found.count < count) {
      const more: Allocation | number = await this.allocate(count - found.count);
      if (typeof more === "number") {
        this.free(found.offset, found.count, "never");
        return more;
      }
      const { offset, count: had, isZero }: Allocation = found;
      if (offset + had * this.#clusterBytes === more.offset) {
        found = { offset, count: had + more.count, isZero: isZero && more.isZero };
      } else {
        this.free(offset, had, "never");
        found = more;
      }
    }
    return found;
  }

  /** The clusters are marked as used. */
  async #take(cluster: number, count: number): Promise<Allocation | number> {
    const offset = cluster * this.#clusterBytes;
    const end = offset + count * this.#clusterBytes;
    let result = this.#parts.checkUse(offset, end - offset);
    const isZero = offset >= this.#freshFrom;
    if (result === 0) result = await this.lengthen(end);
    if (result < 0) {
      // Nothing refers to them.
      await this.#decrement(offset, count);
      return result;
    }
    return { offset, count, isZero };
  }

  /** The file reaches up to `end`, where something is about to be written. 0 or -errno. */
  lengthen(end: number): Promise<number> {
    const { file } = this.#parts;
    this.#usedEnd = Math.max(this.#usedEnd, end);
    this.#freshFrom = Math.max(this.#freshFrom, roundUp(end, this.#clusterBytes));
    return file.lengthen(end, this.#growthBytes());
  }

  /** Loads or makes the refcount block. 0 or -errno. */
  async #needBlock(blockIndex: number): Promise<number> {
    const { refcounts } = this.#parts;
    if (refcounts.has(blockIndex)) {
      const block = await refcounts.load(blockIndex);
      if (block !== -EINVAL) return typeof block === "number" ? block : 0;
      const offset = refcounts.table[blockIndex]!;
      const what = offset % this.#clusterBytes === 0 ? "outside of the image" : "unaligned";
      const where = `${hex(offset)} ${what} (reftable index: ${hex(blockIndex)})`;
      return this.#parts.corrupt(`Refblock offset ${where}`);
    }
    if (blockIndex >= refcounts.table.length) {
      const { exclusive } = this.#parts;
      this.#growth = this.#growth.then(() => exclusive(() => this.#growTable(blockIndex)));
      return this.#growth;
    }
    // The block describes itself: it lies in the first of its clusters that is looked at.
    const cluster = this.#next;
    const offset = cluster * this.#clusterBytes;
    const result = this.#parts.checkUse(offset, this.#clusterBytes);
    if (result < 0) return result;
    // Without room for it, there must be none: it could never be written.
    const length = await this.lengthen(offset + this.#clusterBytes);
    if (length < 0 || refcounts.has(blockIndex)) return length;
    const block = refcounts.addBlock(blockIndex, offset);
    refcounts.set(block, cluster % this.#parts.layout.refcountBlockEntries, 1);
    this.#parts.onBlock(offset);
    return 0;
  }

  /**
   * A refcount table with room for `blockIndex`, behind all that the old one describes: first the
   * blocks that describe both, then the table. 0 or -errno.
   */
  async #growTable(blockIndex: number): Promise<number> {
    const { refcounts, layout } = this.#parts;
    const before = refcounts.table.length;
    if (blockIndex < before) return 0;
    const perCluster = this.#clusterBytes / ENTRY_BYTES;
    const clusters = Math.ceil(Math.ceil((blockIndex + 1) * 1.5) / perCluster);
    if (clusters * this.#clusterBytes > QCOW_MAX_REFTABLE_SIZE) return -EFBIG;
    const entries = layout.refcountBlockEntries;
    let blocks = 1;
    while (blocks * entries < blocks + clusters) blocks++;
    const first = before * entries;
    const offset = first * this.#clusterBytes;
    const end = offset + (blocks + clusters) * this.#clusterBytes;
    const result = this.#parts.checkUse(offset, end - offset);
    if (result < 0) return result;
    const length = await this.lengthen(end);
    if (length < 0) return length;
    const grown: RefcountBlock[] = [];
    for (let i = 0; i < blocks; i++) {
      const blockOffset = offset + i * this.#clusterBytes;
      const bytes = new Uint8Array(this.#clusterBytes);
      const block = new RefcountBlock(before + i, blockOffset, bytes);
      const described = Math.min(entries, blocks + clusters - i * entries);
      for (let entry = 0; entry < described; entry++) refcounts.fill(block, entry, 1);
      grown.push(block);
    }
    return this.#parts.moveTable(offset + blocks * this.#clusterBytes, clusters, grown);
  }

  /** Nothing in memory refers to these clusters any more. */
  free(offset: number, count: number, reason: FreeReason): void {
    assert(offset % this.#clusterBytes === 0, "whole clusters are given up");
    const last = this.#freed.at(-1);
    if (last?.reason === reason && last.offset + last.count * this.#clusterBytes === offset) {
      last.count += count;
    } else {
      this.#freed.push({ offset, count, reason });
    }
    this.#parts.onFreed();
  }

  /** What was freed so far: settle() it when the disk says so, too. */
  takeFreed(): FreedBatch | null {
    if (this.#freed.length === 0) return null;
    // Whoever found the clusters before they were freed is in flight still, if at all.
    const fence = new RequestFence(this.#parts.reactor.requests);
    const runs = this.#freed;
    this.#freed = [];
    return { runs, fence };
  }

  /** They could not be written. */
  putBack(batch: FreedBatch | null): void {
    if (batch !== null) this.#freed = [...batch.runs, ...this.#freed];
  }

  /** Nothing on the disk refers to them. */
  settle(batch: FreedBatch | null): void {
    if (batch !== null) this.#settled.push(batch);
    this.release();
  }

  /** Makes free what may be. */
  release(): void {
    let first = this.#settled[0];
    if (first === undefined || !first.fence.hasPassed()) return;
    for (; first?.fence.hasPassed() === true; first = this.#settled[0]) {
      const { runs } = first;
      this.#settled.shift();
      this.#giving = this.#giving.then(() => this.#giveAll(runs));
    }
    this.#parts.reactor.spawn(() => this.#giving);
  }

  /** The same, waiting for it; nothing is in flight. */
  async releaseAll(): Promise<void> {
    await this.#giving;
    const settled = this.#settled;
    this.#settled = [];
    for (const { runs } of settled) await this.#giveAll(runs);
  }

  async #giveAll(runs: readonly Freed[]): Promise<void> {
    for (const run of runs) await this.#give(run);
  }

  async #give({ offset, count, reason }: Freed): Promise<void> {
    const runs = await this.#decrement(offset, count, this.#parts.passesDiscard(reason));
    // Nobody may have them until they are discarded.
    for (const run of runs) await this.#parts.file.discard(run.offset, run.bytes);
    for (const run of runs) await this.#decrement(run.offset, run.bytes / this.#clusterBytes);
  }

  /** With `keepLast`: returns those that would have become free, and leaves them at one. */
  async #decrement(
    offset: number,
    count: number,
    keepLast = false,
  ): Promise<{ offset: number; bytes: number }[]> {
    const { refcounts, layout } = this.#parts;
    const runs: { offset: number; bytes: number }[] = [];
    for (let i = 0; i < count; i++) {
      const cluster = offset / this.#clusterBytes + i;
      const blockIndex = refcounts.blockIndexOf(cluster);
      const block =
        refcounts.find(blockIndex) ??
        (refcounts.has(blockIndex) ? await refcounts.load(blockIndex) : -EIO);
      // A leak is all that comes of it.
      if (typeof block === "number") continue;
      const entry = cluster % layout.refcountBlockEntries;
      const refcount = refcounts.get(block, entry);
      if (refcount === 0 || refcount === Infinity) continue;
      // What was given up as data by a damaged image.
      if (this.#parts.isMetadata(cluster * this.#clusterBytes)) continue;
      if (refcount === 1) this.#parts.onUnused(cluster * this.#clusterBytes);
      if (refcount === 1 && keepLast) {
        const last = runs.at(-1);
        const at = cluster * this.#clusterBytes;
        if (last !== undefined && last.offset + last.bytes === at) last.bytes += this.#clusterBytes;
        else runs.push({ offset: at, bytes: this.#clusterBytes });
        continue;
      }
      refcounts.set(block, entry, refcount - 1);
      if (refcount === 1) this.#next = Math.min(this.#next, cluster);
    }
    return runs;
  }

  /** One more reference to each cluster, for snapshots. 0 or -errno. */
  async increment(offset: number, count: number): Promise<number> {
    const { refcounts, layout } = this.#parts;
    for (let i = 0; i < count; i++) {
      const cluster = offset / this.#clusterBytes + i;
      const blockIndex = refcounts.blockIndexOf(cluster);
      if (!refcounts.has(blockIndex)) return -EIO;
      const block = await refcounts.load(blockIndex);
      if (typeof block === "number") return block;
      const entry = cluster % layout.refcountBlockEntries;
      const refcount = refcounts.get(block, entry);
      if (refcount >= layout.refcountMax) return -EINVAL;
      refcounts.set(block, entry, refcount + 1);
    }
    return 0;
  }

  /** Takes back what the file was made longer for nothing. Nothing is in flight. */
  async trimFile(): Promise<void> {
    const { file } = this.#parts;
    const end = roundUp(this.#usedEnd, 512);
    if (file.node.bytes > end) await file.truncate(end);
  }
}
