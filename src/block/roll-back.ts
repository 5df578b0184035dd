/** Undoing what a failed command did so far. Pure. Thread: any. */

/**
 * Takes the steps, whatever becomes of each. None of them fails but with its thread, whose end is
 * the process's; until then the graph on main must fit together, and the first error be told.
 */
export async function rollBack(steps: Iterable<() => Promise<unknown>>): Promise<void> {
  for (const step of steps) await step().catch(() => {});
}
