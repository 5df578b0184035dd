/** The dirty bitmaps of one open node, which its writes mark. Thread: iothread. */
import type { BlockNode } from "../block/node.ts";
import { addWriteObserver, removeWriteObserver } from "../block/write-observers.ts";
import type { BlockDirtyInfo, SavedBitmap } from "../iothread/messages.ts";
import { OutportError } from "../util/error.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";

const all = new WeakMap<BlockNode, NodeBitmaps>();

export function bitmapsOf(node: BlockNode): NodeBitmaps {
  let bitmaps = all.get(node);
  if (bitmaps === undefined) {
    bitmaps = new NodeBitmaps(node);
    all.set(node, bitmaps);
  }
  return bitmaps;
}

/** Missing: it has none. */
export function dirtyInfosOf(node: BlockNode): readonly BlockDirtyInfo[] | undefined {
  const list = all.get(node)?.list ?? [];
  return list.length === 0 ? undefined : list.map(({ info }) => info);
}

/** After a drained section, in which the node's length may have changed. */
export function fitBitmaps(node: BlockNode): void {
  all.get(node)?.fitLength();
}

export class NodeBitmaps {
  #node: BlockNode;
  #list: DirtyBitmap[] = [];

  constructor(node: BlockNode) {
    this.#node = node;
  }

  /** Newest first. */
  get list(): readonly DirtyBitmap[] {
    return this.#list;
  }

  find(name: string): DirtyBitmap | undefined {
    return this.#list.find((bitmap) => bitmap.name === name);
  }

  /** Throws OutportError. */
  get(name: string): DirtyBitmap {
    const bitmap = this.find(name);
    if (bitmap !== undefined) return bitmap;
    throw new OutportError("not-found", `Dirty bitmap '${name}' not found`);
  }

  /** Throws OutportError. */
  checkFree(name: string): void {
    if (this.find(name) === undefined) return;
    throw new OutportError("in-use", `Bitmap already exists: ${name}`);
  }

  /** Throws OutportError, also when others write to the node past us. */
  add(bitmap: DirtyBitmap): void {
    this.checkFree(bitmap.name);
    if (this.#list.length === 0) addWriteObserver(this.#node, this.#mark);
    this.#list.unshift(bitmap);
  }

  remove(bitmap: DirtyBitmap): void {
    this.#list = this.#list.filter((one) => one !== bitmap);
    if (this.#list.length === 0) removeWriteObserver(this.#node, this.#mark);
  }

  save(): readonly SavedBitmap[] {
    return this.#list.map((bitmap) => bitmap.save());
  }

  /** What was saved counts more than what the image told when it was opened. */
  restore(saved: readonly SavedBitmap[]): void {
    for (const one of saved.toReversed()) {
      const loaded = this.find(one.name);
      if (loaded !== undefined) this.remove(loaded);
      this.add(DirtyBitmap.from(one));
    }
  }

  fitLength(): void {
    const { bytes } = this.#node;
    for (const { bits } of this.#list) if (bits.bytes !== bytes) bits.resize(bytes);
  }

  readonly #mark = (offset: number, bytes: number): void => {
    for (const bitmap of this.#list) if (bitmap.enabled) bitmap.bits.set(offset, bytes);
  };
}
