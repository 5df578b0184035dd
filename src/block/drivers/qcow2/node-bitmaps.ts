/**
 * The dirty bitmaps of an image's node that the image keeps: in memory while it is open, in the
 * image otherwise. Thread: iothread; everything async may suspend.
 */
import { bitmapsOf, fitBitmaps } from "../../../bitmaps/node-bitmaps.ts";
import { OutportError } from "../../../util/error.ts";
import type { BlockNode } from "../../node.ts";
import type { Image } from "./image.ts";

/** Those that opening the image has loaded are the node's. */
export function adoptBitmaps(node: BlockNode, image: Image): void {
  for (const bitmap of image.bitmaps.takeLoaded()) bitmapsOf(node).add(bitmap);
}

/** Nothing is in flight. Throws OutportError. */
export async function storeBitmaps(node: BlockNode, image: Image): Promise<void> {
  if (!image.isWritable) return;
  fitBitmaps(node);
  const ours = bitmapsOf(node).list.filter(
    ({ persistent, inconsistent, readOnly }) => persistent && !inconsistent && !readOnly,
  );
  if (ours.length > 0) await image.bitmaps.store(ours);
}

/**
 * Another process may have the image next: returns what ends that the stored ones are the node's,
 * too. Throws OutportError.
 */
export async function handBitmapsOver(node: BlockNode, image: Image): Promise<() => void> {
  const bitmaps = bitmapsOf(node);
  const stored = bitmaps.list.filter(({ persistent, inconsistent }) => persistent && !inconsistent);
  // QSD differs: it dies of a busy one.
  for (const bitmap of stored) bitmap.checkIdle();
  await storeBitmaps(node, image);
  return () => {
    for (const bitmap of stored) bitmaps.remove(bitmap);
  };
}

/**
 * They are in use again: they go on recording. Neither fails; but when the disk can't be told,
 * nobody may write what the stored ones would miss.
 */
export async function takeBitmapsBack(image: Image): Promise<void> {
  const { context, bitmaps } = image;
  if (!image.isWritable) return;
  try {
    await bitmaps.setInUse(true);
  } catch (error) {
    image.isBroken = true;
    context.log(`Node '${context.nodeName}' can't be written to any more: ${error}`);
  }
}

/** They may be changed, or not. */
export function lockBitmaps(node: BlockNode, readOnly: boolean): void {
  for (const bitmap of bitmapsOf(node).list) if (bitmap.persistent) bitmap.readOnly = readOnly;
}

/** Throws OutportError. */
export function checkNewBitmap(
  node: BlockNode,
  image: Image,
  name: string,
  granularity: number,
): void {
  const bitmaps = bitmapsOf(node);
  bitmaps.checkFree(name);
  const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
  const others = bitmaps.list.filter(({ persistent }) => persistent);
  try {
    image.bitmaps.checkNew(
      encode(name),
      granularity,
      others.map((other) => encode(other.name)),
    );
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    const what = `Can't make bitmap '${name}' persistent in '${node.nodeName}'`;
    throw new OutportError(error.kind, `${what}: ${error.message}`);
  }
}

/** Before the disk gets another length. Throws OutportError. */
export function checkResizable(node: BlockNode, image: Image): void {
  for (const { name } of image.bitmaps.list) {
    const bitmap = bitmapsOf(node).find(name);
    if (bitmap === undefined) {
      const what = "Cannot resize qcow2 with persistent bitmaps";
      throw new OutportError("unsupported", `${what} that were not loaded into memory`);
    }
    bitmap.checkWritable();
  }
}
