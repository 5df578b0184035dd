/**
 * A dirty bitmap: what was written to a node since it was made or cleared, with the states that
 * allow or forbid its use. Thread: iothread.
 * Spec: QEMU docs/interop/bitmaps.rst; qapi/block-core.json BlockDirtyInfo
 */
import { createHash } from "node:crypto";
import type { BlockDirtyInfo, SavedBitmap } from "../iothread/messages.ts";
import { OutportError } from "../util/error.ts";
import { HBitmap } from "./hbitmap.ts";

/** In UTF-8. */
const NAME_BYTES_MAX = 1023;

export interface DirtyBitmapOptions {
  readonly name: string;
  /** Of the node. */
  readonly bytes: number;
  readonly granularity: number;
  readonly persistent: boolean;
  readonly enabled: boolean;
}

export class DirtyBitmap {
  readonly name: string;
  bits: HBitmap;
  /** Writes mark it. */
  enabled: boolean;
  /** Some operation uses it, such as an export: nothing else may. */
  busy = false;
  /** The node's image keeps it when that is closed. */
  persistent: boolean;
  /** It was stored by somebody who then failed to: nothing is known, and it can only be removed. */
  inconsistent = false;
  /** The image that keeps it is open for reading only. */
  readOnly = false;

  /** Throws OutportError. */
  constructor({ name, bytes, granularity, persistent, enabled }: DirtyBitmapOptions) {
    if (new TextEncoder().encode(name).length > NAME_BYTES_MAX) {
      throw new OutportError("limit", `Bitmap name too long: ${name}`);
    }
    this.name = name;
    this.bits = new HBitmap(bytes, granularity);
    this.persistent = persistent;
    this.enabled = enabled;
  }

  static from(saved: SavedBitmap): DirtyBitmap {
    const { bytes, granularity } = saved.content;
    const bitmap = new DirtyBitmap({ ...saved, bytes, granularity });
    bitmap.bits = HBitmap.from(saved.content);
    bitmap.busy = saved.busy;
    bitmap.inconsistent = saved.inconsistent;
    bitmap.readOnly = saved.readOnly;
    return bitmap;
  }

  /** For another thread. */
  save(): SavedBitmap {
    const { name, enabled, busy, persistent, inconsistent, readOnly } = this;
    const content = this.bits.content();
    return { name, enabled, busy, persistent, inconsistent, readOnly, content };
  }

  get info(): BlockDirtyInfo {
    return {
      name: this.name,
      count: this.bits.dirtyBytes,
      granularity: this.bits.granularity,
      recording: this.enabled,
      busy: this.busy,
      persistent: this.persistent,
      ...(this.inconsistent ? { inconsistent: true } : {}),
    };
  }

  /** For who reads it, or says whether it records. Throws OutportError. */
  checkUsable(): void {
    this.checkIdle();
    if (this.inconsistent) {
      throw new OutportError("invalid", `Bitmap '${this.name}' is inconsistent and cannot be used`);
    }
  }

  /** For who changes its bits. Throws OutportError. */
  checkWritable(): void {
    this.checkIdle();
    this.#checkNotReadOnly();
    this.checkUsable();
  }

  /** Throws OutportError. */
  checkIdle(): void {
    if (!this.busy) return;
    const what = "is currently in use by another operation and cannot be used";
    throw new OutportError("in-use", `Bitmap '${this.name}' ${what}`);
  }

  #checkNotReadOnly(): void {
    if (!this.readOnly) return;
    throw new OutportError(
      "permission",
      `Bitmap '${this.name}' is readonly and cannot be modified`,
    );
  }

  /** Throws OutportError. `bits`: of a bitmap of another node, perhaps. */
  checkMergeable(bits: HBitmap): void {
    const [ours, theirs] = [this.bits.bytes, bits.bytes];
    if (ours === theirs) return;
    const sizes = `destination size is ${ours}, source size is ${theirs}`;
    const text = `Bitmaps are of different sizes (${sizes}) and can't be merged`;
    throw new OutportError("invalid", text);
  }

  sha256(): string {
    const hash = createHash("sha256");
    for (const part of this.bits.serialized()) hash.update(part);
    return hash.digest("hex");
  }
}
