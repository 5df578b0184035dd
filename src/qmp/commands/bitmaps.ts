/** Commands on dirty bitmaps. Thread: main. Spec: qapi/block-core.json */
import type { BitmapChange, Bitmaps } from "../../bitmaps/bitmaps.ts";
import {
  blockDirtyBitmap,
  blockDirtyBitmapAdd,
  blockDirtyBitmapMerge,
} from "../../qapi/bitmaps.ts";
import { defineCommand } from "../../qapi/define.ts";
import { doc, nothing, object, str } from "../../qapi/scalars.ts";
import type { AnyCommand } from "../../qapi/types.ts";

export interface BitmapParts {
  readonly bitmaps: Pick<Bitmaps, "sha256">;
  readonly changeBitmap: (change: BitmapChange) => Promise<void>;
}

const NOT_FOUND = "There is no such node or bitmap";
const IN_USE = "The bitmap is in use by an operation";
const INCONSISTENT = "The bitmap is inconsistent";

export function bitmapCommands({ bitmaps, changeBitmap }: BitmapParts): readonly AnyCommand[] {
  const simple = (
    type: "remove" | "clear" | "enable" | "disable",
    documentation: string,
    errors: readonly string[],
  ): AnyCommand =>
    defineCommand({
      name: `block-dirty-bitmap-${type}`,
      documentation,
      errors,
      arguments: blockDirtyBitmap,
      returns: nothing,
      async handler(data) {
        await changeBitmap({ type, data });
        return {};
      },
    });
  return [
    defineCommand({
      name: "block-dirty-bitmap-add",
      documentation: "Makes a dirty bitmap that tells what is written to a node from now on.",
      errors: [
        "There is no such node",
        "The name is taken, empty or too long",
        "The granularity is none",
        "The node can't store bitmaps",
      ],
      arguments: blockDirtyBitmapAdd,
      returns: nothing,
      async handler(data) {
        await changeBitmap({ type: "add", data });
        return {};
      },
    }),
    simple("remove", "Deletes a dirty bitmap, from the image, too.", [NOT_FOUND, IN_USE]),
    simple("clear", "Forgets all that a dirty bitmap has recorded.", [
      NOT_FOUND,
      IN_USE,
      INCONSISTENT,
    ]),
    simple("enable", "Lets writes mark a dirty bitmap.", [NOT_FOUND, IN_USE, INCONSISTENT]),
    simple("disable", "Lets writes no longer mark a dirty bitmap.", [
      NOT_FOUND,
      IN_USE,
      INCONSISTENT,
    ]),
    defineCommand({
      name: "block-dirty-bitmap-merge",
      documentation: "Marks in one dirty bitmap all that others have marked.",
      errors: [NOT_FOUND, IN_USE, INCONSISTENT, "The nodes have different lengths"],
      arguments: blockDirtyBitmapMerge,
      returns: nothing,
      async handler(data) {
        await changeBitmap({ type: "merge", data });
        return {};
      },
    }),
    defineCommand({
      name: "x-debug-block-dirty-bitmap-sha256",
      documentation: "Tells the SHA-256 of a dirty bitmap's bits.",
      errors: [NOT_FOUND],
      features: ["unstable"],
      arguments: blockDirtyBitmap,
      returns: object("BlockDirtyBitmapSha256", { sha256: doc(str, "In hexadecimal digits") }),
      handler: async (data) => ({ sha256: await bitmaps.sha256(data) }),
    }),
  ];
}
