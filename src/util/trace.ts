/**
 * Trace points: what outport does while it does it, for whoever looks for a fault. A point that is
 * off costs the test of its flag. Thread: any; each has flags of its own, set by traceAs().
 * Spec: QEMU docs/devel/tracing.rst, its log backend
 */
import { escapeControls, type LogFormat, toJson } from "./log.ts";
import { TRACE_NAMES, type TraceName } from "./trace-names.ts";

/** What is traced, and how it is written. Structured-cloneable. */
export interface TraceState {
  readonly enabled: readonly TraceName[];
  /** The file that gets the lines; null for stderr. */
  readonly fd: number | null;
  /** Of lines on stderr: they are one with the log's there. */
  readonly format: LogFormat;
}

/** How a thread writes lines. */
export interface TraceOutput {
  stderr(text: string): void;
  file(fd: number, text: string): void;
  realTimeUs(): number;
}

export class TracePoint {
  readonly name: TraceName;
  /** Test it before making the text. */
  enabled = false;

  constructor(name: TraceName) {
    this.name = name;
  }

  /** Only while it is enabled. */
  write(text: string): void {
    writeLine(this.name, text);
  }
}

/** Every point by its name. */
export const trace = Object.fromEntries(
  TRACE_NAMES.map((name) => [name, new TracePoint(name)]),
) as unknown as Readonly<Record<TraceName, TracePoint>>;

let writeLine: (name: TraceName, text: string) => void = () => {};

/** From now on this thread traces that. */
export function traceAs(state: TraceState, output: TraceOutput): void {
  const { fd, format } = state;
  writeLine = (name, text) => {
    const line = `${name} ${text}`;
    if (fd !== null) output.file(fd, `${escapeControls(line)}\n`);
    else if (format === "text") output.stderr(`${escapeControls(line)}\n`);
    else {
      const record = { level: "trace", component: "trace", message: line };
      output.stderr(`${toJson(record, output.realTimeUs())}\n`);
    }
  };
  const enabled = new Set(state.enabled);
  for (const name of TRACE_NAMES) trace[name].enabled = enabled.has(name);
}

/** The names that a pattern means, in which "*" stands for any text and "?" for any character. */
export function matchTraceNames(pattern: string): readonly TraceName[] {
  const source = pattern
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replace(/\*+/g, ".*")
    .replaceAll("?", ".");
  const matcher = new RegExp(`^${source}$`, "su");
  return TRACE_NAMES.filter((name) => matcher.test(name));
}
