/** What an option says about itself beyond its message. Pure. */
import { type ErrorKind, OutportError } from "../util/error.ts";
import type { Log, LogFacts } from "../util/log.ts";
import type { OnShortForm } from "./qemu-options.ts";

/** What QSD advises after some messages. Spec: QEMU util/id.c, util/qemu-option.c */
const HINTS: Readonly<Record<string, string>> = {
  "Parameter 'id' expects an identifier":
    "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
};

/** An error whose place is not the option itself. */
export class OptionError extends OutportError {
  readonly place: LogFacts;

  constructor(kind: ErrorKind, message: string, place: LogFacts) {
    super(kind, message);
    this.place = place;
  }
}

/** Where an error of an option is, and what to do about it. */
export function factsOfFailure(error: unknown, optionText: string | undefined): LogFacts {
  const place = optionText === undefined ? {} : { option: withoutSecrets(optionText) };
  if (error instanceof OptionError) return error.place;
  if (!(error instanceof OutportError) || !Object.hasOwn(HINTS, error.message)) return place;
  return { ...place, hint: HINTS[error.message] as string };
}

/** QSD differs: it writes secrets to its log when there is something wrong with them. */
function withoutSecrets(optionText: string): string {
  return optionText.replace(/^(--o.*?\bdata\b).*/s, "$1...");
}

/** Tells of a bare word that stood for a switch. */
export function warnOfShortForm(log: Log, option: string): OnShortForm {
  return (word, meaning) => {
    const hint = `Please use ${meaning} instead`;
    log("warn", `short-form boolean option '${word}' deprecated`, { option, hint });
  };
}
