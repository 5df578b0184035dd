/**
 * Command-line arguments to options in their order, as getopt_long() reads them. Pure.
 * Spec: QEMU storage-daemon/qemu-storage-daemon.c process_options(); getopt(3)
 */
import { invalid } from "../util/error.ts";

/** Every option; those that take an argument are true. The last five are outport's own. */
const OPTIONS = {
  blockdev: true,
  chardev: true,
  daemonize: false,
  export: true,
  help: false,
  monitor: true,
  "nbd-server": true,
  object: true,
  pidfile: true,
  trace: true,
  version: false,
  format: true,
  "log-format": true,
  "log-level": true,
  "read-only": false,
  socket: true,
} as const;
export type OptionName = keyof typeof OPTIONS;

const LETTERS: Readonly<Record<string, OptionName>> = { h: "help", T: "trace", V: "version" };

export interface Option {
  /**
   * "stray" is an argument that belongs to no option: a mistake when its turn comes, unless the
   * whole line is a quick start, of which it is the "image".
   */
  readonly name: OptionName | "stray" | "image";
  /** Empty when the option takes none. */
  readonly value: string;
  /** As it was written, for messages. */
  readonly text: string;
}

/**
 * Yields options one by one: what comes before a mistake takes effect. What comes after "--" is
 * ignored, as QSD does. Throws an OutportError whose message lacks the program's name only.
 */
export function* parseArguments(args: readonly string[]): Generator<Option> {
  const rest = [...args];
  for (let arg = rest.shift(); arg !== undefined; arg = rest.shift()) {
    if (arg === "--") return;
    if (arg.startsWith("--")) yield parseLong(arg, rest);
    else if (arg.startsWith("-") && arg.length > 1) yield* parseLetters(arg, rest);
    else yield { name: "stray", value: arg, text: arg };
  }
}

function parseLong(arg: string, rest: string[]): Option {
  const [, given = "", , inline] = /^--([^=]*)(=(.*))?$/s.exec(arg) ?? [];
  const name = findOption(given, arg);
  if (!OPTIONS[name]) {
    if (inline !== undefined) throw invalid(`option '--${name}' doesn't allow an argument`);
    return { name, value: "", text: arg };
  }
  const value = inline ?? rest.shift();
  if (value === undefined) throw invalid(`option '--${name}' requires an argument`);
  return { name, value, text: inline === undefined ? `${arg} ${value}` : arg };
}

/** Letters without an argument may be followed by more; one with an argument takes what remains. */
function* parseLetters(arg: string, rest: string[]): Generator<Option> {
  const letters = [...arg].slice(1);
  for (const [index, letter] of letters.entries()) {
    const name = Object.hasOwn(LETTERS, letter) ? LETTERS[letter] : undefined;
    if (name === undefined) throw invalid(`invalid option -- '${letter}'`);
    if (!OPTIONS[name]) {
      yield { name, value: "", text: arg };
      continue;
    }
    const joined = letters.slice(index + 1).join("");
    const value = joined === "" ? rest.shift() : joined;
    if (value === undefined) throw invalid(`option requires an argument -- '${letter}'`);
    yield { name, value, text: joined === "" ? `${arg} ${value}` : arg };
    return;
  }
}

/** A unique beginning is enough. */
function findOption(given: string, arg: string): OptionName {
  if (Object.hasOwn(OPTIONS, given)) return given as OptionName;
  const names = Object.keys(OPTIONS).filter((name) => name.startsWith(given)) as OptionName[];
  const [name, second] = names;
  if (name === undefined) throw invalid(`unrecognized option '${arg}'`);
  if (second === undefined) return name;
  const possibilities = names.map((each) => `'--${each}'`).join(" ");
  throw invalid(`option '${arg}' is ambiguous; possibilities: ${possibilities}`);
}
