/**
 * The dirty bitmaps that an export offers as metadata contexts. They are busy as long as it does:
 * what clients read must stay. Thread: iothread.
 */
import type { DirtyBitmap } from "../../bitmaps/dirty-bitmap.ts";
import { bitmapsOf } from "../../bitmaps/node-bitmaps.ts";
import { isInactive } from "../../block/inactive-nodes.ts";
import type { BlockNode } from "../../block/node.ts";
import type { BitmapPlace } from "../../iothread/messages.ts";
import { OutportError } from "../../util/error.ts";
import type { BitmapRequest } from "./bitmap-requests.ts";

type FindNode = (nodeName: string) => BlockNode;

/** Where they are; each may be exported. Throws OutportError in QSD's words. */
export function placeBitmaps(
  requests: readonly BitmapRequest[],
  readOnly: boolean,
  findNode: FindNode,
): BitmapPlace[] {
  return requests.map(({ name, nodeNames, isLocal }) => {
    const node = nodeNames.map(findNode).find((one) => bitmapsOf(one).find(name) !== undefined);
    if (node === undefined) {
      const text = isLocal ? `Bitmap '${name}' is not found` : `Dirty bitmap '${name}' not found`;
      throw new OutportError("not-found", text);
    }
    const bitmap = bitmapsOf(node).get(name);
    if (isLocal && readOnly && node.writable && !isInactive(node) && bitmap.enabled) {
      const text = `Enabled bitmap '${name}' incompatible with readonly export`;
      throw new OutportError("invalid", text);
    }
    bitmap.checkUsable();
    return { nodeName: node.nodeName, name };
  });
}

export function bitmapsAt(places: readonly BitmapPlace[], findNode: FindNode): DirtyBitmap[] {
  return places.map(({ nodeName, name }) => bitmapsOf(findNode(nodeName)).get(name));
}
