/**
 * The composition root of the main thread: builds everything from its tables. Thread: main.
 */

import { S_IFBLK, S_IFMT } from "./abi/linux.ts";
import { type BitmapChange, Bitmaps } from "./bitmaps/bitmaps.ts";
import { blockDrivers } from "./block/drivers/index.ts";
import { BlockGraph } from "./block/graph.ts";
import { announceCorruption } from "./block/image-corruption.ts";
import { BlockQueries } from "./block/queries.ts";
import { resizeNode, serveResizeRequests } from "./block/resize.ts";
import { Snapshots } from "./block/snapshots.ts";
import { runSteps, type Step } from "./block/transactions.ts";
import { WriteThresholds } from "./block/write-thresholds.ts";
import { Chardevs } from "./chardev/manager.ts";
import { FuseExports } from "./exports/fuse/index.ts";
import { makeMountSystem } from "./exports/fuse/mount-system.ts";
import { exportTypes } from "./exports/index.ts";
import { ExportManager } from "./exports/manager.ts";
import { NbdServer } from "./exports/nbd/index.ts";
import { IothreadPool } from "./iothread/pool.ts";
import { createJob } from "./jobs/create.ts";
import { JobTable } from "./jobs/job-table.ts";
import { chardevObjects, chardevTypes } from "./objects/chardevs.ts";
import { objectKinds } from "./objects/index.ts";
import type { MonitorSettings } from "./objects/monitor-qmp.ts";
import { QomTree } from "./objects/qom.ts";
import { ObjectRegistry } from "./objects/registry.ts";
import { check } from "./qapi/check.ts";
import type { BitmapParts } from "./qmp/commands/bitmaps.ts";
import { blockdevOptions } from "./qmp/commands/blockdev-options.ts";
import { allCommands, allEvents } from "./qmp/commands/index.ts";
import type { JobParts } from "./qmp/commands/jobs.ts";
import type { TransactionParts } from "./qmp/commands/transaction.ts";
import { Dispatcher } from "./qmp/dispatcher.ts";
import { EventHub } from "./qmp/events.ts";
import { parseJson } from "./qmp/json-stream.ts";
import { Monitor } from "./qmp/monitor.ts";
import type { RuntimeDriver } from "./runtime/driver.ts";
import type { Linux } from "./runtime/linux.ts";
import { statPlace } from "./runtime/linux-mount.ts";
import type { Logger } from "./util/log.ts";

export interface PartsOptions {
  readonly driver: RuntimeDriver;
  readonly linux: Linux;
  readonly logger: Logger;
  /** The process leaves its standard streams. */
  readonly background: boolean;
  readonly onCrash: (id: string, error: Error) => void;
  /** A monitor's client is gone. */
  readonly onMonitorClosed: (id: string, settings: Readonly<MonitorSettings>) => void;
  readonly quit: () => Promise<void>;
}

/** Of nodes that an image names. */
const imageOptions = blockdevOptions(blockDrivers);

/** Everything that a running outport is made of. */
export interface Parts {
  readonly events: EventHub<typeof allEvents>;
  readonly iothreads: IothreadPool;
  readonly graph: BlockGraph;
  readonly writeThresholds: WriteThresholds;
  readonly nbdServer: NbdServer;
  readonly fuse: FuseExports;
  readonly types: ReturnType<typeof exportTypes>;
  readonly exports: ExportManager;
  readonly jobs: JobTable;
  readonly chardevs: Chardevs;
  readonly objects: ObjectRegistry;
  readonly qom: QomTree;
  readonly dispatcher: Dispatcher;
}

/** Parts under construction: who needs a later one asks for it when it is called. */
type Unfinished = { -readonly [Name in keyof Parts]: Parts[Name] };

export function makeParts(options: PartsOptions): Parts {
  const parts = {} as Unfinished;
  const { driver, linux, logger, onCrash } = options;
  parts.events = new EventHub(allEvents, {
    realTimeUs: driver.clock.realTimeUs,
    setTimeout: (action, ms) => void setTimeout(action, ms),
  });
  const engine = driver.env("OUTPORT_IO_ENGINE");
  parts.iothreads = new IothreadPool({ driver, linux, engine, onCrash, logger });
  makeBlock(parts, options);
  makeExports(parts, options);
  parts.jobs = new JobTable({
    emit: (event, data) => parts.events.emit(event, data),
    log: logger.for("job"),
  });
  makeObjects(parts, options);
  parts.dispatcher = makeDispatcher(parts, options);
  return parts;
}

function makeBlock(parts: Unfinished, { logger }: PartsOptions): void {
  const { events, iothreads } = parts;
  parts.graph = new BlockGraph({
    drivers: blockDrivers,
    iothreads,
    findObject: (id) => parts.objects.find(id),
    servedDevices: () => parts.fuse.devices,
    checkOptions: (given) => check(imageOptions, given),
    log: logger.for("block"),
  });
  serveResizeRequests(parts.graph, iothreads);
  announceCorruption(iothreads, (event, data) => events.emit(event, data));
  parts.writeThresholds = new WriteThresholds({
    graph: parts.graph,
    iothreads,
    emit: (event, data) => events.emit(event, { ...data }),
  });
}

function makeExports(parts: Unfinished, { driver, linux, logger }: PartsOptions): void {
  const { events, iothreads, graph } = parts;
  parts.nbdServer = new NbdServer({
    iothreads,
    resolve: driver.sockets.resolve,
    graph,
    objectExists: (id) => parts.objects.find(id) !== undefined,
    closeExports: () => parts.exports.closeAll("nbd"),
  });
  parts.fuse = new FuseExports({
    system: makeMountSystem({ linux, driver }),
    iothreads,
    endExport: (id) => parts.exports.delete(id, "hard"),
    log: logger.for("fuse"),
  });
  parts.types = exportTypes({ nbdServer: parts.nbdServer, fuse: parts.fuse });
  parts.exports = new ExportManager({
    graph,
    iothreads,
    types: parts.types,
    emit: (event, data) => events.emit(event, data),
    log: logger.for("export"),
  });
}

function makeObjects(parts: Unfinished, options: PartsOptions): void {
  const { driver, linux, logger, background, onMonitorClosed } = options;
  const { events, iothreads } = parts;
  const chardevs = new Chardevs({
    driver,
    linux,
    background,
    log: logger.for("chardev"),
  });
  const monitorLog = logger.for("monitor");
  const makeMonitor = (id: string, settings: Readonly<MonitorSettings>): Monitor =>
    new Monitor({
      id,
      settings,
      dispatcher: parts.dispatcher,
      events,
      log: monitorLog,
      onClosed: () => onMonitorClosed(id, settings),
    });
  const log = logger.for("object");
  const kinds = objectKinds({ chardevs, makeMonitor, iothreads, linux, parseJson, log });
  const objects = new ObjectRegistry(kinds, log);
  parts.chardevs = chardevs;
  parts.objects = objects;
  parts.qom = new QomTree({
    kinds: objects.kinds,
    objects: () => objects.list(),
    chardevs: () => chardevObjects(chardevs.list()),
    types: chardevTypes,
  });
}

function makeDispatcher(parts: Unfinished, options: PartsOptions): Dispatcher {
  const { graph, writeThresholds, exports, nbdServer, types, objects, qom, chardevs } = parts;
  return new Dispatcher(
    allCommands({
      graph,
      drivers: blockDrivers,
      queries: new BlockQueries(graph),
      resize: (options) => resizeNode(graph, options),
      setWriteThreshold: (nodeName, offset) => writeThresholds.set(nodeName, offset),
      ...bitmapParts(graph),
      snapshots: makeSnapshots(parts, options),
      jobs: parts.jobs,
      createImage: imageJobs(parts),
      exports,
      nbdServer,
      types,
      objects,
      qom,
      chardevs,
      quit: options.quit,
    }),
  );
}

function makeSnapshots({ graph, fuse }: Parts, { driver, linux }: PartsOptions): Snapshots {
  return new Snapshots({
    graph,
    checkOptions: (given) => check(imageOptions, given),
    isBlockDevice: (path) => {
      const status = statPlace(linux, path);
      return typeof status !== "number" && (status.mode & S_IFMT) === S_IFBLK;
    },
    servedDevices: () => fuse.devices,
    realTimeUs: driver.clock.realTimeUs,
  });
}

/** Starts jobs that make images; who asked has to look at how they end. */
function imageJobs({ graph, iothreads, jobs, fuse, objects }: Parts): JobParts["createImage"] {
  const parts = {
    graph,
    iothreads,
    drivers: blockDrivers,
    servedDevices: () => fuse.devices,
    findSecret: (id: string) => objects.find(id),
  };
  const how = { autoFinalize: true, autoDismiss: false };
  return (id, options) => jobs.start(id, createJob(parts, options), how);
}

function bitmapParts(graph: BlockGraph): BitmapParts & Omit<TransactionParts, "snapshots"> {
  const bitmaps = new Bitmaps(graph);
  const bitmapStep =
    (change: BitmapChange): Step =>
    () =>
      bitmaps.change(change);
  return {
    bitmaps,
    bitmapStep,
    changeBitmap: (change) => runSteps(graph, () => bitmaps.nodesOf(change), [bitmapStep(change)]),
    runSteps: (steps) => runSteps(graph, () => graph.nodes, steps),
  };
}
