/** What requests to a qcow2 node must keep to: what those below it ask for. Thread: iothread. */
import { SECTOR_BYTES } from "../../../crypto/xts.ts";
import type { BlockLimits, BlockNode } from "../../node.ts";
import type { Image } from "./image.ts";

export function limitsOf({ file, dataFile, backing, encryption, layout }: Image): BlockLimits {
  const nodes: BlockNode[] = [file.node];
  if (dataFile !== null) nodes.push(dataFile.node);
  if (backing !== null) nodes.push(backing.node);
  const limits = nodes.map((node) => node.limits);
  return {
    requestAlignment: Math.max(
      encryption === null ? 1 : SECTOR_BYTES,
      ...limits.map((one) => one.requestAlignment),
    ),
    memoryAlignment: Math.max(...limits.map((one) => one.memoryAlignment)),
    transferBytesMax: Math.min(...limits.map((one) => one.transferBytesMax)),
    // What covers a cluster only in part is left alone, but for the last one: see discardGuest().
    discardAlignment: 1,
    clusterBytes: layout.clusterBytes,
  };
}
