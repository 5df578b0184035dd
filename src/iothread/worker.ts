/**
 * The composition root of an iothread: makes its reactor and what lives on it, serves main's
 * calls, and returns when main says stop. Thread: iothread.
 */

import { BitmapService } from "../bitmaps/service.ts";
import { Drains } from "../block/drains.ts";
import { blockDrivers } from "../block/drivers/index.ts";
import { ImageCreations } from "../block/image-creations.ts";
import type { BlockNode } from "../block/node.ts";
import { NodeControl } from "../block/node-control.ts";
import { infoOf, NodeTable } from "../block/nodes.ts";
import { ResizeRequests } from "../block/resize-requests.ts";
import { FuseService } from "../exports/fuse/service.ts";
import { NbdService } from "../exports/nbd/service.ts";
import { ExportRegistry } from "../exports/registry.ts";
import { VhostUserBlkService } from "../exports/vhost-user-blk/service.ts";
import { BufferPool } from "../io/buffers.ts";
import type { CompletionHandler } from "../io/engine.ts";
import { createEngine } from "../io/engines.ts";
import { Memory } from "../io/memory.ts";
import { OffloadPool } from "../io/offload.ts";
import { Reactor } from "../io/reactor.ts";
import type { ThreadDriver, ThreadStart } from "../runtime/driver.ts";
import { Linux } from "../runtime/linux.ts";
import { traceOutput } from "../runtime/text-file.ts";
import { componentLog, type Log } from "../util/log.ts";
import { type TraceState, trace, traceAs } from "../util/trace.ts";
import { serveCalls } from "./channel.ts";
import type { FromIothread, IothreadEvent, IothreadStart } from "./messages.ts";

/** Payloads in flight of one iothread. What does not fit waits in the sockets. */
const BUFFER_BYTES_MAX = 64 * 1024 * 1024;

export async function runIothread(driver: ThreadDriver, start: ThreadStart): Promise<void> {
  const options = start.data as IothreadStart;
  const send = (event: IothreadEvent): void => start.send({ event } satisfies FromIothread);
  const logOf = (component: string) =>
    componentLog(component, options.logLevel, (record) => send({ event: "log", record }));
  const log = logOf("iothread");

  const linux = new Linux(driver.ffi, driver.arch);
  const setTrace = (state: TraceState): void => traceAs(state, traceOutput(driver, linux));
  setTrace(options.trace);
  const reactor = makeReactor(driver, linux, options, (reason) => {
    log("warn", `iothread ${options.id}: epoll instead of io_uring: ${reason}`);
  });
  log("info", "I/O engine chosen", { iothread: options.id, engine: reactor.engine.name });
  if (trace.io_engine.enabled) trace.io_engine.write(`${options.id} ${reactor.engine.name}`);
  const blockLog = logOf("block");
  const nodes = new NodeTable({
    reactor,
    drivers: blockDrivers,
    log: (text) => blockLog("error", text),
    report: send,
  });
  const control = new NodeControl({
    reactor,
    getNode: (nodeName) => nodes.get(nodeName),
    infoOf,
    send,
  });
  const getNode = (nodeName: string) => nodes.get(nodeName);
  const creations = new ImageCreations({ reactor, drivers: blockDrivers, getNode });
  const bitmaps = new BitmapService({ findNode: (nodeName) => nodes.find(nodeName) });
  const drains = new Drains({ reactor, findNode: (nodeName) => nodes.find(nodeName) });
  const findNode = (nodeName: string) => nodes.get(nodeName);
  const { exports, nbd, resizes } = makeExports({ reactor, findNode, send, logOf });

  serveCalls(reactor, start, options.wakeFd, {
    ...nodes.calls,
    ...drains.calls,
    ...resizes.calls,
    ...control.calls,
    ...creations.calls,
    ...bitmaps.calls,
    ...exports.calls,
    ...nbd.calls,
    "polling-configure": async (parameters) => {
      reactor.polling.configure(parameters);
      return null;
    },
    "trace-set": async (state) => {
      setTrace(state);
      return null;
    },
    stop: async () => {
      await nbd.stop();
      await exports.closeAll();
      await nodes.closeAll();
      reactor.stop();
      return null;
    },
  });
  send({ event: "ready", engine: reactor.engine.name });
  try {
    await reactor.run();
  } finally {
    // Also after a failure: offload threads that wait in the kernel would keep this one there.
    reactor.engine.close();
  }
  // Not after a failure: operations may be in flight that write there.
  reactor.memory.unmap();
}

interface ExportsParts {
  readonly reactor: Reactor;
  readonly findNode: (nodeName: string) => BlockNode;
  readonly send: (event: IothreadEvent) => void;
  readonly logOf: (component: string) => Log;
}

function makeExports({ reactor, findNode, send, logOf }: ExportsParts) {
  const nbd = new NbdService({ reactor, findNode, send, log: logOf("nbd") });
  const vhostLog = logOf("vhost-user-blk");
  const vhostUserBlk = new VhostUserBlkService({ reactor, findNode, log: vhostLog });
  const resizes = new ResizeRequests({ reactor, send });
  const fuse = new FuseService({
    reactor,
    findNode,
    resizeNode: (nodeName, bytes, atLeast) => resizes.resize(nodeName, bytes, atLeast),
    send,
    log: logOf("fuse"),
  });
  return { exports: new ExportRegistry([nbd, vhostUserBlk, fuse]), nbd, resizes };
}

function makeReactor(
  driver: ThreadDriver,
  linux: Linux,
  options: IothreadStart,
  onFallback: (reason: string) => void,
): Reactor {
  const { nowNs } = driver.clock;
  const memory = new Memory(linux, BufferPool.reservedBytes(BUFFER_BYTES_MAX));
  const buffers = new BufferPool(memory, { bytesMax: BUFFER_BYTES_MAX });
  const handlers: CompletionHandler[] = [];
  const { engine, reason } = createEngine(options.engine, {
    linux,
    memory,
    handlers,
    offload: () => new OffloadPool({ linux, driver }),
    nowNs,
  });
  if (reason !== null) onFallback(reason);
  return new Reactor({
    linux,
    nowNs,
    memory,
    buffers,
    handlers,
    engine,
    polling: options,
    runMicrotasks: driver.runMicrotasks,
  });
}
