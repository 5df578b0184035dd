/**
 * Counts what an image refers to: how often each cluster of its file is used, by all that its
 * header leads to. Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst
 */
import * as abi from "../../../abi/qcow2.ts";
import { EFBIG, EIO } from "../../../runtime/errno.ts";
import { compressedPlace } from "./compressed.ts";
import { encryptionPlace } from "./encryption.ts";
import type { Image } from "./image.ts";
import { swapWords } from "./l2-tables.ts";
import { hostOf } from "./mapping.ts";
import { snapshotTableBytes } from "./snapshots.ts";

/** More would take too much memory: 16 TiB of the usual clusters. */
const CLUSTERS_MAX = 2 ** 28;

export class ReferenceCounter {
  readonly counts: Uint16Array;
  #image: Image;
  #clusterBytes: number;

  constructor(image: Image) {
    this.#image = image;
    this.#clusterBytes = image.layout.clusterBytes;
    const count = Math.ceil(image.file.node.bytes / this.#clusterBytes);
    this.counts = new Uint16Array(count > CLUSTERS_MAX ? 0 : count);
  }

  /** 0 or -errno: the image can't be read, or refers to what it does not have. */
  async count(): Promise<number> {
    const { header, extras, refcounts, snapshots, tables } = this.#image;
    if (this.counts.length === 0) return -EFBIG;
    const tableBytes = header.refcountTableClusters * this.#clusterBytes;
    let result = this.#add(0, this.#clusterBytes);
    if (result === 0) result = this.#add(header.refcountTableOffset, tableBytes);
    for (const offset of refcounts.table) {
      if (result === 0 && offset > 0) result = this.#add(offset, this.#clusterBytes);
    }
    const l1Bytes = header.l1Size * abi.ENTRY_BYTES;
    if (result === 0) result = this.#add(header.l1TableOffset, l1Bytes);
    if (result === 0) result = await this.#addTables(tables.l1);
    const snapshotBytes = snapshotTableBytes(snapshots);
    if (result === 0) result = this.#add(header.snapshotsOffset, snapshotBytes);
    for (const { l1TableOffset, l1Size } of snapshots) {
      if (result === 0) result = await this.#addSnapshot(l1TableOffset, l1Size);
    }
    const place = encryptionPlace(header, extras);
    if (place !== null && result === 0) result = this.#add(place.offset, place.bytes);
    return result < 0 ? result : this.#addBitmaps();
  }

  async #addSnapshot(offset: number, size: number): Promise<number> {
    const bytes = size * abi.ENTRY_BYTES;
    const result = this.#add(offset, bytes);
    if (result < 0) return result;
    const table = await this.#image.file.readBytes(offset, bytes);
    if (typeof table === "number") return table;
    return this.#addTables(swapWords(new Uint32Array(table.buffer)));
  }

  /** The L2 tables of an L1 table, and what they refer to. */
  async #addTables(l1: Uint32Array): Promise<number> {
    for (let i = 0; i < l1.length; i += 2) {
      const offset = hostOf(l1[i]!, l1[i + 1]!);
      if (offset === 0) continue;
      let result = this.#add(offset, this.#clusterBytes);
      if (result === 0) result = await this.#addTable(offset);
      if (result < 0) return result;
    }
    return 0;
  }

  async #addTable(offset: number): Promise<number> {
    const { file, layout, header } = this.#image;
    const bytes = await file.readBytes(offset, this.#clusterBytes);
    if (typeof bytes === "number") return bytes;
    const words = swapWords(new Uint32Array(bytes.buffer));
    for (let word = 0; word < words.length; word += layout.l2EntryBytes / 4) {
      const [hi, lo] = [words[word]!, words[word + 1]!];
      let result = 0;
      if ((hi & abi.QCOW_OFLAG_COMPRESSED_HI) !== 0) {
        const place = compressedPlace(hi, lo, header.clusterBits);
        result = this.#add(place.offset - (place.offset % 512), place.bytes, false);
      } else if (!layout.hasDataFile && hostOf(hi, lo) !== 0) {
        result = this.#add(hostOf(hi, lo), this.#clusterBytes);
      }
      if (result < 0) return result;
    }
    return 0;
  }

  /** Those that the image vouches for: others are lost, and so are their clusters. */
  async #addBitmaps(): Promise<number> {
    const { extras, bitmaps } = this.#image;
    if (extras.bitmaps === null) return 0;
    let result = this.#add(extras.bitmaps.offset, extras.bitmaps.bytes);
    for (const { table } of bitmaps.list) {
      if (result === 0) {
        result = await this.#addBitmapTable(table.offset, table.size * abi.ENTRY_BYTES);
      }
    }
    return result;
  }

  async #addBitmapTable(offset: number, bytes: number): Promise<number> {
    const result = this.#add(offset, bytes);
    if (result < 0) return result;
    const table = await this.#image.file.readBytes(offset, bytes);
    if (typeof table === "number") return table;
    const words = swapWords(new Uint32Array(table.buffer));
    for (let i = 0; i < words.length; i += 2) {
      const at = hostOf(words[i]!, words[i + 1]!);
      const added = at === 0 ? 0 : this.#add(at, this.#clusterBytes);
      if (added < 0) return added;
    }
    return 0;
  }

  /** One more reference to each cluster of a range. 0 or -EIO. */
  #add(offset: number, bytes: number, isAligned = true): number {
    if (bytes === 0) return 0;
    if (isAligned && offset % this.#clusterBytes !== 0) return -EIO;
    const first = Math.floor(offset / this.#clusterBytes);
    const last = Math.floor((offset + bytes - 1) / this.#clusterBytes);
    for (let i = first; i <= last; i++) {
      if (!(i < this.counts.length) || this.counts[i] === 0xffff) return -EIO;
      this.counts[i]!++;
    }
    return 0;
  }
}
