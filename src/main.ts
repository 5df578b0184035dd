/**
 * The process from its start to its end: does the options in their order, serves, and ends in
 * order. Thread: main.
 */

import { blockDrivers } from "./block/drivers/index.ts";
import type { Option } from "./cli/arguments.ts";
import type { CommandLine } from "./cli/command-line.ts";
import { Background } from "./cli/daemonize.ts";
import { factsOfFailure } from "./cli/option-error.ts";
import { applyOption } from "./cli/options.ts";
import { writePidfile } from "./cli/pidfile.ts";
import { makeLogger, prepare } from "./cli/prepare.ts";
import { serveImage } from "./cli/quick-start.ts";
import { Tracing } from "./cli/tracing.ts";
import { MAIN_LOOP, MAIN_LOOP_POLL_MAX_NS } from "./iothread/pool.ts";
import type { MonitorSettings } from "./objects/monitor-qmp.ts";
import { makeParts, type Parts } from "./parts.ts";
import type { RuntimeDriver } from "./runtime/driver.ts";
import { Linux } from "./runtime/linux.ts";
import { traceOutput } from "./runtime/text-file.ts";
import { OutportError } from "./util/error.ts";
import type { Log } from "./util/log.ts";
import { traceAs } from "./util/trace.ts";
import { VERSION } from "./util/version.ts";

/** How long an orderly end may take without a word. */
const SHUTDOWN_GRACE_MS = 10_000;
/** Flushing much to a slow disk takes that long; a thread is stuck in the kernel then. */
const SHUTDOWN_MS_MAX = 120_000;
/** How long the listening thread may then take to remove its sockets: it may be the stuck one. */
const UNLISTEN_GRACE_MS = 500;

export async function main(driver: RuntimeDriver): Promise<void> {
  const line = await prepare(driver);
  if (line === undefined) return;
  const daemon = new Daemon(driver, line);
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    driver.process.onSignal(signal, () => daemon.end(signal));
  }
  await daemon.start();
}

/** Everything that a running outport is made of. */
class Daemon {
  #driver: RuntimeDriver;
  #line: CommandLine;
  #log: Log;
  #linux: Linux;
  #parts: Parts;
  #tracing: Tracing;
  #background: Background | undefined;
  #pidfile: string | undefined;
  #removePidfile: () => void = () => {};
  #monitorCount = 0;
  #isEnding = false;
  #endIsLimited = false;
  /** A signal is enough to leave. */
  #endIsLate = false;

  constructor(driver: RuntimeDriver, line: CommandLine) {
    this.#driver = driver;
    this.#line = line;
    this.#linux = new Linux(driver.ffi, driver.arch);
    const logger = makeLogger(driver, line);
    this.#log = logger.for("main");
    if (line.daemonize) this.#background = new Background(driver, this.#linux);
    this.#parts = makeParts({
      driver,
      linux: this.#linux,
      logger,
      background: line.daemonize,
      onCrash: (id, error) => this.#crash(id, error),
      onMonitorClosed: (id, settings) => this.#monitorClosed(id, settings),
      quit: () => this.#quit(),
    });
    const { iothreads } = this.#parts;
    this.#tracing = new Tracing({
      linux: this.#linux,
      log: this.#log,
      format: line.logFormat,
      apply: async (state) => {
        traceAs(state, traceOutput(driver, this.#linux));
        await iothreads.setTrace(state);
      },
    });
  }

  /** Does the options; serves when it returns. A failing option ends the process. */
  async start(): Promise<void> {
    let doing: Option | undefined;
    try {
      await this.#parts.iothreads.start(MAIN_LOOP, { pollMaxNs: MAIN_LOOP_POLL_MAX_NS });
      for (const option of this.#line.options) {
        if (this.#isEnding) return;
        doing = option;
        // Without its value, which may be a secret.
        this.#log("debug", `doing --${option.name}`);
        const answer = await applyOption(option, {
          dispatcher: this.#parts.dispatcher,
          chardevs: this.#parts.chardevs,
          tracing: this.#tracing,
          objectKinds: this.#parts.objects.kinds,
          log: this.#log,
          makeMonitorId: () => `compat_monitor${this.#monitorCount++}`,
          setPidfile: (path) => {
            this.#pidfile = path;
          },
          serveImage: (path) => this.#serveImage(path),
        });
        if (answer === undefined) continue;
        this.#driver.process.stdout(answer.text);
        await this.shutDown(answer.exitCode, "a question is answered");
        return;
      }
      doing = undefined;
      if (this.#isEnding) return;
      if (this.#pidfile !== undefined) {
        this.#removePidfile = writePidfile(this.#linux, this.#pidfile, this.#driver.process.pid);
      }
      this.#log("info", "ready", { pid: this.#driver.process.pid, version: VERSION });
      this.#background?.enter(this.#tracing.fd);
      this.#parts.chardevs.start();
    } catch (error) {
      if (this.#isEnding) return;
      this.#log("error", textOf(error), factsOfFailure(error, doing?.text));
      await this.shutDown(1, "an option failed");
    }
  }

  /** The quick start. */
  #serveImage(path: string): Promise<void> {
    const { process } = this.#driver;
    const folder = this.#driver.env("XDG_RUNTIME_DIR") || "/tmp";
    const parts = {
      dispatcher: this.#parts.dispatcher,
      drivers: blockDrivers,
      linux: this.#linux,
      log: this.#log,
      defaultSocket: `${folder}/outport-${process.pid}.sock`,
      print: (text: string) => process.stdout(text),
    };
    return serveImage(parts, path, this.#line.quickStart);
  }

  /** A signal says so, maybe not the first one. */
  end(signal: string): void {
    if (this.#endIsLate) this.#leave();
    else void this.shutDown(0, `got ${signal}`);
  }

  /** Exports newest first, jobs, the NBD server, flushed nodes, then what is main's. */
  async shutDown(code: number, why: string): Promise<void> {
    if (this.#isEnding) return;
    this.#isEnding = true;
    this.#parts.dispatcher.close();
    this.#log("info", `shutting down: ${why}`);
    this.#background?.leave();
    this.#limitEnd();
    let exitCode = code;
    const steps = [
      () => this.#parts.graph.endUnlocking(),
      () => this.#parts.exports.closeAll(),
      () => this.#parts.jobs.close(),
      () => (this.#parts.nbdServer.running ? this.#parts.nbdServer.stop() : undefined),
      () => this.#parts.fuse.close(),
      () => this.#parts.graph.closeAll(),
      () => this.#parts.chardevs.closeAll(),
      () => this.#removePidfile(),
      () => this.#parts.iothreads.stopAll(),
    ];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        this.#log("error", textOf(error));
        exitCode = 1;
      }
    }
    this.#driver.process.exit(exitCode);
  }

  /** Says when the end takes long, and at last ends it. */
  #limitEnd(): void {
    if (this.#endIsLimited) return;
    this.#endIsLimited = true;
    setTimeout(() => {
      this.#endIsLate = true;
      const seconds = (SHUTDOWN_MS_MAX - SHUTDOWN_GRACE_MS) / 1000;
      const how = `waiting ${seconds} s more, unless told again by a signal`;
      this.#log("warn", `an orderly end takes long: ${how}`);
    }, SHUTDOWN_GRACE_MS);
    setTimeout(() => this.#leave(), SHUTDOWN_MS_MAX);
  }

  /** Ends the process without what is stuck; only files that tell of it are removed before. */
  #leave(): void {
    this.#log("error", "leaving without an orderly end");
    const end = (): void => this.#driver.process.exitNow(1);
    setTimeout(end, UNLISTEN_GRACE_MS);
    this.#parts.fuse.abort();
    this.#parts.chardevs.closeAll();
    this.#removePidfile();
    // Past the exports that the server waits for.
    if (!this.#parts.nbdServer.running) end();
    else this.#parts.iothreads.get(MAIN_LOOP).call("nbd-server-stop", {}).then(end, end);
  }

  /** The events of exports and jobs precede the reply, and the reply precedes the end. */
  async #quit(): Promise<void> {
    this.#parts.dispatcher.close();
    this.#limitEnd();
    try {
      await this.#parts.exports.closeAll();
      await this.#parts.jobs.close();
    } finally {
      setTimeout(() => void this.shutDown(0, "told to quit"), 0);
    }
  }

  /** Deleting it has to wait for its turn, as every command. */
  #monitorClosed(id: string, settings: Readonly<MonitorSettings>): void {
    if (settings["close-action"] !== "delete" || this.#isEnding) return;
    // Somebody else may have deleted it by then.
    this.#parts.dispatcher.execute("object-del", { id }).catch(() => {});
  }

  #crash(id: string, error: Error): void {
    const report = `iothread '${id}' failed: ${error.stack ?? error.message}`;
    for (const line of report.split("\n")) this.#log("error", line);
    this.#background?.leave();
    this.#parts.fuse.abort();
    this.#parts.chardevs.closeAll();
    this.#removePidfile();
    this.#driver.process.exitNow(1);
  }
}

function textOf(error: unknown): string {
  if (error instanceof OutportError) return error.message;
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
