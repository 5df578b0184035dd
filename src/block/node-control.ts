/**
 * What main asks of single open nodes beyond opening and permissions: their statistics, a new
 * length, a write threshold. Thread: iothread.
 */
import { bitmapsOf } from "../bitmaps/node-bitmaps.ts";
import type { Reactor } from "../io/reactor.ts";
import type { IothreadEvent, IothreadHandlersOf, NodeInfo } from "../iothread/messages.ts";
import { assert } from "../util/error.ts";
import type { BlockNode } from "./node.ts";
import { statisticsOf } from "./statistics.ts";
import { truncateNode } from "./truncate.ts";
import { setWriteThreshold, writeThresholdOf } from "./write-threshold.ts";

export interface NodeControlParts {
  readonly reactor: Reactor;
  /** Of an open node. */
  readonly getNode: (nodeName: string) => BlockNode;
  readonly infoOf: (node: BlockNode) => NodeInfo;
  readonly send: (event: IothreadEvent) => void;
}

type NodeControlCalls =
  | "nodes-statistics"
  | "node-truncate"
  | "node-write-threshold"
  | "node-history"
  | "node-history-restore";

export class NodeControl {
  #parts: NodeControlParts;

  constructor(parts: NodeControlParts) {
    this.#parts = parts;
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<NodeControlCalls> = {
    "nodes-statistics": async ({ nodeNames }) => {
      const nowNs = this.#parts.reactor.nowNs();
      return nodeNames.map((name) => {
        const node = this.#parts.getNode(name);
        return {
          stats: statisticsOf(node).describe(nowNs, node.highestWrite ?? 0),
          driverSpecific: node.describeStatistics?.() ?? null,
        };
      });
    },
    "node-truncate": async ({ nodeName, bytes, atLeast, connected }) => {
      const nodes = connected.map((name) => this.#parts.getNode(name));
      const node = this.#parts.getNode(nodeName);
      if (atLeast !== true || node.bytes < bytes) await truncateNode(node, bytes);
      for (const node of nodes) node.refreshLength?.();
      return nodes.map((node) => this.#parts.infoOf(node));
    },
    "node-write-threshold": async ({ nodeName, offset }) => {
      this.#watch(this.#parts.getNode(nodeName), offset);
      return null;
    },
    "node-history": async ({ nodeName }) => {
      const node = this.#parts.getNode(nodeName);
      const writeThreshold = writeThresholdOf(node);
      const saved = statisticsOf(node).save(this.#parts.reactor.nowNs());
      const highestWrite = Math.max(saved.highestWrite, node.highestWrite ?? 0);
      const statistics = { ...saved, highestWrite };
      const bitmaps = bitmapsOf(node).save();
      return { handedOver: node.handOver?.(), statistics, writeThreshold, bitmaps };
    },
    "node-history-restore": async ({ nodeName, history }) => {
      const node = this.#parts.getNode(nodeName);
      statisticsOf(node).restore(history.statistics, this.#parts.reactor.nowNs());
      this.#watch(node, history.writeThreshold);
      bitmapsOf(node).restore(history.bitmaps);
      return null;
    },
  };

  #watch(node: BlockNode, offset: number): void {
    setWriteThreshold(node, offset, (amountExceeded) => {
      const { nodeName } = node;
      assert(amountExceeded > 0, "a threshold is told of when a write is beyond it");
      const event = "write-threshold";
      this.#parts.send({ event, nodeName, amountExceeded, writeThreshold: offset });
    });
  }
}
