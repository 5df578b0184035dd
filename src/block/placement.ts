/**
 * Where the nodes of a command live: trees that become one must be in one iothread. They move back
 * when the command fails. Thread: main.
 */
import type { Iothread } from "../iothread/pool.ts";
import { connectedNodes, type GraphNode, isRootUsed } from "./graph-node.ts";
import { rollBack } from "./roll-back.ts";

type Move = (node: GraphNode, iothread: Iothread) => Promise<void>;

/** Of one command. */
export class Placement {
  #move: Move;
  #moved: { readonly node: GraphNode; readonly home: Iothread }[] = [];

  constructor(move: Move) {
    this.#move = move;
  }

  /** Brings the nodes together, where one is in use if any is; `otherwise` when there is none. */
  async gather(nodes: readonly GraphNode[], otherwise: Iothread): Promise<Iothread> {
    const used = nodes.find((node) => connectedNodes(node).some(isRootUsed));
    const place = (used ?? nodes[0])?.iothread ?? otherwise;
    for (const node of nodes) await this.#moveTo(node, place);
    return place;
  }

  /** The child goes where the node is; or the node to the child, if the child can't. */
  async join(node: GraphNode, child: GraphNode): Promise<void> {
    try {
      await this.#moveTo(child, node.iothread);
    } catch {
      await this.#moveTo(node, child.iothread);
    }
  }

  /** After a failure. */
  async undo(): Promise<void> {
    const moved = this.#moved.reverse();
    await rollBack(moved.map((one) => () => this.#move(one.node, one.home)));
  }

  async #moveTo(node: GraphNode, iothread: Iothread): Promise<void> {
    const home = node.iothread;
    if (home === iothread) return;
    await this.#move(node, iothread);
    this.#moved.push({ node, home });
  }
}
