/**
 * The dirty bitmaps that an image keeps. While it may be written to, they are marked on the disk as
 * in use: a crash leaves them so, and nobody takes them for more than they are. They are stored
 * beside what is there, and only then the header leads to them. Thread: iothread; may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Bitmaps"; QEMU block/qcow2-bitmap.c
 */
import * as abi from "../../../abi/qcow2.ts";
import { DirtyBitmap } from "../../../bitmaps/dirty-bitmap.ts";
import { ENOENT, strerror } from "../../../runtime/errno.ts";
import { type ErrorKind, OutportError } from "../../../util/error.ts";
import { nodeBytes } from "../../description.ts";
import { type ClaimedClusters, freeBits, loadBits, readTable, storeBits } from "./bitmap-data.ts";
import {
  type BitmapTable,
  directoryBytes,
  encodeDirectory,
  parseDirectory,
  type StoredBitmap,
} from "./bitmap-directory.ts";
import { removeExtension, writeExtension } from "./bitmap-extension.ts";
import type { BitmapsExtension } from "./header.ts";
import type { Image } from "./image.ts";

/** Of all bitmaps of an image: 64 of the largest ones, or 16384 of the usual ones of a TiB. */
const LOADED_BITS_MAX = 2 ** 38;

const UPDATE_FAILED = "Failed to update bitmap extension";

export class StoredBitmaps {
  #image: Image;
  #list: readonly StoredBitmap[] = [];
  #loaded: readonly DirtyBitmap[] = [];

  constructor(image: Image) {
    this.#image = image;
  }

  /** In the directory's order. */
  get list(): readonly StoredBitmap[] {
    return this.#list;
  }

  /** Reads the directory. Throws OutportError. */
  async readDirectory(): Promise<void> {
    const { extras, file, metadata, layout } = this.#image;
    if (extras.bitmaps === null) return;
    const { offset, bytes, count } = extras.bitmaps;
    if (bytes === 0) throw failure("Requested bitmap directory size is zero");
    const directory = await file.readBytes(offset, bytes);
    if (typeof directory === "number") throw ioError("Failed to read bitmap directory", directory);
    const { clusterBytes } = layout;
    const list = parseDirectory(directory, count, { clusterBytes, diskBytes: this.#diskBytes });
    for (let at = offset; at < offset + bytes; at += clusterBytes) {
      // QSD differs: it notices when it writes there, if ever.
      if (metadata.has(at)) throw failure("Broken bitmap directory");
    }
    metadata.add("bitmap-directory", offset, bytes);
    this.#list = list;
  }

  /** Loads those that nobody has in memory. Throws OutportError. */
  async load(isInMemory: (name: string) => boolean, readOnly: boolean): Promise<void> {
    const loaded: DirtyBitmap[] = [];
    const claimed: ClaimedClusters = new Set();
    let bitCount = 0;
    for (const stored of this.#list) {
      if (isInMemory(stored.name)) continue;
      bitCount += this.#diskBytes / 2 ** stored.granularityBits;
      if (bitCount > LOADED_BITS_MAX) {
        // QSD differs: it takes all the memory that it gets.
        throw failure("The bitmaps are too large to be loaded", "limit");
      }
      const bitmap = await this.#loadOne(stored, claimed);
      bitmap.readOnly = readOnly;
      loaded.push(bitmap);
    }
    this.#loaded = loaded;
  }

  /** What load() has loaded, once; the oldest first. */
  takeLoaded(): readonly DirtyBitmap[] {
    const loaded = this.#loaded;
    this.#loaded = [];
    return loaded;
  }

  async #loadOne(stored: StoredBitmap, claimed: ClaimedClusters): Promise<DirtyBitmap> {
    const { name, granularityBits, isAuto, isInUse, table } = stored;
    const bitmap = new DirtyBitmap({
      name,
      bytes: this.#diskBytes,
      granularity: 2 ** granularityBits,
      persistent: true,
      enabled: isAuto && !isInUse,
    });
    bitmap.inconsistent = isInUse;
    if (isInUse) return bitmap;
    const entries = await readTable(this.#image, table);
    if (typeof entries === "number") {
      throw ioError(`Could not read bitmap_table table from image for bitmap '${name}'`, entries);
    }
    const result = await loadBits(this.#image, table, entries, bitmap.bits, claimed);
    if (result === -ENOENT) {
      // QSD differs: it takes what is there for the bits, or what is not there for clear ones.
      bitmap.inconsistent = true;
      bitmap.enabled = false;
      bitmap.bits.clear();
    } else if (result < 0) {
      throw ioError(`Could not read bitmap '${name}' from image`, result);
    }
    return bitmap;
  }

  /** Before anything is written that they would have to record. Throws OutportError. */
  async setInUse(isInUse: boolean, names?: ReadonlySet<string>): Promise<void> {
    const isMeant = ({ name }: StoredBitmap): boolean => names?.has(name) ?? true;
    const next = this.#list.map((one) => (isMeant(one) ? { ...one, isInUse } : one));
    if (next.every((one, index) => one.isInUse === this.#list[index]!.isInUse)) return;
    const { bitmaps } = this.#image.extras;
    const bytes = encodeDirectory(next);
    // Only flags change: each of them may or may not be there when the power fails.
    const isSame = bitmaps !== null && bytes.length === bitmaps.bytes;
    if (!isSame) throw failure("Can't update bitmap directory: Invalid argument");
    const { file } = this.#image;
    let result = await file.writeBytes(bitmaps.offset, bytes);
    if (result === 0) result = await file.flush();
    if (result < 0) throw ioError("Can't update bitmap directory", result);
    this.#list = next;
  }

  /** One more, with a name in UTF-8, could be stored. Throws OutportError. */
  checkNew(nameBytes: Uint8Array, granularity: number, others: readonly Uint8Array[]): void {
    if (this.#image.header.version < 3) {
      throw failure("Cannot store dirty bitmaps in qcow2 v2 files", "unsupported");
    }
    this.#checkConstraints(nameBytes, granularity);
    if (others.length + 1 > abi.QCOW2_MAX_BITMAPS) {
      throw failure("Maximum number of persistent bitmaps is already reached", "limit");
    }
    const names = [...others, nameBytes].map((one) => ({ nameBytes: one }));
    if (directoryBytes(names) > abi.QCOW2_MAX_BITMAP_DIRECTORY_SIZE) {
      throw failure("Not enough space in the bitmap directory", "limit");
    }
  }

  #checkConstraints(nameBytes: Uint8Array, granularity: number): void {
    const [most, least] = [2 ** abi.BME_MAX_GRANULARITY_BITS, 2 ** abi.BME_MIN_GRANULARITY_BITS];
    if (granularity > most) throw failure(`Granularity exceeds maximum (${most} bytes)`);
    if (granularity < least) throw failure(`Granularity is under minimum (${least} bytes)`);
    const bytes = Math.ceil(Math.ceil(this.#diskBytes / granularity) / 8);
    const { clusterBytes } = this.#image.layout;
    if (bytes > Math.min(abi.BME_MAX_PHYS_SIZE, abi.BME_MAX_TABLE_SIZE * clusterBytes)) {
      const text = "Too much space will be occupied by the bitmap. Use larger granularity";
      throw failure(text, "limit");
    }
    if (nameBytes.length > abi.BME_MAX_NAME_SIZE) {
      throw failure(`Name length exceeds maximum (${abi.BME_MAX_NAME_SIZE} characters)`, "limit");
    }
  }

  /**
   * Stores bitmaps as they are, in place of what the image has of that name; the newest first.
   * Nothing is in flight. Throws OutportError: those that are stored are in use then as before.
   */
  async store(bitmaps: readonly DirtyBitmap[]): Promise<void> {
    const next = new Map(this.#list.map((one) => [one.name, one]));
    const dropped: BitmapTable[] = [];
    const added: BitmapTable[] = [];
    let directory: BitmapsExtension;
    try {
      for (const bitmap of bitmaps) {
        const { name } = bitmap;
        const before = next.get(name);
        if (before?.isInUse === false) {
          throw failure(`Bitmap '${name}' already exists in the image`, "in-use");
        }
        const after = await this.#storeOne(bitmap, before);
        added.push(after.table);
        if (before !== undefined) dropped.push(before.table);
        next.set(name, after);
      }
      directory = await this.#writeDirectory([...next.values()]);
    } catch (error) {
      for (const table of added) await freeBits(this.#image, table);
      throw error;
    }
    await this.#switchTo([...next.values()], directory);
    for (const table of dropped) await freeBits(this.#image, table);
  }

  async #storeOne(bitmap: DirtyBitmap, before: StoredBitmap | undefined): Promise<StoredBitmap> {
    const { name, bits, enabled } = bitmap;
    // No table is as short as its own would have to be.
    if (bits.bytes === 0) throw failure(`Bitmap '${name}' of an empty disk can't be stored`);
    const nameBytes = before?.nameBytes ?? new TextEncoder().encode(name);
    try {
      this.#checkConstraints(nameBytes, bits.granularity);
    } catch (error) {
      const text = error instanceof OutportError ? error.message : String(error);
      throw failure(`Bitmap '${name}' doesn't satisfy the constraints: ${text}`, "limit");
    }
    const table = await storeBits(this.#image, bits);
    if (typeof table === "number") {
      throw ioError(`Failed to write bitmap '${name}' to file`, table);
    }
    const granularityBits = Math.log2(bits.granularity);
    return { name, nameBytes, granularityBits, isAuto: enabled, isInUse: false, table };
  }

  /** The image keeps it no longer, if it did. Nothing is in flight. Throws OutportError. */
  async remove(name: string): Promise<void> {
    const stored = this.#list.find((one) => one.name === name);
    if (stored === undefined) return;
    const next = this.#list.filter((one) => one !== stored);
    await this.#switchTo(next, next.length === 0 ? null : await this.#writeDirectory(next));
    await freeBits(this.#image, stored.table);
  }

  /** On the disk, with the refcounts of all that is new. */
  async #writeDirectory(next: readonly StoredBitmap[]): Promise<BitmapsExtension> {
    const { layout, allocator, file, writer } = this.#image;
    const bytes = encodeDirectory(next);
    if (next.length > abi.QCOW2_MAX_BITMAPS) throw failure("Too many persistent bitmaps", "limit");
    if (bytes.length > abi.QCOW2_MAX_BITMAP_DIRECTORY_SIZE) {
      throw failure("Bitmap directory is too large", "limit");
    }
    const clusters = Math.ceil(bytes.length / layout.clusterBytes);
    const place = await allocator.allocateContiguous(clusters);
    if (typeof place === "number") throw ioError(UPDATE_FAILED, place);
    const { offset } = place;
    let result = await file.writeBytes(offset, bytes);
    if (result === 0) result = await writer.commitAll();
    if (result === 0) return { count: next.length, offset, bytes: bytes.length };
    allocator.free(offset, clusters, "other");
    throw ioError(UPDATE_FAILED, result);
  }

  /** When that fails, the header may lead to any of both: neither is given up. */
  async #switchTo(next: readonly StoredBitmap[], after: BitmapsExtension | null): Promise<void> {
    const { extras, layout, metadata, allocator } = this.#image;
    const before = extras.bitmaps;
    const result = await (after === null
      ? removeExtension(this.#image)
      : writeExtension(this.#image, after));
    if (result < 0) {
      if (after !== null) await this.#distrust(next, after);
      throw ioError(UPDATE_FAILED, result);
    }
    this.#list = next;
    if (before !== null) {
      metadata.remove(before.offset, before.bytes);
      allocator.free(before.offset, Math.ceil(before.bytes / layout.clusterBytes), "other");
    }
    if (after !== null) metadata.add("bitmap-directory", after.offset, after.bytes);
  }

  /** Writes that come may miss it: a directory that the header may lead to must say so, too. */
  async #distrust(list: readonly StoredBitmap[], { offset }: BitmapsExtension): Promise<void> {
    const image = this.#image;
    const bytes = encodeDirectory(list.map((one) => ({ ...one, isInUse: true })));
    let result = await image.file.writeBytes(offset, bytes);
    if (result === 0) result = await image.file.flush();
    if (result === 0) return;
    image.isBroken = true;
    const { log, nodeName } = image.context;
    log(`Node '${nodeName}' can't be written to any more: ${strerror(-result)}`);
  }

  get #diskBytes(): number {
    return nodeBytes(this.#image.header.bytes);
  }
}

function failure(message: string, kind: ErrorKind = "invalid"): OutportError {
  return new OutportError(kind, message);
}

function ioError(what: string, result: number): OutportError {
  return new OutportError("io", `${what}: ${strerror(-result)}`);
}
