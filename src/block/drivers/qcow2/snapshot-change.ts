/**
 * Taking and deleting internal snapshots. All that changes is written to new places: the tables of
 * the active disk whose flags change, the refcount blocks and their table, the snapshot table. Then
 * one sector of the header leads to all of it: whenever the power fails, the image is either as it
 * was or as it is to be, but for leaks. Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Snapshots", "Host cluster management"
 */
import * as abi from "../../../abi/qcow2.ts";
import { QCOW_MAX_SNAPSHOTS, QCOW_MAX_SNAPSHOTS_SIZE } from "../../../abi/qcow2-snapshots.ts";
import { EFBIG, EINVAL } from "../../../runtime/errno.ts";
import { setU64, viewOf } from "./header.ts";
import type { Image } from "./image.ts";
import { swapWords } from "./l2-tables.ts";
import { hostOf } from "./mapping.ts";
import { flagged, SnapshotCounts } from "./snapshot-counts.ts";
import {
  areL1TablesFew,
  cutName,
  makeSnapshot,
  nextSnapshotId,
  type Snapshot,
  snapshotTable,
  snapshotTableBytes,
} from "./snapshots.ts";

/** Clusters next to each other. */
interface Run {
  readonly offset: number;
  readonly count: number;
}

/** New places for what changes. */
interface Places {
  /** By index in L1: of the tables that are written anew. */
  readonly tables: ReadonlyMap<number, number>;
  /** By index of the block. */
  readonly blocks: ReadonlyMap<number, number>;
  readonly l1: Run;
  readonly refcountTable: Run;
  readonly snapshotTable: Run | null;
}

/** Returns its id, or -errno: then nothing has changed. Nothing is in flight. */
export async function takeSnapshot(
  image: Image,
  name: string,
  timeUs: number,
): Promise<{ readonly id: string } | number> {
  const { header, snapshots, tables } = image;
  if (snapshots.length >= QCOW_MAX_SNAPSHOTS) return -EFBIG;
  const id = nextSnapshotId(snapshots);
  // It keeps the L1 table that there is; the disk gets another one.
  const snapshot = makeSnapshot({
    id,
    name: cutName(name),
    l1TableOffset: header.l1TableOffset,
    l1Size: header.l1Size,
    diskBytes: header.bytes,
    timeUs,
  });
  const list = [...snapshots, snapshot];
  if (!areL1TablesFew(list, header)) return -EFBIG;
  const counts = new SnapshotCounts(image);
  const settled = await image.writer.commitAll();
  if (settled < 0) return settled;
  const counted = await counts.addTree(tables.l1, 1);
  if (counted < 0) return counted;
  const change = new SnapshotChange(image, counts, list);
  const result = await change.run();
  return result < 0 ? result : { id };
}

/** 0 or -errno: then nothing has changed. Nothing is in flight. */
export async function deleteSnapshot(image: Image, snapshot: Snapshot): Promise<number> {
  const { file, header, layout, snapshots } = image;
  const { l1TableOffset, l1Size } = snapshot;
  if (l1TableOffset % layout.clusterBytes !== 0) return -EINVAL;
  const counts = new SnapshotCounts(image);
  const settled = await image.writer.commitAll();
  if (settled < 0) return settled;
  const bytes = await file.readBytes(l1TableOffset, l1Size * abi.ENTRY_BYTES);
  if (typeof bytes === "number") return bytes;
  let result = await counts.addTree(swapWords(new Uint32Array(bytes.buffer)), -1);
  const l1Clusters = Math.ceil((l1Size * abi.ENTRY_BYTES) / layout.clusterBytes);
  const l1s = [{ offset: l1TableOffset, count: l1Clusters }];
  // The disk gets another L1 table.
  l1s.push({ offset: header.l1TableOffset, count: l1ClustersOf(image) });
  for (const { offset, count } of l1s) {
    const all = count * layout.clusterBytes;
    if (result === 0 && all > 0) result = counts.add(offset, all, -1);
  }
  if (result < 0) return result;
  const left = snapshots.filter((one) => one !== snapshot);
  return new SnapshotChange(image, counts, left, l1s).run();
}

function l1ClustersOf({ header, layout }: Image): number {
  return Math.ceil((header.l1Size * abi.ENTRY_BYTES) / layout.clusterBytes);
}

class SnapshotChange {
  #image: Image;
  #counts: SnapshotCounts;
  #snapshots: readonly Snapshot[];
  /** The active L1 table as it will be. */
  #l1: Uint32Array;
  /** L1 tables that go. */
  #ended: readonly Run[];
  /** Allocated so far: given back when it fails. */
  #allocated: Run[] = [];

  constructor(
    image: Image,
    counts: SnapshotCounts,
    snapshots: readonly Snapshot[],
    ended: readonly Run[] = [],
  ) {
    this.#image = image;
    this.#ended = ended;
    this.#counts = counts;
    this.#snapshots = snapshots;
    this.#l1 = image.tables.l1.slice();
  }

  /** 0 or -errno: then nothing has changed. */
  async run(): Promise<number> {
    const { writer, allocator } = this.#image;
    const result = await this.#prepare();
    if (result < 0) {
      for (const { offset, count } of this.#allocated) allocator.free(offset, count, "other");
      return result;
    }
    // What was given up: nobody needs to wait for that to succeed.
    await writer.commitAll();
    return 0;
  }

  async #prepare(): Promise<number> {
    const { writer, layout } = this.#image;
    const copied = await this.#plan();
    if (typeof copied === "number") return copied;
    const checked = await this.#counts.check((kind, offset) => {
      if (kind === "active-l2") return true;
      return this.#ended.some((run) => {
        const end = run.offset + run.count * layout.clusterBytes;
        return offset >= run.offset && offset < end;
      });
    });
    if (checked < 0) return checked;
    const places = await this.#allocate(copied);
    if (typeof places === "number") return places;
    // They are counted on the disk before something there leads to them.
    const settled = await writer.commitAll();
    if (settled < 0) return settled;
    return writer.exclusive(() => this.#write(places));
  }

  /** Sets the flags in L1. Returns the indexes of tables that change, or -errno. */
  async #plan(): Promise<number[] | number> {
    const l1 = this.#l1;
    const { clusterBytes } = this.#image.layout;
    const copied: number[] = [];
    for (let i = 0; i < l1.length / 2; i++) {
      const offset = hostOf(l1[i * 2]!, l1[i * 2 + 1]!);
      if (offset === 0) continue;
      const words = await this.#counts.readTable(offset);
      if (typeof words === "number") return words;
      const changes = await this.#counts.flag(words);
      if (typeof changes === "number") return changes;
      if (changes) {
        copied.push(i);
        const result = this.#counts.add(offset, clusterBytes, -1);
        if (result < 0) return result;
      } else {
        const alone = await this.#counts.isAlone(offset);
        if (typeof alone === "number") return alone;
        l1[i * 2] = flagged(l1[i * 2]!, alone);
      }
    }
    return copied;
  }

  async #allocate(copied: readonly number[]): Promise<Places | number> {
    const { refcounts, layout } = this.#image;
    const indexes = [...this.#counts.changes].filter(([, block]) => block.some((one) => one !== 0));
    const tables = await this.#allocateEach(copied);
    if (typeof tables === "number") return tables;
    const blocks = await this.#allocateEach(indexes.map(([index]) => index));
    if (typeof blocks === "number") return blocks;
    const l1 = await this.#allocateRun(l1ClustersOf(this.#image));
    if (typeof l1 === "number") return l1;
    const bytes = snapshotTableBytes(this.#snapshots);
    if (bytes > QCOW_MAX_SNAPSHOTS_SIZE) return -EFBIG;
    const snapshotClusters = Math.ceil(bytes / layout.clusterBytes);
    const table = await this.#allocateRun(snapshotClusters);
    if (typeof table === "number") return table;
    for (;;) {
      const entries = refcounts.table.length;
      const clusters = (entries * abi.ENTRY_BYTES) / layout.clusterBytes;
      const refcountTable = await this.#allocateRun(clusters);
      if (typeof refcountTable === "number") return refcountTable;
      const snapshotTable = snapshotClusters === 0 ? null : table;
      // It may have grown to describe its own copy.
      if (refcounts.table.length === entries) {
        return { tables, blocks, l1, refcountTable, snapshotTable };
      }
      this.#allocated.pop();
      this.#image.allocator.free(refcountTable.offset, refcountTable.count, "other");
    }
  }

  async #allocateEach(keys: readonly number[]): Promise<Map<number, number> | number> {
    const places = new Map<number, number>();
    while (places.size < keys.length) {
      const run = await this.#image.allocator.allocate(keys.length - places.size);
      if (typeof run === "number") return run;
      this.#allocated.push(run);
      for (let i = 0; i < run.count; i++) {
        places.set(keys[places.size]!, run.offset + i * this.#image.layout.clusterBytes);
      }
    }
    return places;
  }

  async #allocateRun(count: number): Promise<Run | number> {
    if (count === 0) return { offset: 0, count: 0 };
    const run = await this.#image.allocator.allocateContiguous(count);
    if (typeof run !== "number") this.#allocated.push(run);
    return run;
  }

  /** While no entry changes. 0 or -errno. */
  async #write(places: Places): Promise<number> {
    const { file, refcounts } = this.#image;
    const freed: Run[] = [];
    let result = 0;
    for (const [index, place] of places.tables) {
      if (result === 0) result = await this.#writeTable(index, place);
    }
    const blocks = new Map<number, Uint8Array>();
    for (const [index, place] of places.blocks) {
      if (result === 0) result = await this.#writeBlock(index, place, blocks, freed);
    }
    if (result === 0) result = await this.#writeL1(places.l1.offset);
    if (result === 0 && places.snapshotTable !== null) {
      result = await file.writeBytes(places.snapshotTable.offset, this.#tableBytes());
    }
    if (result === 0) {
      const table = new Uint8Array(refcounts.table.length * abi.ENTRY_BYTES);
      for (const [index, offset] of refcounts.table.entries()) {
        const at = places.blocks.get(index) ?? offset;
        setU64(viewOf(table), index * abi.ENTRY_BYTES, at);
      }
      result = await file.writeBytes(places.refcountTable.offset, table);
    }
    if (result === 0) result = await file.flush();
    if (result === 0) result = await this.#switch(places);
    if (result === 0) this.#adopt(places, blocks, freed);
    return result;
  }

  #tableBytes(): Uint8Array {
    const { clusterBytes } = this.#image.layout;
    const table = snapshotTable(this.#snapshots);
    const padded = new Uint8Array(Math.ceil(table.length / clusterBytes) * clusterBytes);
    padded.set(table);
    return padded;
  }

  /** An L2 table with its new flags, and where L1 leads to it. */
  async #writeTable(index: number, place: number): Promise<number> {
    const l1 = this.#l1;
    const words = await this.#counts.readTable(hostOf(l1[index * 2]!, l1[index * 2 + 1]!));
    if (typeof words === "number") return words;
    const changes = await this.#counts.flag(words);
    if (typeof changes === "number") return changes;
    l1[index * 2] = flagged(Math.floor(place / 0x1_0000_0000), true);
    l1[index * 2 + 1] = place % 0x1_0000_0000;
    return this.#image.file.writeBytes(place, new Uint8Array(swapWords(words).buffer));
  }

  async #writeL1(offset: number): Promise<number> {
    const { layout, file } = this.#image;
    const words = new Uint32Array((l1ClustersOf(this.#image) * layout.clusterBytes) / 4);
    words.set(this.#l1);
    if (words.length === 0) return 0;
    return file.writeBytes(offset, new Uint8Array(swapWords(words).buffer));
  }

  /** What becomes unused keeps its count, and is given up in the end. */
  async #writeBlock(
    index: number,
    place: number,
    blocks: Map<number, Uint8Array>,
    freed: Run[],
  ): Promise<number> {
    const { refcounts, layout, file } = this.#image;
    const before = await refcounts.load(index);
    if (typeof before === "number") return before;
    const block = refcounts.copyOf(before);
    const changes = this.#counts.changes.get(index)!;
    for (let entry = 0; entry < changes.length; entry++) {
      const change = changes[entry]!;
      if (change === 0) continue;
      const count = refcounts.get(before, entry) + change;
      if (count === 0) {
        const cluster = index * layout.refcountBlockEntries + entry;
        freed.push({ offset: cluster * layout.clusterBytes, count: 1 });
      }
      refcounts.fill(block, entry, Math.max(count, 1));
    }
    blocks.set(index, block.bytes);
    return file.writeBytes(place, block.bytes);
  }

  /** One write makes all of it true. 0 or -errno. */
  #switch(places: Places): Promise<number> {
    const { header } = this.#image;
    const fields = (l1: number, table: number, clusters: number, count: number, at: number) => {
      const bytes = new Uint8Array(abi.HEADER_SNAPSHOTS_OFFSET + 8 - abi.HEADER_L1_SIZE);
      const view = viewOf(bytes);
      const from = abi.HEADER_L1_SIZE;
      view.setUint32(0, header.l1Size);
      setU64(view, abi.HEADER_L1_TABLE_OFFSET - from, l1);
      setU64(view, abi.HEADER_REFCOUNT_TABLE_OFFSET - from, table);
      view.setUint32(abi.HEADER_REFCOUNT_TABLE_CLUSTERS - from, clusters);
      view.setUint32(abi.HEADER_NB_SNAPSHOTS - from, count);
      setU64(view, abi.HEADER_SNAPSHOTS_OFFSET - from, at);
      return bytes;
    };
    const before = fields(
      header.l1TableOffset,
      header.refcountTableOffset,
      header.refcountTableClusters,
      header.snapshotCount,
      header.snapshotsOffset,
    );
    const after = fields(
      places.l1.count === 0 ? header.l1TableOffset : places.l1.offset,
      places.refcountTable.offset,
      places.refcountTable.count,
      this.#snapshots.length,
      places.snapshotTable?.offset ?? 0,
    );
    return this.#image.replaceTable(abi.HEADER_L1_SIZE, before, after);
  }

  /** The disk has it: so has the memory, and what is no longer needed is given up. */
  #adopt(places: Places, blocks: ReadonlyMap<number, Uint8Array>, freed: readonly Run[]): void {
    const image = this.#image;
    const { header, layout, allocator, metadata, refcounts, tables } = image;
    const { clusterBytes } = layout;
    const drop = ({ offset, count }: Run, reason: "snapshot" | "other"): void => {
      if (count === 0) return;
      metadata.remove(offset, count * clusterBytes);
      allocator.free(offset, count, reason);
    };
    const snapshotClusters = Math.ceil(snapshotTableBytes(image.snapshots) / clusterBytes);
    const isTaken = this.#snapshots.length > image.snapshots.length;
    drop({ offset: header.refcountTableOffset, count: header.refcountTableClusters }, "other");
    drop({ offset: header.snapshotsOffset, count: snapshotClusters }, "other");
    for (const index of places.blocks.keys()) {
      drop({ offset: refcounts.table[index]!, count: 1 }, "other");
    }
    for (const index of places.tables.keys()) {
      metadata.remove(tables.tableOffset(index), clusterBytes);
    }
    for (const run of freed) drop(run, "snapshot");
    if (isTaken && places.l1.count > 0) {
      metadata.remove(header.l1TableOffset, places.l1.count * clusterBytes);
      metadata.add("inactive-l1", header.l1TableOffset, places.l1.count * clusterBytes);
    }
    if (places.l1.count > 0) header.l1TableOffset = places.l1.offset;
    header.refcountTableOffset = places.refcountTable.offset;
    header.refcountTableClusters = places.refcountTable.count;
    header.snapshotCount = this.#snapshots.length;
    header.snapshotsOffset = places.snapshotTable?.offset ?? 0;
    image.snapshots = this.#snapshots;
    for (const [index, bytes] of blocks) {
      refcounts.replaceBlock(index, places.blocks.get(index)!, bytes);
      metadata.add("refcount-block", places.blocks.get(index)!, clusterBytes);
    }
    tables.replaceL1(this.#l1);
    for (const place of places.tables.values()) metadata.add("active-l2", place, clusterBytes);
    const l1Bytes = header.l1Size * abi.ENTRY_BYTES;
    metadata.add("active-l1", header.l1TableOffset, places.l1.count === 0 ? 0 : l1Bytes);
    const tableBytes = header.refcountTableClusters * clusterBytes;
    metadata.add("refcount-table", header.refcountTableOffset, tableBytes);
    const snapshotBytes = snapshotTableBytes(this.#snapshots);
    if (snapshotBytes > 0) metadata.add("snapshot-table", header.snapshotsOffset, snapshotBytes);
  }
}
