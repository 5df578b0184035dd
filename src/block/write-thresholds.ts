/**
 * Write thresholds as main sees them: set on a node's iothread, told of by an event.
 * Thread: main. Spec: qapi/block-core.json block-set-write-threshold, BLOCK_WRITE_THRESHOLD
 */
import type { Iothreads } from "../iothread/pool.ts";
import { OutportError } from "../util/error.ts";
import type { BlockGraph } from "./graph.ts";

/** Data of BLOCK_WRITE_THRESHOLD. */
export interface BlockWriteThreshold {
  readonly "node-name": string;
  readonly "amount-exceeded": number;
  readonly "write-threshold": number;
}

export interface WriteThresholdsParts {
  readonly graph: BlockGraph;
  readonly iothreads: Iothreads;
  readonly emit: (event: "BLOCK_WRITE_THRESHOLD", data: BlockWriteThreshold) => void;
}

export class WriteThresholds {
  #graph: BlockGraph;

  constructor({ graph, iothreads, emit }: WriteThresholdsParts) {
    this.#graph = graph;
    iothreads.onEvent((_iothread, event) => {
      if (event.event !== "write-threshold") return;
      const { nodeName, amountExceeded, writeThreshold } = event;
      const node = graph.find(nodeName);
      // A new one may have been set while the event was on its way.
      if (node?.writeThreshold === writeThreshold) node.writeThreshold = 0;
      emit("BLOCK_WRITE_THRESHOLD", {
        "node-name": nodeName,
        "amount-exceeded": amountExceeded,
        "write-threshold": writeThreshold,
      });
    });
  }

  /** block-set-write-threshold. `offset` 0: none. */
  set(nodeName: string, offset: number): Promise<void> {
    return this.#graph.exclusive(async () => {
      const node = this.#graph.find(nodeName);
      if (node === undefined) throw new OutportError("not-found", `Device '${nodeName}' not found`);
      const before = node.writeThreshold;
      node.writeThreshold = offset;
      try {
        await node.iothread.call("node-write-threshold", { nodeName, offset });
      } catch (error) {
        node.writeThreshold = before;
        throw error;
      }
    });
  }
}
