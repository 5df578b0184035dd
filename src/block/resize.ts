/** Giving a node a new length. Thread: main. Spec: qapi/block-core.json block_resize */
import { OutportError } from "../util/error.ts";
import type { BlockGraph } from "./graph.ts";
import { connectedNodes, type GraphNode } from "./graph-node.ts";
import { PERM_ALL, PERM_RESIZE } from "./node.ts";

export interface ResizeOptions {
  /** A named device, of which there are none. */
  readonly device?: string | undefined;
  readonly "node-name"?: string | undefined;
  /** Bytes. */
  readonly size: number;
}

/** Throws OutportError in QSD's words; all is as before then. */
export function resizeNode(graph: BlockGraph, options: ResizeOptions): Promise<void> {
  const { device = "", "node-name": nodeName, size } = options;
  return graph.exclusive(async () => {
    const node = nodeName === undefined ? undefined : graph.find(nodeName);
    if (node === undefined) {
      const text = `Cannot find device='${device}' nor node-name='${nodeName ?? ""}'`;
      throw new OutportError("not-found", text);
    }
    if (size < 0) throw new OutportError("invalid", "Parameter 'size' expects a >0 size");
    const use = await graph.attachRoot(node, { used: PERM_RESIZE, shared: PERM_ALL });
    try {
      await graph.drained([node], () => truncate(node, size));
    } finally {
      await graph.detachRoot(use);
    }
  });
}

/** Nodes above follow, and so do nodes below with what else stands on them. */
async function truncate(node: GraphNode, bytes: number): Promise<void> {
  const { nodeName, iothread } = node;
  const connected = connectedNodes(node).reverse();
  const names = connected.map((one) => one.nodeName);
  const infos = await iothread.call("node-truncate", { nodeName, bytes, connected: names });
  for (const [i, info] of infos.entries()) connected[i]!.info = info;
}
