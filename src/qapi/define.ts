/** Definitions of commands and events, typed by their schemas. Pure. */
import type { GenericSchema, InferOutput } from "valibot";
import type { AnyCommand, Command, QapiEvent } from "./types.ts";

/** A definition whose handler is checked against its schemas, as tables hold it. */
export function defineCommand<Arguments extends GenericSchema, Returns extends GenericSchema>(
  definition: Omit<
    Command<InferOutput<Arguments>, InferOutput<Returns>>,
    "arguments" | "returns"
  > & {
    readonly arguments: Arguments;
    readonly returns: Returns;
  },
): AnyCommand {
  return definition as unknown as AnyCommand;
}

/** A definition that keeps its name and the type of its data. */
export function defineEvent<const Name extends string, Data extends GenericSchema>(
  definition: QapiEvent<Name, Data>,
): QapiEvent<Name, Data> {
  return definition;
}
