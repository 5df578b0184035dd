/**
 * The dirty bitmaps that an export is asked to offer, and its hold of the nodes that have them: a
 * node must not go while clients may ask for what was written to it. Thread: main.
 */
import type { BlockGraph, RootUse } from "../../block/graph.ts";
import { connectedNodes, type GraphNode } from "../../block/graph-node.ts";
import { PERM_ALL } from "../../block/node.ts";
import type { BlockDirtyBitmap } from "../../qapi/bitmaps.ts";
import { OutportError } from "../../util/error.ts";

export type BitmapGraph = Pick<BlockGraph, "find" | "attachRoot" | "detachRoot" | "exclusive">;

/** One member of `bitmaps`. */
export interface BitmapRequest {
  readonly name: string;
  /** Where it may be; the first node that has one counts. On the iothread of the export. */
  readonly nodeNames: readonly string[];
  /** Given by its name only. */
  readonly isLocal: boolean;
}

/** Throws OutportError. */
export function bitmapRequests(
  graph: BitmapGraph,
  exported: GraphNode,
  bitmaps: readonly (string | BlockDirtyBitmap)[],
): BitmapRequest[] {
  return bitmaps.map((bitmap) => {
    if (typeof bitmap === "string") {
      const nodeNames = chainOf(exported).map(({ nodeName }) => nodeName);
      return { name: bitmap, nodeNames, isLocal: true };
    }
    const { node: nodeName, name } = bitmap;
    const node = graph.find(nodeName);
    if (node === undefined) throw new OutportError("not-found", `Node '${nodeName}' not found`);
    if (node.iothread !== exported.iothread) {
      // QSD differs: its bitmaps belong to no thread.
      const text = `Bitmap '${name}' is in another iothread than node '${exported.nodeName}'`;
      throw new OutportError("unsupported", text);
    }
    return { name, nodeNames: [nodeName], isLocal: false };
  });
}

/** The node and those behind it, through filters and backing images. */
function chainOf(top: GraphNode): GraphNode[] {
  const chain = [top];
  for (let node: GraphNode | undefined = top; node !== undefined; ) {
    const role: string = node.driver.filtered ?? "backing";
    node = node.children.find((edge) => edge.role === role)?.child;
    if (node !== undefined) chain.push(node);
  }
  return chain;
}

/** What an export holds of nodes other than its own. */
export class BitmapHolds {
  #graph: BitmapGraph;
  #exp: { readonly node: GraphNode };
  #uses: RootUse[] = [];
  /** All of them. */
  #nodeNames: readonly string[] = [];

  constructor(graph: BitmapGraph, exp: { readonly node: GraphNode }) {
    this.#graph = graph;
    this.#exp = exp;
  }

  /** Inside exclusive(). Throws OutportError. */
  async hold(nodeNames: readonly string[]): Promise<void> {
    this.#nodeNames = nodeNames;
    const nodes = new Set(nodeNames.flatMap((name) => this.#graph.find(name) ?? []));
    nodes.delete(this.#exp.node);
    for (const node of nodes) await this.#hold(node);
  }

  /** The export's own node was this one. Inside exclusive(). */
  async holdFormer(node: GraphNode): Promise<void> {
    if (this.#nodeNames.includes(node.nodeName)) await this.#hold(node);
  }

  async #hold(node: GraphNode): Promise<void> {
    // It may move as long as the export moves along.
    const user = { beforeMove: async () => this.checkTogether(node) };
    const permissions = { used: 0, shared: PERM_ALL };
    this.#uses.push(await this.#graph.attachRoot(node, permissions, user));
  }

  /** Before a move of the exported node. Throws OutportError. */
  checkAllTogether(): void {
    for (const { child } of this.#uses) this.checkTogether(child);
  }

  checkTogether(node: GraphNode): void {
    if (connectedNodes(this.#exp.node).includes(node)) return;
    throw new OutportError("in-use", "Cannot change iothread of active block backend");
  }

  /** Inside exclusive(). */
  async release(): Promise<void> {
    for (const use of this.#uses.splice(0)) await this.#graph.detachRoot(use);
  }
}
