/** What the operator reads on stderr: one line per event worth knowing. Thread: any. */

export const LOG_LEVELS = ["error", "warn", "info", "debug"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export const LOG_FORMATS = ["text", "json"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

/**
 * What a line is about, beside its message. In the text form three have a place of their own, as
 * QSD has them: `option`, the command-line option at fault, and `file`, "path:line", come before
 * the message, `hint` on a line after it.
 */
export type LogFacts = Readonly<Record<string, string | number | boolean>>;

/** The log of one component. `message` is a sentence for the operator without its period. */
export type Log = (level: LogLevel, message: string, facts?: LogFacts) => void;

/** One line, before it is written. Structured-cloneable. */
export interface LogRecord {
  readonly level: LogLevel;
  /** "main", "monitor", "nbd", ... */
  readonly component: string;
  readonly message: string;
  readonly facts?: LogFacts;
}

const WORDS: Readonly<Record<LogLevel, string>> = {
  error: "",
  warn: "warning: ",
  info: "info: ",
  debug: "debug: ",
};

/** Whether `level` is at least as severe as `least`. */
export function isLogged(level: LogLevel, least: LogLevel): boolean {
  return LOG_LEVELS.indexOf(level) <= LOG_LEVELS.indexOf(least);
}

/** The component's log on top of a way to get rid of records that are severe enough. */
export function componentLog(
  component: string,
  least: LogLevel,
  write: (record: LogRecord) => void,
): Log {
  return (level, message, facts) => {
    if (!isLogged(level, least)) return;
    write({ level, component, message, ...(facts === undefined ? {} : { facts }) });
  };
}

export class Logger {
  readonly #write: (text: string) => void;
  readonly #realTimeUs: () => number;
  readonly level: LogLevel;
  readonly format: LogFormat;

  constructor(options: {
    readonly write: (text: string) => void;
    readonly realTimeUs: () => number;
    readonly level?: LogLevel;
    readonly format?: LogFormat;
  }) {
    this.#write = options.write;
    this.#realTimeUs = options.realTimeUs;
    this.level = options.level ?? "warn";
    this.format = options.format ?? "text";
  }

  /** For one component. */
  for(component: string): Log {
    return componentLog(component, this.level, (record) => this.write(record));
  }

  /** Whatever its level. */
  write(record: LogRecord): void {
    const line = this.format === "json" ? toJson(record, this.#realTimeUs()) : toText(record);
    this.#write(`${line}\n`);
  }
}

/**
 * "outport: text" for errors and "outport: warning: text" for warnings, as QSD has them;
 * "outport: info: component: text" for what QSD is silent about.
 */
function toText({ level, component, message, facts = {} }: LogRecord): string {
  const { option, file, hint, ...rest } = facts;
  const place = file === undefined ? "" : `:${file}`;
  const at = option === undefined ? "" : `${option}: `;
  const by = level === "info" || level === "debug" ? `${component}: ` : "";
  const tail = Object.entries(rest).map(([name, value]) => ` ${name}=${quote(value)}`);
  const line = `outport${place}: ${at}${WORDS[level]}${by}${message}${tail.join("")}`;
  return escapeControls(line) + (hint === undefined ? "" : `\n${escapeControls(String(hint))}`);
}

/** A value that could be taken for more than one fact stands in quotes. */
function quote(value: string | number | boolean): string {
  const text = String(value);
  return /^[^\s"=]+$/.test(text) ? text : JSON.stringify(text);
}

/** One object: time (RFC 3339), level, component, message, then the facts. */
export function toJson(
  record: Omit<LogRecord, "level"> & { readonly level: string },
  realTimeUs: number,
): string {
  const { level, component, message, facts = {} } = record;
  const time = new Date(realTimeUs / 1000).toISOString();
  const reserved = { time, level, component, message };
  return JSON.stringify({ ...reserved, ...facts, ...reserved }).replace(
    UNWANTED,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Controls, and what changes how a terminal shows the rest. All in the basic plane. */
const UNWANTED = /[\p{Cc}\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/gu;

/** One message is one line, whatever a peer managed to put into it. */
export function escapeControls(text: string): string {
  return text.replace(UNWANTED, (unit) => {
    const code = unit.charCodeAt(0);
    const digits = code.toString(16);
    return code < 0x100 ? `\\x${digits.padStart(2, "0")}` : `\\u${digits.padStart(4, "0")}`;
  });
}
