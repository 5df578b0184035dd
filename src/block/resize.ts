/** Giving a node a new length. Thread: main. Spec: qapi/block-core.json block_resize */
import type { IothreadEvent } from "../iothread/messages.ts";
import type { Iothreads } from "../iothread/pool.ts";
import { EINVAL, EIO, ENOSPC, ENOTSUP, EPERM, ESTALE } from "../runtime/errno.ts";
import { type ErrorKind, OutportError } from "../util/error.ts";
import type { BlockGraph } from "./graph.ts";
import { connectedNodes, type Edge, type GraphNode } from "./graph-node.ts";
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

type ResizeRequest = Extract<IothreadEvent, { event: "node-resize" }>;

/** What a failure to resize is to a client of an export. */
const ERRORS: Partial<Record<ErrorKind, number>> = {
  invalid: -EINVAL,
  limit: -ENOSPC,
  permission: -EPERM,
  unsupported: -ENOTSUP,
};

function mayResize({ parent, permissions }: Edge): boolean {
  return parent === null && (permissions.used & PERM_RESIZE) !== 0;
}

/**
 * Serves the events "node-resize": those who ask have the permission to resize. -ESTALE: not of
 * this node, any more.
 */
export function serveResizeRequests(graph: BlockGraph, iothreads: Iothreads): void {
  const resize = ({ nodeName, bytes, atLeast }: ResizeRequest): Promise<number> =>
    graph.exclusive(async () => {
      const node = graph.find(nodeName);
      if (node === undefined) return -EIO;
      // Another node has taken its place meanwhile.
      if (!node.parents.some(mayResize)) return -ESTALE;
      try {
        await graph.drained([node], () => truncate(node, bytes, atLeast));
        return 0;
      } catch (error) {
        if (error instanceof OutportError) return ERRORS[error.kind] ?? -EIO;
        throw error;
      }
    });
  iothreads.onEvent(async (iothread, event) => {
    if (event.event !== "node-resize") return;
    const { request } = event;
    const result = await resize(event);
    // A thread that has ended meanwhile asks for nothing any more.
    await iothread.call("node-resized", { request, result }).catch(() => {});
  });
}

/**
 * Nodes above follow, and so do nodes below with what else stands on them. `atLeast`: only if it
 * grows. In a drained section, by somebody with the permission. Throws OutportError.
 */
export async function truncate(node: GraphNode, bytes: number, atLeast = false): Promise<void> {
  const { nodeName, iothread } = node;
  const connected = connectedNodes(node).reverse();
  const names = connected.map((one) => one.nodeName);
  const params = { nodeName, bytes, connected: names };
  const infos = await iothread.call("node-truncate", atLeast ? { ...params, atLeast } : params);
  for (const [i, info] of infos.entries()) connected[i]!.info = info;
}
