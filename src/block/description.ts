/**
 * What a node tells of itself for query-named-block-nodes, and the facts about lengths that all
 * drivers share. Thread: iothread.
 * Spec: qapi/block-core.json BlockDeviceInfo, ImageInfo
 */
import type { OpenContext } from "./driver.ts";
import type { BlockNode } from "./node.ts";

/** Nodes are whole sectors, as the block layer counts. */
export const SECTOR_BYTES = 512;
/** Lengths stay exact as numbers, with room to round up. QSD differs: it takes 2^63 - 2^30. */
export const LENGTH_MAX = 2 ** 53 - 2 ** 30;
const PAGE_BYTES = 4096;
const IOV_MAX = 1024;

/** The length of a node whose driver reports `bytes`. */
export function nodeBytes(bytes: number): number {
  return Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;
}

/** The file name of a node that no file name describes. */
export function jsonFilename(driver: string, options: Readonly<Record<string, unknown>>): string {
  return `json:${JSON.stringify({ driver, ...options })}`;
}

/** What describeNode() can't see from outside. */
export interface ImageFacts {
  readonly filename: string;
  readonly actualBytes?: number;
  /** Members of ImageInfo beyond the common ones. */
  readonly image?: Readonly<Record<string, unknown>>;
  /** Members of BlockLimitsInfo beyond or instead of the common ones. */
  readonly limits?: Readonly<Record<string, unknown>>;
}

/** Members of BlockDeviceInfo but node-name, children and those about throttling. */
export function describeNode(
  node: BlockNode,
  context: OpenContext,
  facts: ImageFacts,
): Record<string, unknown> {
  return {
    file: facts.filename,
    drv: node.driver,
    ro: !node.writable,
    encrypted: false,
    detect_zeroes: context.detectZeroes,
    backing_file_depth: 0,
    cache: { writeback: true, direct: context.cacheDirect, "no-flush": context.cacheNoFlush },
    image: {
      filename: facts.filename,
      format: node.driver,
      "virtual-size": node.bytes,
      "actual-size": facts.actualBytes ?? 0,
      limits: {
        "request-alignment": node.limits.requestAlignment,
        "min-mem-alignment": node.limits.memoryAlignment,
        "opt-mem-alignment": Math.max(node.limits.memoryAlignment, PAGE_BYTES),
        "max-iov": IOV_MAX,
        ...facts.limits,
      },
      ...facts.image,
    },
  };
}
