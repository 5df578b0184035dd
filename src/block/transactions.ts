/**
 * Several changes to the graph and what belongs to it: all of them take effect, or none.
 * Thread: main. Spec: qapi/transaction.json transaction
 */
import { OutportError } from "../util/error.ts";
import type { BlockGraph } from "./graph.ts";
import type { GraphNode } from "./graph-node.ts";
import { rollBack } from "./roll-back.ts";

/** A change that has taken effect and can still be taken back. Neither way fails. */
export interface Undo {
  keep(): Promise<void>;
  undo(): Promise<void>;
}

/** One change, inside exclusive() and a drained section. Throws OutportError. */
export type Step = () => Promise<Undo>;

/** Runs the steps in their order, with nothing in flight on `nodes`. Throws OutportError. */
export function runSteps(
  graph: BlockGraph,
  nodes: () => readonly GraphNode[],
  steps: readonly Step[],
): Promise<void> {
  return graph.exclusive(() =>
    graph.drained(nodes(), async () => {
      const done: Undo[] = [];
      try {
        for (const step of steps) done.push(await step());
      } catch (error) {
        await rollBack(done.reverse().map((one) => () => one.undo()));
        throw error;
      }
      for (const one of done) await one.keep();
    }),
  );
}

/** The action "abort". */
export const abortStep: Step = () => {
  throw new OutportError("invalid", "Transaction aborted using Abort action");
};
