/** Drained sections as main sees them. Thread: main. */
import type { Iothread } from "../iothread/pool.ts";
import { trace } from "../util/trace.ts";
import { connectedNodes, type GraphNode } from "./graph-node.ts";

/**
 * Runs `task` while no request is in flight on `nodes` and all that is connected with them, and
 * none starts. They go on afterwards, whatever happens. `task` may move or close the nodes.
 */
export async function drained<T>(nodes: readonly GraphNode[], task: () => Promise<T>): Promise<T> {
  const sections: { readonly iothread: Iothread; readonly section: number }[] = [];
  try {
    for (const [iothread, nodeNames] of connectedByIothread(nodes)) {
      if (trace.bdrv_drained_begin.enabled) {
        trace.bdrv_drained_begin.write(`iothread ${iothread.id} nodes ${nodeNames.join(" ")}`);
      }
      const { section } = await iothread.call("nodes-drain", { nodeNames });
      sections.push({ iothread, section });
    }
    return await task();
  } finally {
    for (const { iothread, section } of sections.reverse()) {
      await iothread.call("nodes-resume", { section });
      if (trace.bdrv_drained_end.enabled) trace.bdrv_drained_end.write(`iothread ${iothread.id}`);
    }
  }
}

function connectedByIothread(nodes: readonly GraphNode[]): Map<Iothread, string[]> {
  const all = new Set(nodes.flatMap(connectedNodes));
  const byIothread = new Map<Iothread, string[]>();
  for (const { iothread, nodeName } of all) {
    const names = byIothread.get(iothread);
    if (names === undefined) byIothread.set(iothread, [nodeName]);
    else names.push(nodeName);
  }
  return byIothread;
}
