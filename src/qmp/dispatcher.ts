/**
 * The one way to run a command: QMP, the command line and HTTP are its faces. Thread: main.
 * Commands run one at a time over all of them, in the order of their arrival.
 */
import { check, type InputMode } from "../qapi/check.ts";
import type { AnyCommand, CommandContext } from "../qapi/types.ts";
import { assert, OutportError } from "../util/error.ts";

export class Dispatcher {
  #commands = new Map<string, AnyCommand>();
  /** Ends with the last command given. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(commands: readonly AnyCommand[]) {
    for (const command of commands) {
      assert(!this.#commands.has(command.name), `one command ${command.name}`);
      this.#commands.set(command.name, command);
    }
  }

  get commands(): readonly AnyCommand[] {
    return [...this.#commands.values()];
  }

  /** Throws CommandNotFound. */
  find(name: string): AnyCommand {
    const command = this.#commands.get(name);
    if (command !== undefined) return command;
    const message = `The command ${name} has not been found`;
    throw new OutportError("not-found", message, { qapiClass: "CommandNotFound" });
  }

  /**
   * Checks the arguments, then waits for its turn and runs the command. Nothing has happened when
   * the check fails. Rejects with what the handler throws.
   */
  execute(
    name: string,
    args: unknown,
    context: CommandContext = {},
    mode: InputMode = "json",
  ): Promise<unknown> {
    const turn = this.#last.then(async () => {
      const command = this.find(name);
      return await command.handler(check(command.arguments, args, mode) as never, context);
    });
    this.#last = turn.catch(() => {});
    return turn;
  }
}
