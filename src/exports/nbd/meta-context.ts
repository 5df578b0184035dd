/**
 * Metadata contexts: which of them an export offers and which of these a client's queries name.
 * Thread: iothread.
 *
 * Spec: NBD proto.md "Metadata querying"; QEMU docs/interop/nbd.rst
 */

/** `id` goes into block status replies. */
export interface NbdMetaContext {
  readonly id: number;
  readonly name: string;
}

/** NBD_STATE_HOLE and NBD_STATE_ZERO of each extent. */
export const BASE_ALLOCATION: NbdMetaContext = { id: 0, name: "base:allocation" };
/** How many layers deep an extent is allocated: 0 nowhere, 1 in the exported node itself. */
export const ALLOCATION_DEPTH: NbdMetaContext = { id: 1, name: "qemu:allocation-depth" };

/** The contexts of dirty bitmaps are numbered from here on. */
export const FIRST_BITMAP_ID = 2;

export function bitmapContext(index: number, name: string): NbdMetaContext {
  return { id: FIRST_BITMAP_ID + index, name: `qemu:dirty-bitmap:${name}` };
}

/** Queries that a list may end in; they select all that begins like them. */
const WILDCARDS: readonly string[] = ["base:", "qemu:", "qemu:dirty-bitmap:"];

/**
 * Adds to `selected` the positions in `offered` that `query` names. Unknown names and namespaces
 * select nothing; wildcards count in lists only.
 */
export function selectContexts(
  offered: readonly NbdMetaContext[],
  query: string,
  listing: boolean,
  selected: Set<number>,
): void {
  if (WILDCARDS.includes(query)) {
    if (!listing) return;
    for (const [index, context] of offered.entries()) {
      if (context.name.startsWith(query)) selected.add(index);
    }
    return;
  }
  const index = offered.findIndex((context) => context.name === query);
  if (index >= 0) selected.add(index);
}
