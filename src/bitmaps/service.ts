/**
 * What main does to the dirty bitmaps of an iothread: each action takes effect at once, in a
 * drained section, and is kept or taken back later. Thread: iothread.
 */
import { isInactive } from "../block/inactive-nodes.ts";
import type { BlockNode } from "../block/node.ts";
import type { BitmapAction, BitmapPlace, IothreadHandlersOf } from "../iothread/messages.ts";
import { assert, OutportError } from "../util/error.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";
import { HBitmap } from "./hbitmap.ts";
import { bitmapsOf } from "./node-bitmaps.ts";

export interface BitmapServiceParts {
  /** Undefined when it is not open. */
  readonly findNode: (nodeName: string) => BlockNode | undefined;
}

interface Undo {
  keep(): void;
  undo(): void;
}

type Action<Type extends BitmapAction["type"]> = Extract<BitmapAction, { readonly type: Type }>;

const KEEP_NOTHING = (): void => {};

export class BitmapService {
  #parts: BitmapServiceParts;
  #undos = new Map<number, Undo>();
  #next = 1;

  constructor(parts: BitmapServiceParts) {
    this.#parts = parts;
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<
    "bitmap-action" | "bitmap-settle" | "bitmap-content" | "bitmap-sha256"
  > = {
    "bitmap-action": async ({ action }) => {
      const undo = this.#next++;
      this.#undos.set(undo, await this.#run(action));
      return { undo };
    },
    "bitmap-settle": async ({ undo: number, keep }) => {
      const undo = this.#undos.get(number);
      assert(undo !== undefined, "an action is settled once");
      this.#undos.delete(number);
      if (keep) undo.keep();
      else undo.undo();
      return null;
    },
    "bitmap-content": async (place) => {
      const bitmap = this.#find(place);
      bitmap.checkUsable();
      return { content: bitmap.bits.content() };
    },
    "bitmap-sha256": async (place) => ({ sha256: this.#find(place).sha256() }),
  };

  /** Throws OutportError, and nothing has changed. */
  async #run(action: BitmapAction): Promise<Undo> {
    switch (action.type) {
      case "add":
        return this.#add(action);
      case "remove":
        return this.#remove(action);
      case "clear":
        return this.#clear(action);
      case "enable":
        return this.#enable(action, true);
      case "disable":
        return this.#enable(action, false);
      case "merge":
        return this.#merge(action);
    }
  }

  async #add(action: Action<"add">): Promise<Undo> {
    const { nodeName, name, granularity, persistent, enabled } = action;
    const node = this.#node(nodeName);
    if (persistent) {
      if (node.checkNewBitmap === undefined) {
        const text = `Can't store persistent bitmaps to ${nodeName}: Operation not supported`;
        throw new OutportError("unsupported", text);
      }
      await node.checkNewBitmap(name, granularity);
    }
    const bitmaps = bitmapsOf(node);
    const bitmap = new DirtyBitmap({ name, bytes: node.bytes, granularity, persistent, enabled });
    bitmaps.add(bitmap);
    return { keep: KEEP_NOTHING, undo: () => bitmaps.remove(bitmap) };
  }

  async #remove(action: BitmapPlace): Promise<Undo> {
    const bitmap = this.#find(action);
    const node = this.#node(action.nodeName);
    bitmap.checkIdle();
    if (bitmap.persistent && (!node.writable || isInactive(node))) {
      const access = `no write access to node '${action.nodeName}'`;
      const text = `Cannot remove persistent bitmap '${action.name}': ${access}`;
      throw new OutportError("permission", text);
    }
    // If it comes back, the image gets it again when it is closed.
    if (bitmap.persistent) await node.removeStoredBitmap?.(bitmap.name);
    // Nobody uses it from here on, whoever still finds it.
    bitmap.busy = true;
    return {
      keep: () => bitmapsOf(node).remove(bitmap),
      undo: () => {
        bitmap.busy = false;
      },
    };
  }

  #clear(action: BitmapPlace): Undo {
    const bitmap = this.#find(action);
    bitmap.checkWritable();
    return replaceBits(bitmap, new HBitmap(bitmap.bits.bytes, bitmap.bits.granularity));
  }

  #enable(action: BitmapPlace, enabled: boolean): Undo {
    const bitmap = this.#find(action);
    bitmap.checkUsable();
    const before = bitmap.enabled;
    bitmap.enabled = enabled;
    return {
      keep: KEEP_NOTHING,
      undo: () => {
        bitmap.enabled = before;
      },
    };
  }

  #merge(action: Action<"merge">): Undo {
    const bitmap = this.#find(action);
    const merged = HBitmap.from(bitmap.bits.content());
    for (const source of action.sources) {
      const bits = "content" in source ? HBitmap.from(source.content) : this.#source(source);
      bitmap.checkMergeable(bits);
      merged.merge(bits);
    }
    // QSD differs: it ends when there is nothing to merge.
    bitmap.checkWritable();
    return replaceBits(bitmap, merged);
  }

  #source(place: BitmapPlace): HBitmap {
    const bitmap = this.#find(place);
    bitmap.checkUsable();
    return bitmap.bits;
  }

  #find({ nodeName, name }: BitmapPlace): DirtyBitmap {
    return bitmapsOf(this.#node(nodeName)).get(name);
  }

  #node(nodeName: string): BlockNode {
    const node = this.#parts.findNode(nodeName);
    if (node !== undefined) return node;
    throw new OutportError("not-found", `Node '${nodeName}' not found`);
  }
}

function replaceBits(bitmap: DirtyBitmap, bits: HBitmap): Undo {
  const before = bitmap.bits;
  bitmap.bits = bits;
  return {
    keep: KEEP_NOTHING,
    undo: () => {
      bitmap.bits = before;
    },
  };
}
