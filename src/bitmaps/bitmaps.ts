/**
 * The commands on dirty bitmaps. The bitmaps live with their nodes, on iothreads. Thread: main.
 * Spec: qapi/block-core.json block-dirty-bitmap-add, -remove, -clear, -enable, -disable, -merge,
 * x-debug-block-dirty-bitmap-sha256
 */
import type { BlockGraph } from "../block/graph.ts";
import type { GraphNode } from "../block/graph-node.ts";
import { imageFacts } from "../block/queries.ts";
import type { Undo } from "../block/transactions.ts";
import type { BitmapAction, BitmapMergeSource, BitmapPlace } from "../iothread/messages.ts";
import type {
  BlockDirtyBitmap,
  BlockDirtyBitmapAdd,
  BlockDirtyBitmapMerge,
} from "../qapi/bitmaps.ts";
import { OutportError } from "../util/error.ts";
import { GRANULARITY_MIN } from "./hbitmap.ts";

/** Of nodes without clusters; of others, the most that their clusters give, and the least. */
const GRANULARITY_DEFAULT = 65_536;
const GRANULARITY_OF_CLUSTERS_MIN = 4096;

/** An action of a transaction, wire names; checked against its schema. */
export type BitmapChange =
  | { readonly type: "add"; readonly data: BlockDirtyBitmapAdd }
  | { readonly type: "remove" | "clear" | "enable" | "disable"; readonly data: BlockDirtyBitmap }
  | { readonly type: "merge"; readonly data: BlockDirtyBitmapMerge };

export class Bitmaps {
  #graph: BlockGraph;

  constructor(graph: BlockGraph) {
    this.#graph = graph;
  }

  /** The nodes that a change concerns, as far as they exist. */
  nodesOf({ data }: BitmapChange): GraphNode[] {
    const names = [data.node];
    if ("bitmaps" in data) {
      for (const source of data.bitmaps) if (typeof source !== "string") names.push(source.node);
    }
    return names.flatMap((name) => this.#graph.find(name) ?? []);
  }

  /** Inside exclusive() and a drained section. Throws OutportError, and nothing has changed. */
  async change(change: BitmapChange): Promise<Undo> {
    if (change.type === "add") return this.#act(this.#addAction(change.data));
    const { data } = change;
    const node = this.#node(data.node);
    if (change.type === "merge") return this.#act(await this.#mergeAction(node, change.data));
    const { name } = change.data;
    return this.#act({ type: change.type, nodeName: data.node, name });
  }

  /** x-debug-block-dirty-bitmap-sha256 */
  sha256({ node: nodeName, name }: BlockDirtyBitmap): Promise<string> {
    return this.#graph.exclusive(async () => {
      const { iothread } = this.#node(nodeName);
      return (await iothread.call("bitmap-sha256", { nodeName, name })).sha256;
    });
  }

  async #act(action: BitmapAction): Promise<Undo> {
    const { iothread } = this.#node(action.nodeName);
    const { undo } = await iothread.call("bitmap-action", { action });
    const settle = async (keep: boolean): Promise<void> => {
      await iothread.call("bitmap-settle", { undo, keep });
    };
    return { keep: () => settle(true), undo: () => settle(false) };
  }

  #addAction(options: BlockDirtyBitmapAdd): BitmapAction {
    const { node: nodeName, name, persistent = false, disabled = false } = options;
    if (name === "") throw new OutportError("invalid", "Bitmap name cannot be empty");
    const node = this.#graph.find(nodeName);
    if (node === undefined) {
      const text = `Cannot find device='${nodeName}' nor node-name='${nodeName}'`;
      throw new OutportError("not-found", text);
    }
    const granularity = options.granularity ?? defaultGranularity(node);
    if (granularity < GRANULARITY_MIN || !Number.isInteger(Math.log2(granularity))) {
      const text = "Granularity must be power of 2 and at least 512";
      throw new OutportError("invalid", text);
    }
    if (persistent && !(node.info.writable && node.active)) {
      const text = `Cannot add a persistent bitmap to read-only or inactive node '${nodeName}'`;
      throw new OutportError("permission", text);
    }
    return { type: "add", nodeName, name, granularity, persistent, enabled: !disabled };
  }

  async #mergeAction(node: GraphNode, options: BlockDirtyBitmapMerge): Promise<BitmapAction> {
    const sources: BitmapMergeSource[] = [];
    for (const source of options.bitmaps) {
      const place: BitmapPlace =
        typeof source === "string"
          ? { nodeName: options.node, name: source }
          : { nodeName: source.node, name: source.name };
      const other = this.#graph.find(place.nodeName)?.iothread ?? node.iothread;
      const isHere = other === node.iothread;
      sources.push(isHere ? place : await other.call("bitmap-content", place));
    }
    return { type: "merge", nodeName: options.node, name: options.target, sources };
  }

  #node(nodeName: string): GraphNode {
    const node = this.#graph.find(nodeName);
    if (node !== undefined) return node;
    throw new OutportError("not-found", `Node '${nodeName}' not found`);
  }
}

/** As QSD chooses it: a cluster, where there are such and they are of a middling size. */
function defaultGranularity(node: GraphNode): number {
  const clusterBytes = imageFacts(node)["cluster-size"];
  if (clusterBytes === undefined) return GRANULARITY_DEFAULT;
  return Math.min(GRANULARITY_DEFAULT, Math.max(clusterBytes, GRANULARITY_OF_CLUSTERS_MIN));
}
