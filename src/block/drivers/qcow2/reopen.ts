/** Other options and children for an open image. Thread: iothread; may suspend. */
import { bitmapsOf } from "../../../bitmaps/node-bitmaps.ts";
import { strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import type { OpenContext } from "../../driver.ts";
import type { BlockNode, ReopenedNode } from "../../node.ts";
import type { Image } from "./image.ts";
import { lockBitmaps } from "./node-bitmaps.ts";
import { openImage } from "./open.ts";

/** In a drained section. Throws OutportError, and nothing has changed. */
export async function reopenImage(
  node: BlockNode,
  image: Image,
  context: OpenContext,
  use: (image: Image) => void,
): Promise<ReopenedNode> {
  const { readOnly } = image.context;
  const result = await image.settle();
  if (result < 0) {
    throw new OutportError("io", `Failed to flush the L2 table cache: ${strerror(result)}`);
  }
  const hasBitmap = (name: string): boolean => bitmapsOf(node).find(name) !== undefined;
  const next = await openImage(context, image, hasBitmap);
  use(next);
  lockBitmaps(node, context.readOnly);
  return {
    commit: () => image.abandon(),
    undo: async () => {
      next.abandon();
      use(image);
      lockBitmaps(node, readOnly);
      if (readOnly && !context.readOnly) await endUse(next, image);
    },
  };
}

/** What opening the image for writing has changed, which comes to nothing. */
async function endUse(next: Image, { bitmaps, context }: Image): Promise<void> {
  const before = new Set(bitmaps.list.flatMap(({ name, isInUse }) => (isInUse ? [] : [name])));
  try {
    await next.bitmaps.setInUse(false, before);
  } catch (error) {
    context.log(`The stored bitmaps of node '${context.nodeName}' are inconsistent now: ${error}`);
  }
}
