/** Other options and children for an open image. Thread: iothread; may suspend. */
import { strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import type { OpenContext } from "../../driver.ts";
import type { ReopenedNode } from "../../node.ts";
import type { Image } from "./image.ts";
import { openImage } from "./open.ts";

/** In a drained section. Throws OutportError, and nothing has changed. */
export async function reopenImage(
  image: Image,
  context: OpenContext,
  use: (image: Image) => void,
): Promise<ReopenedNode> {
  const result = await image.settle();
  if (result < 0) {
    throw new OutportError("io", `Failed to flush the L2 table cache: ${strerror(result)}`);
  }
  const next = await openImage(context);
  use(next);
  return {
    commit: () => image.abandon(),
    undo: () => {
      next.abandon();
      use(image);
    },
  };
}
