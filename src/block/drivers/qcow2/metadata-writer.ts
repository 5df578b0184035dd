/**
 * Writes changed metadata in an order in which a crash at any moment leaves no worse than leaks:
 * what is pointed to is on the disk, counted, before what points to it; what was given up is
 * counted until nothing on the disk points to it. Thread: iothread; everything async may suspend.
 *
 * Changes to L1 and L2 entries are made between two commits: so none writes an entry whose target
 * came later, or calls one written that is not.
 */
import { ENTRY_BYTES } from "../../../abi/qcow2.ts";
import type { Reactor } from "../../../io/reactor.ts";
import type { Allocator } from "./allocator.ts";
import { setU64, viewOf } from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import { type L2Slice, type L2Tables, swapWords } from "./l2-tables.ts";
import type { RefcountBlock, Refcounts } from "./refcounts.ts";

/** What a disk writes as a whole. */
const SECTOR_BYTES = 512;

export interface MetadataWriterParts {
  readonly reactor: Reactor;
  readonly file: ImageFile;
  /** Null: the same file. */
  readonly dataFile: ImageFile | null;
  readonly tables: L2Tables;
  readonly refcounts: Refcounts;
  readonly allocator: Allocator;
  /** Where the tables lie now. */
  readonly offsets: { readonly l1TableOffset: number; readonly refcountTableOffset: number };
  /** Refcounts may be written late: the image says that they are wrong. */
  readonly isLazy: () => boolean;
  /** Says so, before that is so. 0 or -errno. */
  readonly markDirty: () => Promise<number>;
}

export class MetadataWriter {
  #parts: MetadataWriterParts;
  #running: Promise<number> | null = null;
  #next: Promise<number> | null = null;
  #onSettled: (() => void)[] = [];

  constructor(parts: MetadataWriterParts) {
    this.#parts = parts;
  }

  /** A flush of the file alone would lose something. */
  get isDirty(): boolean {
    const { tables, dataFile } = this.#parts;
    return (
      tables.dirty.size > 0 ||
      tables.dirtyL1.size > 0 ||
      this.#running !== null ||
      dataFile !== null
    );
  }

  get isCommitting(): boolean {
    return this.#running !== null;
  }

  /**
   * The commit that runs is over; the next one may have begun. Who wants to change entries waits
   * `while (writer.isCommitting) await writer.settled()`, and does it before suspending again.
   */
  settled(): Promise<void> {
    return new Promise((resolve) => this.#onSettled.push(resolve));
  }

  /** Makes all changes so far durable, and the data with them. 0 or -errno. */
  commit(): Promise<number> {
    if (this.#running === null) return this.#start(false);
    // What runs may have begun before the last change.
    this.#next ??= this.#running.then(() => {
      this.#next = null;
      // Somebody else may have been quicker.
      return this.commit();
    });
    return this.#next;
  }

  /** The same, with refcounts that may be late otherwise. Nothing is in flight. */
  async commitAll(): Promise<number> {
    const { allocator, refcounts, file } = this.#parts;
    for (;;) {
      while (this.isCommitting) await this.settled();
      const result = await this.#start(true);
      if (result < 0) return result;
      await allocator.releaseAll();
      if (refcounts.dirty.size === 0 && !allocator.hasFreed) break;
    }
    return file.flush();
  }

  /** Runs `task` while no commit runs and no entry changes: it moves a whole table. */
  async exclusive(task: () => Promise<number>): Promise<number> {
    while (this.isCommitting) await this.settled();
    return this.#occupy(task());
  }

  #start(withRefcounts: boolean): Promise<number> {
    return this.#occupy(this.#run(withRefcounts));
  }

  #occupy(task: Promise<number>): Promise<number> {
    const running = task.then((result) => {
      this.#running = null;
      this.#parts.reactor.asyncResumed();
      for (const resume of this.#onSettled.splice(0)) resume();
      return result;
    });
    this.#running = running;
    return running;
  }

  async #run(withRefcounts: boolean): Promise<number> {
    const { tables, file, allocator, isLazy, markDirty } = this.#parts;
    const hasEntries = tables.dirty.size > 0 || tables.dirtyL1.size > 0;
    const freed = allocator.takeFreed();
    let result = 0;
    if (withRefcounts || !isLazy()) result = await this.writeRefcounts();
    else if (hasEntries) result = await markDirty();
    // Before the entries: what they point to, and how often it is used.
    if (result === 0) result = await this.#flush();
    if (result === 0 && hasEntries) {
      result = await this.#writeEntries();
      if (result === 0) result = await file.flush();
    }
    if (result < 0) {
      allocator.putBack(freed);
      return result;
    }
    if (hasEntries) tables.markClean();
    allocator.settle(freed);
    return 0;
  }

  /** The data, and what has been written of the metadata. */
  async #flush(): Promise<number> {
    const { file, dataFile } = this.#parts;
    const result = dataFile === null ? 0 : await dataFile.flush();
    return result < 0 ? result : file.flush();
  }

  /** All that is counted more than on the disk: before something points there. */
  async writeRefcounts(): Promise<number> {
    const { refcounts, file } = this.#parts;
    const fresh = [...refcounts.fresh];
    for (const block of fresh) {
      const result = await this.#writeBlock(block);
      if (result < 0) return result;
    }
    // A table entry must not point to what is no block yet.
    if (fresh.length > 0) {
      const result = await file.flush();
      if (result < 0) return result;
    }
    for (const block of fresh) {
      const result = await this.#writeTableEntry(block);
      if (result < 0) return result;
      refcounts.fresh.delete(block);
    }
    for (const block of [...refcounts.dirty]) {
      if (refcounts.fresh.has(block)) continue;
      const result = await this.#writeBlock(block);
      if (result < 0) return result;
    }
    return 0;
  }

  async #writeBlock(block: RefcountBlock): Promise<number> {
    const { refcounts, file } = this.#parts;
    const from = block.dirtyFrom - (block.dirtyFrom % SECTOR_BYTES);
    const to = Math.ceil(block.dirtyTo / SECTOR_BYTES) * SECTOR_BYTES;
    if (!(from < to)) return 0;
    const bytes = block.bytes.slice(from, to);
    // Changes from here on are for the next time.
    refcounts.markClean(block);
    block.isBeingWritten = true;
    const result = await file.writeBytes(block.offset + from, bytes);
    block.isBeingWritten = false;
    if (result < 0) refcounts.markDirty(block, from, to);
    return result;
  }

  #writeTableEntry({ index, offset }: RefcountBlock): Promise<number> {
    const { file, offsets } = this.#parts;
    const bytes = new Uint8Array(ENTRY_BYTES);
    setU64(viewOf(bytes), 0, offset);
    return file.writeBytes(offsets.refcountTableOffset + index * ENTRY_BYTES, bytes);
  }

  async #writeEntries(): Promise<number> {
    const { tables } = this.#parts;
    for (const slice of tables.dirty) {
      const result = await this.#writeSlice(slice);
      if (result < 0) return result;
    }
    return this.#writeL1();
  }

  async #writeSlice(slice: L2Slice): Promise<number> {
    const { tables, file } = this.#parts;
    const words = SECTOR_BYTES / 4;
    const from = slice.dirtyFrom - (slice.dirtyFrom % words);
    const to = Math.ceil(slice.dirtyTo / words) * words;
    const bytes = new Uint8Array(swapWords(slice.words.slice(from, to)).buffer);
    return file.writeBytes(tables.offsetOf(slice) + from * 4, bytes);
  }

  async #writeL1(): Promise<number> {
    const { tables, file, offsets } = this.#parts;
    const perSector = SECTOR_BYTES / ENTRY_BYTES;
    const sectors = new Set([...tables.dirtyL1].map((index) => Math.floor(index / perSector)));
    for (const sector of sectors) {
      const words = tables.l1.slice(sector * perSector * 2, (sector + 1) * perSector * 2);
      const at = offsets.l1TableOffset + sector * SECTOR_BYTES;
      const bytes = new Uint8Array(swapWords(words).buffer);
      const result = await file.writeBytes(at, bytes);
      if (result < 0) return result;
    }
    return 0;
  }
}
