/**
 * --trace: which trace points are on, and where their lines go. Thread: main.
 * Spec: QEMU trace/control.c, util/log.c; docs/devel/tracing.rst
 */
import { O_APPEND, O_CREAT, O_RDONLY, O_TRUNC, O_WRONLY } from "../abi/linux.ts";
import { strerror } from "../runtime/errno.ts";
import { readFileContent } from "../runtime/file-content.ts";
import type { Linux } from "../runtime/linux.ts";
import { OutportError } from "../util/error.ts";
import type { Log, LogFacts, LogFormat } from "../util/log.ts";
import { matchTraceNames, type TraceState } from "../util/trace.ts";
import { TRACE_NAMES, type TraceName } from "../util/trace-names.ts";
import type { Option } from "./arguments.ts";
import type { Answer } from "./command-line.ts";
import { isHelp } from "./keyval.ts";
import { OptionError, warnOfShortForm } from "./option-error.ts";
import { parseQemuOptions, type QemuOptionList, qemuOptionsHelp } from "./qemu-options.ts";

const TRACE_OPTION: QemuOptionList = {
  name: "trace",
  impliedKey: "enable",
  keys: { enable: "str", events: "str", file: "str" },
};

/** Of a file that tracing makes. */
const MODE = 0o666;

export interface TracingParts {
  readonly linux: Linux;
  readonly log: Log;
  readonly format: LogFormat;
  /** Lets every thread trace that. */
  readonly apply: (state: TraceState) => Promise<void>;
}

export class Tracing {
  #parts: TracingParts;
  #enabled = new Set<TraceName>();
  #fd: number | null = null;

  constructor(parts: TracingParts) {
    this.#parts = parts;
  }

  /** The file that gets the lines. */
  get fd(): number | null {
    return this.#fd;
  }

  /** Does one --trace. Throws an OutportError. */
  async add({ value, text }: Option): Promise<Answer | undefined> {
    const { log } = this.#parts;
    const options = parseQemuOptions(value, TRACE_OPTION, warnOfShortForm(log, text));
    if (options === "help") return { text: qemuOptionsHelp(TRACE_OPTION), exitCode: 1 };
    const { enable, events, file } = options;
    if (enable !== undefined && isHelp(enable)) {
      return { text: `${TRACE_NAMES.join("\n")}\n`, exitCode: 0 };
    }
    if (enable !== undefined) this.#enable(enable, { option: text });
    if (events !== undefined) this.#readEvents(events);
    if (file !== undefined) this.#openFile(file);
    await this.#apply();
    return undefined;
  }

  async #apply(): Promise<void> {
    const { apply, format } = this.#parts;
    await apply({ enabled: [...this.#enabled], fd: this.#fd, format });
  }

  /** "-" before a pattern turns what it means off. A name without "*" should be one of a point. */
  #enable(given: string, place: LogFacts): void {
    const off = given.startsWith("-");
    const pattern = off ? given.slice(1) : given;
    const names = matchTraceNames(pattern);
    const single = !pattern.includes("*");
    if (single && names.length === 0) {
      this.#parts.log("warn", `trace event '${pattern}' does not exist`, place);
    }
    for (const name of single ? names.slice(0, 1) : names) {
      if (off) this.#enabled.delete(name);
      else this.#enabled.add(name);
    }
  }

  /** A file with a pattern per line. */
  #readEvents(path: string): void {
    const { linux } = this.#parts;
    const fd = linux.open(path, O_RDONLY);
    if (fd < 0) throw new OptionError("io", strerror(-fd), { file: path });
    linux.close(fd);
    const lines = new TextDecoder().decode(readFileContent(linux, path)).split("\n");
    for (const [index, line] of lines.entries()) {
      if (line === "" || line.startsWith("#")) continue;
      this.#enable(line, { file: `${path}:${index + 1}` });
    }
  }

  /** "%d" in the name stands for the process id. */
  #openFile(template: string): void {
    const { linux } = this.#parts;
    if (!/^[^%]*(%d[^%]*)?$/s.test(template)) {
      throw new OutportError("invalid", `Bad logfile template: ${template}`);
    }
    const path = template.replace("%d", String(linux.getpid()));
    const fd = linux.open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, MODE);
    if (fd < 0) throw new OutportError("io", `Error opening logfile ${path}: ${strerror(-fd)}`);
    // The one before stays open: a thread may be writing to it.
    this.#fd = fd;
  }
}
