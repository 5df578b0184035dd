/**
 * The one way to run a command: QMP, the command line and HTTP are its faces. Thread: main.
 * Commands run one at a time over all of them, in the order of their arrival.
 */
import { check, type InputMode } from "../qapi/check.ts";
import type { AnyCommand, CommandContext } from "../qapi/types.ts";
import { assert, OutportError } from "../util/error.ts";
import { trace } from "../util/trace.ts";
import { formatJson } from "./json-writer.ts";

/** What waits for its turn. Callbacks, no promises: most commands answer at once. */
interface Turn {
  readonly job: () => unknown;
  readonly onReturn: (value: unknown) => void;
  readonly onError: (error: unknown) => void;
}

export class Dispatcher {
  #commands = new Map<string, AnyCommand>();
  /** In order, the one that runs excluded. */
  #waiting: Turn[] = [];
  #running = false;
  #closed = false;

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
   * Waits for its turn, then checks the arguments and runs the command. Nothing has happened when
   * the check fails. Rejects with what the handler throws.
   */
  execute(
    name: string,
    args: unknown,
    context: CommandContext = {},
    mode: InputMode = "json",
  ): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.enqueue(() => this.run(name, args, context, mode), resolve, reject);
    });
  }

  /** `job` runs when all before it have ended, at once if there are none; may return a promise. */
  enqueue(
    job: () => unknown,
    onReturn: (value: unknown) => void,
    onError: (error: unknown) => void,
  ): void {
    this.#waiting.push({ job, onReturn, onError });
    if (!this.#running) this.#runWaiting();
  }

  /** At once, for those whose turn it is or who need none. Throws or rejects. */
  run(name: string, args: unknown, context: CommandContext, mode: InputMode = "json"): unknown {
    const command = this.find(name);
    if (trace.qmp_enter.enabled) trace.qmp_enter.write(`${name} ${formatJson(args)}`);
    const result = command.handler(check(command.arguments, args, mode) as never, context);
    if (trace.qmp_exit.enabled) traceResult(name, result);
    return result;
  }

  /** The process ends: no further command runs. */
  close(): void {
    this.#closed = true;
    this.#waiting = [];
  }

  #runWaiting(): void {
    this.#running = true;
    while (!this.#closed) {
      const turn = this.#waiting.shift();
      if (turn === undefined) break;
      let value: unknown;
      try {
        value = turn.job();
      } catch (error) {
        turn.onError(error);
        continue;
      }
      if (value instanceof Promise) {
        value.then(turn.onReturn, turn.onError).finally(() => this.#runWaiting());
        return;
      }
      turn.onReturn(value);
    }
    this.#running = false;
  }
}

function traceResult(name: string, result: unknown): void {
  const write = (value: unknown): void => trace.qmp_exit.write(`${name} ${formatJson(value)}`);
  if (result instanceof Promise) result.then(write, () => {});
  else write(result);
}
