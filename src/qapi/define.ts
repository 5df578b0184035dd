/** Definitions of commands, typed by their schemas. Pure. */
import type { GenericSchema, InferOutput } from "valibot";
import type { AnyCommand, Command } from "./types.ts";

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
