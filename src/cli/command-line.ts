/**
 * The first look at the command line: what is wrong with its form, what is answered before
 * anything starts, and what counts from the start wherever it stands. Pure.
 * Spec: QEMU storage-daemon/qemu-storage-daemon.c process_options() with pre_init_pass
 */
import { OutportError } from "../util/error.ts";
import { LOG_FORMATS, LOG_LEVELS, type LogFormat, type LogLevel } from "../util/log.ts";
import { type Option, parseArguments } from "./arguments.ts";
import { helpText, versionText } from "./help.ts";
import type { QuickStart } from "./quick-start.ts";

/** What ends the process instead of serving: shown on standard output. */
export interface Answer {
  readonly text: string;
  readonly exitCode: 0 | 1;
}

export interface CommandLine {
  /** Set: there is nothing else to do. */
  readonly answer?: Answer;
  /** What is done in its order. */
  readonly options: readonly Option[];
  readonly daemonize: boolean;
  /** How the image of a quick start is served. */
  readonly quickStart: QuickStart;
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
}

/** Throws an OutportError whose message lacks the program's name only. */
export function readCommandLine(args: readonly string[]): CommandLine {
  const options: Option[] = [];
  const own: Option[] = [];
  const line = {
    options,
    daemonize: false,
    quickStart: {} as { -readonly [Name in keyof QuickStart]: QuickStart[Name] },
    logLevel: "warn" as LogLevel,
    logFormat: "text" as LogFormat,
  };
  for (const option of parseArguments(args)) {
    switch (option.name) {
      case "help":
        return { ...line, answer: { text: helpText(), exitCode: 0 } };
      case "version":
        return { ...line, answer: { text: versionText(), exitCode: 0 } };
      case "daemonize":
        line.daemonize = true;
        break;
      case "log-level":
        line.logLevel = oneOf(LOG_LEVELS, option);
        break;
      case "log-format":
        line.logFormat = oneOf(LOG_FORMATS, option);
        break;
      case "format":
      case "socket":
        line.quickStart[option.name] = option.value;
        own.push(option);
        break;
      case "read-only":
        line.quickStart.readOnly = true;
        own.push(option);
        break;
      default:
        options.push(option);
    }
  }
  checkQuickStart(options, own);
  return line;
}

/** Names of options that build by hand what a quick start does by itself. */
const BY_HAND = ["blockdev", "export", "nbd-server", "object"];

/**
 * A lone argument is the image of a quick start, in a line that defines nothing by hand. `own`:
 * options that only a quick start has. Throws an OutportError.
 */
function checkQuickStart(options: Option[], own: readonly Option[]): void {
  const strays = options.filter(({ name }) => name === "stray");
  const [image] = strays;
  const isByHand = options.some(({ name }) => BY_HAND.includes(name));
  if (strays.length === 1 && image !== undefined && image.value !== "" && !isByHand) {
    options[options.indexOf(image)] = { ...image, name: "image" };
  } else if (own[0] !== undefined) {
    throw new OutportError("invalid", `${own[0].text}: Needs one image, and no nodes by hand`);
  }
}

function oneOf<Value extends string>(
  values: readonly Value[],
  { name, value, text }: Option,
): Value {
  const found = values.find((each) => each === value);
  if (found !== undefined) return found;
  const message = `${text}: Parameter '${name}' does not accept value '${value}'`;
  throw new OutportError("invalid", message);
}
