/**
 * The first look at the command line: what is wrong with its form, what is answered before
 * anything starts, and what counts from the start wherever it stands. Pure.
 * Spec: QEMU storage-daemon/qemu-storage-daemon.c process_options() with pre_init_pass
 */
import { OutportError } from "../util/error.ts";
import { LOG_FORMATS, LOG_LEVELS, type LogFormat, type LogLevel } from "../util/log.ts";
import { type Option, parseArguments } from "./arguments.ts";
import { helpText, versionText } from "./help.ts";

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
  readonly logLevel: LogLevel;
  readonly logFormat: LogFormat;
}

/** Throws an OutportError whose message lacks the program's name only. */
export function readCommandLine(args: readonly string[]): CommandLine {
  const options: Option[] = [];
  const line = {
    options,
    daemonize: false,
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
      default:
        options.push(option);
    }
  }
  return line;
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
