/**
 * Compares what an image's refcounts say with what there really is, as `qemu-img check` does, and
 * looks for what overlaps. Each use of a host cluster is counted by what it is used for.
 */

import { readSnapshots } from "./header.ts";
import type { Qcow2Image } from "./image.ts";
import { u64, viewOf } from "./source.ts";

export interface Corruption {
  /**
   * "refcount": less than there is. "copied": the
   * flag does not tell the truth. An image with its dirty bit set may have such. "structure": all
   * else.
   */
  readonly kind: "refcount" | "copied" | "structure";
  readonly text: string;
}

export interface CheckResult {
  readonly corruptions: readonly Corruption[];
  /** Host clusters that nothing refers to, or less than their refcount says. */
  readonly leaks: readonly number[];
  /** The header says that refcounts may be wrong. */
  readonly dirty: boolean;
}

/** What a host cluster is used for: two uses of different kinds overlap. */
const USES = ["header", "table", "data", "compressed"] as const;
type Use = (typeof USES)[number];

const CORRUPTIONS_MAX = 50;

export function checkImage(image: Qcow2Image): CheckResult {
  const check = new Check(image);
  check.run();
  const { corruptions, leaks } = check;
  return { corruptions, leaks, dirty: image.header.incompatible.dirty };
}

/** A sentence for a failing test; empty when there is nothing but leaks. */
export function describeCorruptions({ corruptions, dirty }: CheckResult): string {
  // Where refcounts are not kept up to date, flags that tell of them are neither.
  const counted = corruptions.filter(({ kind }) => !dirty || kind === "structure");
  return counted.map(({ kind, text }) => `${kind}: ${text}`).join("\n");
}

class Check {
  readonly corruptions: Corruption[] = [];
  readonly leaks: number[] = [];
  #image: Qcow2Image;
  #clusterBytes: number;
  /** By host cluster. */
  #references: Uint32Array;
  /** What the file says; beyond the table: 0. */
  #refcounts: number[] = [];
  #uses: Uint8Array;

  constructor(image: Qcow2Image) {
    this.#image = image;
    this.#clusterBytes = image.header.clusterBytes;
    const clusters = Math.ceil(image.source.bytes / this.#clusterBytes);
    this.#references = new Uint32Array(clusters);
    this.#uses = new Uint8Array(clusters);
  }

  run(): void {
    const { header, source } = this.#image;
    this.#use("header", "the header", 0, this.#clusterBytes);
    this.#readRefcounts();
    const snapshots = readSnapshots(source, header);
    if (header.snapshots.count > 0) {
      this.#use("table", "the snapshot table", header.snapshots.offset, snapshots.bytes);
    }
    if (header.cryptoHeader !== null) {
      const { offset, bytes } = header.cryptoHeader;
      this.#use("table", "the crypto header", offset, bytes);
    }
    this.#countBitmaps();
    this.#countTree("the active L1 table", header.l1, true);
    for (const { id, l1 } of snapshots.list) {
      this.#countTree(`the L1 table of snapshot ${id}`, l1, false);
    }
    this.#compare();
    this.#checkCopied();
    const l2Needed = Math.ceil(header.bytes / (this.#clusterBytes * this.#image.l2Count));
    if (header.l1.count < l2Needed) this.#wrong("structure", "the L1 table is too small");
  }

  #wrong(kind: Corruption["kind"], text: string): void {
    if (this.corruptions.length < CORRUPTIONS_MAX) this.corruptions.push({ kind, text });
  }

  /** Counts one reference to each cluster of a host range. False: it can't be. */
  #use(use: Use, what: string, offset: number, bytes: number): boolean {
    const clusterBytes = this.#clusterBytes;
    if (use !== "compressed" && offset % clusterBytes !== 0) {
      this.#wrong("structure", `${what} at ${offset} is not aligned`);
      return false;
    }
    const first = Math.floor(offset / clusterBytes);
    const last = Math.floor((offset + bytes - 1) / clusterBytes);
    if (bytes > 0 && last >= this.#references.length) {
      this.#wrong("structure", `${what} at ${offset} is beyond the end of the file`);
      return false;
    }
    const bit = 1 << USES.indexOf(use);
    for (let cluster = first; cluster <= last; cluster++) {
      const before = this.#uses[cluster]!;
      const shared = use === "data" || use === "compressed";
      if (before !== 0 && (before !== bit || !shared)) {
        const others = USES.filter((_, i) => (before & (1 << i)) !== 0).join(", ");
        this.#wrong("structure", `${what}: cluster ${cluster} is in use already (${others})`);
      }
      this.#uses[cluster] = before | bit;
      this.#references[cluster]!++;
    }
    return true;
  }

  #readRefcounts(): void {
    const { header, source } = this.#image;
    const { offset, bytes } = header.refcountTable;
    if (!this.#use("table", "the refcount table", offset, bytes)) return;
    const table = viewOf(source.read(offset, bytes));
    const perBlock = (this.#clusterBytes * 8) / header.refcountBits;
    for (let i = 0; i < bytes / 8; i++) {
      const block = u64(table, i * 8);
      if (block === 0) continue;
      if (!this.#use("table", `refcount block ${i}`, block, this.#clusterBytes)) continue;
      const counts = refcountsOf(source.read(block, this.#clusterBytes), header.refcountBits);
      for (const [at, count] of counts.entries()) {
        if (count !== 0) this.#refcounts[i * perBlock + at] = count;
      }
    }
  }

  #countBitmaps(): void {
    const { header, source, bitmaps } = this.#image;
    // Without the autoclear bit they are nobody's: somebody wrote to the image who knows none.
    if (header.bitmapDirectory === null || !header.autoclearBitmaps) return;
    const { offset, bytes } = header.bitmapDirectory;
    this.#use("table", "the bitmap directory", offset, bytes);
    const names = new Set(bitmaps.map(({ name }) => name));
    if (names.size < bitmaps.length) this.#wrong("structure", "two bitmaps have one name");
    for (const { name, table, inUse, granularityBytes, reserved } of bitmaps) {
      if (reserved) this.#wrong("structure", `bitmap ${name} has reserved bits set`);
      if (!this.#use("table", `the table of bitmap ${name}`, table.offset, table.count * 8))
        continue;
      const words = Math.max(1, Math.ceil(header.bytes / granularityBytes / 64));
      if (!inUse && table.count !== Math.ceil((words * 8) / this.#clusterBytes)) {
        this.#wrong("structure", `the table of bitmap ${name} is not as long as its bits`);
      }
      const view = viewOf(source.read(table.offset, table.count * 8));
      for (let i = 0; i < table.count; i++) {
        const at = u64(view, i * 8);
        if (at > 1) this.#use("table", `part ${i} of bitmap ${name}`, at, this.#clusterBytes);
      }
    }
  }

  /** `alone`: nothing but the tree itself may refer to its data twice. */
  #countTree(what: string, l1: { offset: number; count: number }, alone: boolean): void {
    if (l1.count === 0) return;
    if (!this.#use("table", what, l1.offset, l1.count * 8)) return;
    const image = this.#image;
    const seen = alone ? new Set<number>() : null;
    for (let i = 0; i < l1.count; i++) {
      const { offset, copied, reserved } = image.l1Entry(l1, i);
      if (reserved !== 0) this.#wrong("structure", `${what}: entry ${i} has reserved bits set`);
      if (offset === 0 && copied) this.#wrong("structure", `${what}: entry ${i} has no table`);
      if (offset === 0) continue;
      // A table that a snapshot shares is counted once for each, but is the same use.
      if (!this.#useShared(`L2 table ${i} of ${what}`, offset, seen)) continue;
      this.#countL2(`L2 table ${i} of ${what}`, offset, seen);
    }
  }

  #useShared(what: string, offset: number, seen: Set<number> | null): boolean {
    const cluster = offset / this.#clusterBytes;
    if (seen?.has(cluster)) this.#wrong("structure", `${what} is used twice`);
    seen?.add(cluster);
    if (this.#sharedTables.has(cluster)) {
      this.#references[cluster]!++;
      return true;
    }
    if (!this.#use("table", what, offset, this.#clusterBytes)) return false;
    this.#sharedTables.add(cluster);
    return true;
  }

  readonly #sharedTables = new Set<number>();

  #countL2(what: string, offset: number, seen: Set<number> | null): void {
    const image = this.#image;
    const { header } = image;
    const view = viewOf(image.source.read(offset, this.#clusterBytes));
    for (let i = 0; i < image.l2Count; i++) {
      const entry = image.parseL2Entry(view, i * image.l2EntryBytes);
      const where = `entry ${i} of ${what}`;
      this.#checkEntry(where, entry, header.incompatible.extendedL2);
      if (entry.compressed) {
        if (header.incompatible.dataFile) this.#wrong("structure", `${where}: compressed`);
        this.#use("compressed", where, entry.host, entry.hostBytes);
      } else if (header.incompatible.dataFile) {
        if (entry.host % this.#clusterBytes !== 0) this.#wrong("structure", `${where}: unaligned`);
      } else if (entry.host !== 0) {
        const cluster = entry.host / this.#clusterBytes;
        if (seen?.has(cluster)) this.#wrong("structure", `${where}: ${entry.host} is used twice`);
        seen?.add(cluster);
        // The last cluster of a file may be cut short, or be all hole.
        this.#use("data", where, entry.host, 1);
      }
    }
  }

  #checkEntry(
    where: string,
    entry: ReturnType<Qcow2Image["parseL2Entry"]>,
    extended: boolean,
  ): void {
    if (entry.reserved !== 0) this.#wrong("structure", `${where} has reserved bits set`);
    if (!extended) return;
    if ((entry.allocated & entry.zeroes) !== 0) {
      this.#wrong("structure", `${where}: subclusters are both allocated and zero`);
    }
    if (entry.zero) this.#wrong("structure", `${where}: the zero flag is set`);
    if (entry.compressed && (entry.allocated | entry.zeroes) !== 0) {
      this.#wrong("structure", `${where}: subclusters of compressed data`);
    }
    const isUnallocated = entry.host === 0 && !this.#image.header.incompatible.dataFile;
    if (!entry.compressed && isUnallocated && entry.allocated !== 0) {
      this.#wrong("structure", `${where}: subclusters are allocated nowhere`);
    }
  }

  #compare(): void {
    const clusters = Math.max(this.#references.length, this.#refcounts.length);
    for (let cluster = 0; cluster < clusters; cluster++) {
      const refcount = this.#refcounts[cluster] ?? 0;
      const references = this.#references[cluster] ?? 0;
      if (refcount > references) this.leaks.push(cluster);
      if (refcount < references) {
        const text = `cluster ${cluster}: refcount ${refcount}, ${references} references`;
        this.#wrong("refcount", text);
      }
    }
  }

  /** In the active tree: the flag says that the refcount is 1. */
  #checkCopied(): void {
    const image = this.#image;
    const { l1, incompatible } = image.header;
    const check = (what: string, host: number, copied: boolean): void => {
      const refcount = this.#refcounts[host / this.#clusterBytes] ?? 0;
      if (copied !== (refcount === 1)) {
        this.#wrong("copied", `${what} at ${host}: ${copied}, but refcount ${refcount}`);
      }
    };
    for (let i = 0; i < l1.count; i++) {
      const { offset, copied } = image.l1Entry(l1, i);
      if (offset === 0 || offset % this.#clusterBytes !== 0) continue;
      check(`L2 table ${i}`, offset, copied);
      const view = viewOf(image.source.read(offset, this.#clusterBytes));
      for (let j = 0; j < image.l2Count; j++) {
        const entry = image.parseL2Entry(view, j * image.l2EntryBytes);
        const what = `entry ${j} of L2 table ${i}`;
        if (entry.compressed) {
          if (entry.copied) this.#wrong("copied", `${what}: compressed and copied`);
        } else if (incompatible.dataFile) {
          if (entry.host !== 0 && !entry.copied) this.#wrong("copied", `${what}: not copied`);
        } else if (entry.host !== 0) {
          check(what, entry.host, entry.copied);
        }
      }
    }
  }
}

/** The lowest bits of a byte come first; whole bytes are big-endian. */
function refcountsOf(block: Uint8Array, bits: number): number[] {
  const view = viewOf(block);
  const count = (block.length * 8) / bits;
  return Array.from({ length: count }, (_, i) => {
    if (bits === 64) return u64(view, i * 8);
    if (bits === 32) return view.getUint32(i * 4);
    if (bits === 16) return view.getUint16(i * 2);
    const shift = (i * bits) % 8;
    return (block[Math.floor((i * bits) / 8)]! >>> shift) & (2 ** bits - 1);
  });
}
