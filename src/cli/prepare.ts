/** What happens before anything is made: questions, mistakes of form, --daemonize. Thread: main. */
import type { RuntimeDriver } from "../runtime/driver.ts";
import { type LogFormat, Logger, type LogLevel } from "../util/log.ts";
import { type CommandLine, readCommandLine } from "./command-line.ts";
import { isLauncher, launch } from "./daemonize.ts";

/** What is to be done; undefined when there is nothing left, and the process ends. */
export async function prepare(driver: RuntimeDriver): Promise<CommandLine | undefined> {
  const { args, stdout, exit } = driver.process;
  try {
    const line = readCommandLine(args);
    if (line.answer !== undefined) {
      stdout(line.answer.text);
      exit(line.answer.exitCode);
      return undefined;
    }
    if (!isLauncher(driver, line.daemonize)) return line;
    exit(await launch(driver.process));
  } catch (error) {
    makeLogger(driver).for("main")("error", (error as Error).message);
    exit(1);
  }
  return undefined;
}

export function makeLogger(
  driver: RuntimeDriver,
  {
    logLevel: level = "warn",
    logFormat: format = "text",
  }: {
    readonly logLevel?: LogLevel;
    readonly logFormat?: LogFormat;
  } = {},
): Logger {
  const { stderr, clock } = driver;
  return new Logger({ write: stderr, realTimeUs: clock.realTimeUs, level, format });
}
