/**
 * Brings slices of L2 tables into memory, and sees to it that a table may be changed: makes those
 * that do not exist, copies those that a snapshot uses, too. Thread: iothread; everything async may
 * suspend.
 */
import { QCOW_OFLAG_COMPRESSED_HI } from "../../../abi/qcow2.ts";
import { EINVAL, EIO, ENOMEDIUM } from "../../../runtime/errno.ts";
import { LENGTH_MAX } from "../../description.ts";
import { hex } from "./hex.ts";
import type { Image } from "./image.ts";
import { type L2Slice, swapWords } from "./l2-tables.ts";
import { hostOf } from "./mapping.ts";

export class L2Loader {
  #image: Image;
  #loading = new Map<number, Promise<L2Slice | number>>();
  /** Tables being made or copied, by their index in L1. */
  #making = new Map<number, Promise<number>>();

  constructor(image: Image) {
    this.#image = image;
  }

  /** The slice for an offset whose table exists, or -errno. */
  load(offset: number): Promise<L2Slice | number> {
    const { tables } = this.#image;
    const known = tables.find(offset);
    if (known !== null) return Promise.resolve(known);
    const key = Math.floor(offset / tables.sliceSpan);
    let loading = this.#loading.get(key);
    if (loading === undefined) {
      loading = this.#load(key).finally(() => this.#loading.delete(key));
      this.#loading.set(key, loading);
    }
    return loading;
  }

  async #load(key: number): Promise<L2Slice | number> {
    const { tables, layout, file } = this.#image;
    const l1Index = Math.floor((key * tables.sliceSpan) / layout.tableSpan);
    const check = this.#checkTable(l1Index);
    if (check < 0) return check;
    const room = await this.#makeRoom();
    if (room < 0) return room;
    const inTable = key - (l1Index * layout.tableSpan) / tables.sliceSpan;
    const at = tables.tableOffset(l1Index) + inTable * tables.sliceBytes;
    const bytes = await file.readBytes(at, tables.sliceBytes);
    if (typeof bytes === "number") return bytes;
    return tables.add(key, swapWords(new Uint32Array(bytes.buffer)));
  }

  /** 0 or -errno. */
  #checkTable(l1Index: number): number {
    const { tables, layout, file } = this.#image;
    if (this.#image.isBroken) return -ENOMEDIUM;
    const offset = tables.tableOffset(l1Index);
    if (offset % layout.clusterBytes === 0 && Number.isSafeInteger(offset)) {
      // QSD differs: it reads zeroes there.
      if (offset < file.node.bytes) return 0;
    }
    const isAligned = offset % layout.clusterBytes === 0;
    const what = isAligned ? "outside of the image" : "unaligned";
    const where = `${hex(offset)} ${what} (L1 index: ${hex(l1Index)})`;
    return this.#image.corrupt(`L2 table offset ${where}`);
  }

  async #makeRoom(): Promise<number> {
    const { tables, writer } = this.#image;
    if (!tables.isFull || tables.evict()) return 0;
    // All of them are dirty, or in use: then there are a few more.
    const result = tables.dirty.size > 0 ? await writer.commit() : 0;
    if (result === 0) tables.evict();
    return result;
  }

  /** The slice for an offset, of a table that may be changed, until unpin(); or -errno. */
  async pin(offset: number): Promise<L2Slice | number> {
    for (;;) {
      const slice = await this.#loadForWrite(offset);
      if (typeof slice === "number") return slice;
      if (this.#image.tables.find(offset) !== slice) continue;
      slice.pins++;
      return slice;
    }
  }

  unpin(slice: L2Slice): void {
    slice.pins--;
  }

  async #loadForWrite(offset: number): Promise<L2Slice | number> {
    const { tables, layout } = this.#image;
    const dispute = this.#image.checkDispute();
    if (dispute < 0) return dispute;
    const l1Index = Math.floor(offset / layout.tableSpan);
    if (!tables.isTableCopied(l1Index) || tables.tableOffset(l1Index) === 0) {
      let making = this.#making.get(l1Index);
      if (making === undefined) {
        making = this.#makeTable(l1Index).finally(() => this.#making.delete(l1Index));
        this.#making.set(l1Index, making);
      }
      const result = await making;
      if (result < 0) return result;
    }
    return this.load(offset);
  }

  /** A table of its own for an L1 entry: empty, or a copy of the one that is shared. */
  async #makeTable(l1Index: number): Promise<number> {
    const { tables, layout, file, allocator, writer, metadata } = this.#image;
    const { clusterBytes } = layout;
    const before = tables.tableOffset(l1Index);
    if (before > 0) {
      const check = this.#checkTable(l1Index);
      if (check < 0) return check;
    }
    const place = await allocator.allocate(1);
    if (typeof place === "number") return place;
    let result = 0;
    if (before > 0) {
      const bytes = await file.readBytes(before, clusterBytes);
      result = typeof bytes === "number" ? bytes : await file.writeBytes(place.offset, bytes);
    } else if (!place.isZero) {
      result = await file.writeZeroes(place.offset, clusterBytes, 0);
    }
    if (result < 0) {
      allocator.free(place.offset, 1, "other");
      return result;
    }
    while (writer.isCommitting) await writer.settled();
    if (this.#image.isBroken) return -EIO;
    tables.setTable(l1Index, place.offset);
    metadata.add("active-l2", place.offset, clusterBytes);
    if (before > 0) {
      metadata.remove(before, clusterBytes);
      allocator.free(before, 1, "snapshot");
    }
    return 0;
  }

  /** What is wrong with the entry for `offset`, in QSD's words. Returns -errno. */
  reportEntry(offset: number, forWrite = false): number {
    const { tables, layout } = this.#image;
    const slice = tables.find(offset);
    if (slice === null) return -EINVAL;
    const index = Math.floor((offset - slice.key * tables.sliceSpan) / layout.clusterBytes);
    const word = index * (layout.l2EntryBytes / 4);
    const [hi, lo] = [slice.words[word]!, slice.words[word + 1]!];
    const l1Index = tables.l1IndexOf(slice);
    const table = `L2 offset: ${hex(tables.tableOffset(l1Index))}`;
    const l2Index = Math.floor((offset % layout.tableSpan) / layout.clusterBytes);
    const place = `(${table}, L2 index: ${hex(l2Index)})`;
    if ((hi & QCOW_OFLAG_COMPRESSED_HI) !== 0) {
      const what = layout.hasDataFile
        ? "Compressed cluster entry found in image with external data file"
        : "Invalid cluster entry found";
      return this.#image.corrupt(`${what} ${place}`);
    }
    // A multiple of 512: exact, however large.
    const at = hex(hostOf(hi, lo));
    if (layout.version < 3 && (lo & 1) !== 0) {
      return this.#image.corrupt(`Zero cluster entry found in pre-v3 image ${place}`);
    }
    const guest = hex(offset - (offset % layout.clusterBytes));
    if (hostOf(hi, lo) % layout.clusterBytes !== 0) {
      if (forWrite) {
        return this.#image.corrupt(`Data cluster offset ${at} unaligned (guest offset: ${guest})`);
      }
      return this.#image.corrupt(`Cluster allocation offset ${at} unaligned ${place}`);
    }
    if (hostOf(hi, lo) > LENGTH_MAX) {
      // QSD differs: it tries.
      return this.#image.corrupt(`Cluster allocation offset ${at} too large ${place}`);
    }
    if (layout.hasDataFile) {
      return this.#image.corrupt(
        `External data file host cluster offset ${at} does not match guest cluster offset: ` +
          `${guest}, L2 index: ${hex(l2Index)})`,
      );
    }
    return this.#image.corrupt(`Invalid cluster entry found ${place}`);
  }
}
