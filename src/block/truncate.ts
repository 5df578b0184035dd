/**
 * Giving a node a new length, also one that another node relies on for its own. In a drained
 * section. Thread: iothread. Spec: QEMU block/io.c bdrv_co_truncate()
 */
import { fitBitmaps } from "../bitmaps/node-bitmaps.ts";
import { OutportError } from "../util/error.ts";
import type { BlockNode } from "./node.ts";

/** Throws OutportError, and nothing has changed. */
export async function truncateNode(node: BlockNode, bytes: number): Promise<void> {
  if (!node.writable) throw new OutportError("permission", "Image is read-only");
  if (node.truncate === undefined) {
    throw new OutportError("unsupported", "Image format driver does not support resize");
  }
  await node.truncate(bytes);
  // What grows outside of a drained section is written to at once.
  fitBitmaps(node);
}
