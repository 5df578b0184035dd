/**
 * What is put to the real qemu-storage-daemon and to outport alike: scenes of QMP exchanges and
 * single command lines.
 */

/** Words that end a comparison: why outport answers otherwise. It must then really do so. */
export type Reason = string;

export interface Step {
  /** Goes over the wire as it is; all replies up to that of the next command are one answer. */
  readonly text: string;
  readonly differs: Reason | undefined;
}

export interface Scene {
  readonly name: string;
  /** Before the options of the monitor. */
  readonly args?: readonly string[];
  /** The scene does the negotiation itself. */
  readonly greeting?: true;
  readonly steps: readonly Step[];
  /** Why the events or the exit status differ. */
  readonly differs?: Reason;
}

/** One command line that ends by itself: its exit status and what it prints. */
export interface CommandLine {
  readonly args: readonly string[];
  readonly differs?: Reason;
}

export function ask(command: string, args?: unknown, differs?: Reason): Step {
  const request = { execute: command, ...(args === undefined ? {} : { arguments: args }) };
  return { text: `${JSON.stringify(request)}\n`, differs };
}

/** Anything at all. It must leave the parser where a new value may begin. */
export function raw(text: string, differs?: Reason): Step {
  return { text, differs };
}

/**
 * The end of a command line that has to fail there: shows that what stands before it was taken.
 */
export const ENOUGH = ["--object", "nope"] as const;
