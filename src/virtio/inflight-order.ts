/** The order in which chains are submitted again that an earlier back-end left in flight. */

/**
 * `counterOf` says when entry `index` was taken, or -1: not in flight. Returns those in flight,
 * oldest first, and the counter to go on with.
 */
export function orderByCounter(
  size: number,
  counterOf: (index: number) => number,
): { readonly indexes: Uint16Array; readonly next: number } {
  const found: { readonly index: number; readonly counter: number }[] = [];
  for (let index = 0; index < size; index++) {
    const counter = counterOf(index);
    if (counter >= 0) found.push({ index, counter });
  }
  found.sort((a, b) => a.counter - b.counter);
  const last = found.at(-1)?.counter ?? -1;
  return {
    indexes: Uint16Array.from(found, ({ index }) => index),
    // A counter that can't be ours is not counted on from.
    next: Number.isSafeInteger(last + 2 ** 52) ? last + 1 : found.length,
  };
}
