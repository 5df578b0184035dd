/**
 * The composition root: builds everything from its tables, does the options in their order, and
 * ends in order. Thread: main.
 */

import { blockDrivers } from "./block/drivers/index.ts";
import { BlockGraph } from "./block/graph.ts";
import { type Option, parseArguments } from "./cli/arguments.ts";
import { Chardevs } from "./cli/chardevs.ts";
import { helpText, PROGRAM, versionText } from "./cli/help.ts";
import { applyOption } from "./cli/options.ts";
import { writePidfile } from "./cli/pidfile.ts";
import { exportTypes } from "./exports/index.ts";
import { ExportManager } from "./exports/manager.ts";
import { NbdServer } from "./exports/nbd/index.ts";
import { IothreadPool, MAIN_LOOP, MAIN_LOOP_POLL_MAX_NS } from "./iothread/pool.ts";
import { objectKinds } from "./objects/index.ts";
import { ObjectRegistry } from "./objects/registry.ts";
import { allCommands } from "./qmp/commands/index.ts";
import { Dispatcher } from "./qmp/dispatcher.ts";
import { EventHub } from "./qmp/events.ts";
import type { RuntimeDriver } from "./runtime/driver.ts";
import { Linux } from "./runtime/linux.ts";
import { OutportError } from "./util/error.ts";
import { makeLog } from "./util/log.ts";

/**
 * How long an orderly end may take: then a thread is taken to be stuck in the kernel. What clients
 * were told is written is in the host's page cache by then.
 */
const SHUTDOWN_GRACE_MS = 10_000;
/** How long the listening thread may then take to remove its sockets: it may be the stuck one. */
const UNLISTEN_GRACE_MS = 500;

export async function main(driver: RuntimeDriver): Promise<void> {
  const options = readArguments(driver);
  if (options === undefined) return;
  const daemon = new Daemon(driver);
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    driver.process.onSignal(signal, () => void daemon.shutDown(0));
  }
  await daemon.start(options);
}

/** Undefined when the arguments are answered or refused already. */
function readArguments(driver: RuntimeDriver): readonly Option[] | undefined {
  const { args, stdout, stderr, exit } = driver.process;
  const options: Option[] = [];
  try {
    for (const option of parseArguments(args)) {
      if (option.name === "help" || option.name === "version") {
        stdout(option.name === "help" ? helpText() : versionText());
        exit(0);
        return undefined;
      }
      options.push(option);
    }
    return options;
  } catch (error) {
    stderr(`${PROGRAM}: ${textOf(error)}\n`);
    exit(1);
    return undefined;
  }
}

/** Everything that a running outport is made of. */
class Daemon {
  #driver: RuntimeDriver;
  #log: ReturnType<typeof makeLog>;
  #linux: Linux;
  #iothreads: IothreadPool;
  #graph: BlockGraph;
  #nbdServer: NbdServer;
  #exports: ExportManager;
  #dispatcher: Dispatcher;
  #chardevs: Chardevs;
  #pidfile: string | undefined;
  #removePidfile: () => void = () => {};
  #isEnding = false;

  constructor(driver: RuntimeDriver) {
    this.#driver = driver;
    this.#log = makeLog(driver.stderr);
    this.#linux = new Linux(driver.ffi, driver.arch);
    const events = new EventHub(driver.clock.realTimeUs);
    const iothreads = new IothreadPool({
      driver,
      linux: this.#linux,
      engine: driver.env("OUTPORT_IO_ENGINE"),
      onCrash: (id, error) => this.#crash(id, error),
      log: this.#log,
    });
    const graph = new BlockGraph({ drivers: blockDrivers, iothreads });
    const nbdServer = new NbdServer({
      iothreads,
      resolve: driver.sockets.resolve,
      nodeExists: (nodeName) => graph.find(nodeName) !== undefined,
      closeExports: () => exports.closeAll("nbd"),
    });
    const types = exportTypes({ nbdServer });
    const exports = new ExportManager({
      graph,
      iothreads,
      types,
      emit: (event, data) => events.emit(event, data),
    });
    const objects = new ObjectRegistry(objectKinds({ iothreads }));
    this.#iothreads = iothreads;
    this.#graph = graph;
    this.#nbdServer = nbdServer;
    this.#exports = exports;
    this.#dispatcher = new Dispatcher(
      allCommands({
        graph,
        drivers: blockDrivers,
        exports,
        nbdServer,
        types,
        objects,
        quit: () => this.#quit(),
      }),
    );
    this.#chardevs = new Chardevs({
      driver,
      linux: this.#linux,
      dispatcher: this.#dispatcher,
      events,
      log: this.#log,
    });
  }

  /** Does the options; serves when it returns. A failing option ends the process. */
  async start(options: readonly Option[]): Promise<void> {
    let doing: Option | undefined;
    try {
      await this.#iothreads.start(MAIN_LOOP, { pollMaxNs: MAIN_LOOP_POLL_MAX_NS });
      for (const option of options) {
        if (this.#isEnding) return;
        doing = option;
        await applyOption(option, {
          dispatcher: this.#dispatcher,
          chardevs: this.#chardevs,
          setPidfile: (path) => {
            this.#pidfile = path;
          },
        });
      }
      doing = undefined;
      if (this.#isEnding) return;
      this.#writePidfile();
      this.#chardevs.start();
    } catch (error) {
      if (this.#isEnding) return;
      this.#log("error", doing === undefined ? textOf(error) : `${doing.text}: ${textOf(error)}`);
      await this.shutDown(1);
    }
  }

  /** Exports newest first, the NBD server, nodes with their data flushed, then what is main's. */
  async shutDown(code: number): Promise<void> {
    if (this.#isEnding) return;
    this.#isEnding = true;
    setTimeout(() => this.#leave(), SHUTDOWN_GRACE_MS);
    let exitCode = code;
    const steps = [
      () => this.#exports.closeAll(),
      () => (this.#nbdServer.running ? this.#nbdServer.stop() : undefined),
      () => this.#graph.closeAll(),
      () => this.#chardevs.closeAll(),
      () => this.#removePidfile(),
      () => this.#iothreads.stopAll(),
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

  /** Ends the process without what is stuck; only files that tell of it are removed before. */
  #leave(): void {
    this.#log("error", "an orderly end takes too long, leaving");
    const end = (): void => this.#driver.process.exitNow(1);
    setTimeout(end, UNLISTEN_GRACE_MS);
    this.#chardevs.closeAll();
    this.#removePidfile();
    // Past the exports that the server waits for.
    if (!this.#nbdServer.running) end();
    else this.#iothreads.get(MAIN_LOOP).call("nbd-server-stop", {}).then(end, end);
  }

  #writePidfile(): void {
    if (this.#pidfile === undefined) return;
    try {
      const remove = writePidfile(this.#linux, this.#pidfile, this.#driver.process.pid);
      this.#removePidfile = () => {
        // Once: by then the name may be another process's.
        this.#removePidfile = () => {};
        remove();
      };
    } catch (error) {
      throw new OutportError("io", `cannot create PID file: ${textOf(error)}`);
    }
  }

  /** The events of the exports precede the reply, and the reply precedes the end. */
  async #quit(): Promise<void> {
    await this.#exports.closeAll();
    setTimeout(() => void this.shutDown(0), 0);
  }

  #crash(id: string, error: Error): void {
    this.#driver.stderr(`${PROGRAM}: iothread '${id}' failed: ${error.stack ?? error.message}\n`);
    this.#chardevs.closeAll();
    this.#removePidfile();
    this.#driver.process.exitNow(1);
  }
}

function textOf(error: unknown): string {
  if (error instanceof OutportError) return error.message;
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
