/** The facts about lengths that all drivers share. Pure. Thread: any. */

/** Nodes are whole sectors, as the block layer counts. */
export const SECTOR_BYTES = 512;
/** Lengths stay exact as numbers, with room to round up. QSD differs: it takes 2^63 - 2^30. */
export const LENGTH_MAX = 2 ** 53 - 2 ** 30;

/** The length of a node whose driver reports `bytes`. */
export function nodeBytes(bytes: number): number {
  return Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES;
}
