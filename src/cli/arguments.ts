/**
 * Command-line arguments to options in their order, as getopt_long() reads them. Pure.
 * Spec: QEMU storage-daemon/qemu-storage-daemon.c process_options(); getopt(3)
 */
import { OutportError } from "../util/error.ts";

/** Every option; those that take an argument are true. */
const OPTIONS = {
  blockdev: true,
  chardev: true,
  export: true,
  help: false,
  monitor: true,
  "nbd-server": true,
  object: true,
  pidfile: true,
  version: false,
} as const;
export type OptionName = keyof typeof OPTIONS;

const LETTERS: Readonly<Record<string, OptionName>> = { h: "help", V: "version" };

export interface Option {
  readonly name: OptionName;
  /** Empty when the option takes none. */
  readonly value: string;
  /** As it was written, for messages. */
  readonly text: string;
}

/**
 * Yields options one by one: what comes before a mistake takes effect. Throws an OutportError
 * whose message is complete but for the program's name.
 */
export function* parseArguments(args: readonly string[]): Generator<Option> {
  const rest = [...args];
  for (let arg = rest.shift(); arg !== undefined; arg = rest.shift()) {
    if (arg === "--") arg = rest.shift() ?? "";
    else if (arg.startsWith("--")) {
      yield parseLong(arg, rest);
      continue;
    } else if (arg.startsWith("-") && arg.length > 1) {
      yield* parseLetters(arg);
      continue;
    }
    if (arg !== "") throw invalid(`${arg}: Unexpected argument`);
  }
}

function parseLong(arg: string, rest: string[]): Option {
  const [, given = "", , inline] = /^--([^=]*)(=(.*))?$/s.exec(arg) ?? [];
  const name = findOption(given);
  if (!OPTIONS[name]) {
    if (inline !== undefined) throw invalid(`option '--${name}' doesn't allow an argument`);
    return { name, value: "", text: arg };
  }
  const value = inline ?? rest.shift();
  if (value === undefined) throw invalid(`option '--${name}' requires an argument`);
  return { name, value, text: inline === undefined ? `${arg} ${value}` : arg };
}

function* parseLetters(arg: string): Generator<Option> {
  for (const letter of arg.slice(1)) {
    const name = Object.hasOwn(LETTERS, letter) ? LETTERS[letter] : undefined;
    if (name === undefined) throw invalid(`invalid option -- '${letter}'`);
    yield { name, value: "", text: arg };
  }
}

/** A unique beginning is enough. */
function findOption(given: string): OptionName {
  if (Object.hasOwn(OPTIONS, given)) return given as OptionName;
  const names = Object.keys(OPTIONS).filter((name) => name.startsWith(given)) as OptionName[];
  const [name, second] = names;
  if (name === undefined) throw invalid(`unrecognized option '--${given}'`);
  if (second === undefined) return name;
  const possibilities = names.map((each) => `'--${each}'`).join(" ");
  throw invalid(`option '--${given}' is ambiguous; possibilities: ${possibilities}`);
}

function invalid(message: string): OutportError {
  return new OutportError("invalid", message);
}
