/**
 * The hot loops of the data plane: nanoseconds per request and, where the runtime can tell, bytes
 * that JavaScript allocated for it. The first argument names one loop, as each is compiled for what
 * it met before in its process; prints JSON for main.ts.
 */

import { POLLIN } from "../../src/abi/linux.ts";
import { NBD_CMD_READ } from "../../src/abi/nbd.ts";
import { file } from "../../src/block/drivers/file/index.ts";
import { blockDrivers } from "../../src/block/drivers/index.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import { ImageCreations } from "../../src/block/image-creations.ts";
import { MAPPED, OP_READ, PERM_ALL, type Resolution } from "../../src/block/node.ts";
import { writeDataHeader, writeSimpleReply } from "../../src/exports/nbd/replies.ts";
import {
  decodeRequest,
  type RequestHeader,
  type RequestRules,
  refusalOf,
} from "../../src/exports/nbd/request.ts";
import { makeToken } from "../../src/io/engine.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { openContext } from "../support/block.ts";
import { GiB, MiB, sparseImage, temporaryDirectory } from "../support/images.ts";
import { request } from "../support/nbd-wire.ts";
import { type ImageFiles, openQcow2 } from "../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../support/reactor.ts";

export interface Measure {
  readonly name: string;
  readonly ns: number;
  /** Null where the runtime does not count allocations exactly. */
  readonly bytes: number | null;
}

export type LoopName =
  | "ring"
  | "nbd-simple"
  | "nbd-structured"
  | "nbd-extended"
  | "nbd-mixed"
  | "resolve"
  | "qcow2"
  | "overlay";

interface HotLoop {
  readonly name: string;
  /** Does about this many requests; returns how many. */
  run(count: number): number;
}

const BATCH = 64;
const BLOCK_BYTES = 4096;
const QCOW2_BYTES = GiB;

/** Polls a readable eventfd: the ring's own cost with the kernel's least. */
function ringLoop(reactor: Reactor): HotLoop {
  const { engine, linux } = reactor;
  const fd = linux.eventfd(1);
  let reaped = 0;
  const kind = reactor.register(() => {
    reaped++;
  });
  return {
    name: `${engine.name}: submit and reap, ${BATCH} at a time`,
    run(count) {
      reaped = 0;
      while (reaped < count) {
        const wanted = reaped + BATCH;
        for (let slot = 0; slot < BATCH; slot++) engine.poll(fd, POLLIN, makeToken(kind, slot));
        while (reaped < wanted) engine.wait(Infinity);
      }
      return reaped;
    },
  };
}

type Mode = RequestRules["mode"];

/** What the connection does for a read besides I/O: parse, check, write the reply's header. */
function nbdLoop(reactor: Reactor, modes: readonly Mode[]): HotLoop {
  const { view, u8 } = reactor.memory;
  const replyAt = reactor.buffers.allocate(BLOCK_BYTES);
  const header: RequestHeader = { flags: 0, type: 0, cookie0: 0, cookie1: 0, offset: 0, bytes: 0 };
  const clients = modes.map((mode) => {
    const at = reactor.buffers.allocate(BLOCK_BYTES);
    const fields = { type: NBD_CMD_READ, cookie: 7, offset: 65_536, length: BLOCK_BYTES };
    u8.set(request(fields, mode === "extended"), at);
    const rules: RequestRules = { mode, exportBytes: MiB, readOnly: false };
    return { at, rules, extended: mode === "extended", simple: mode === "simple" };
  });
  const serve = ({ at, rules, extended, simple }: (typeof clients)[number]) => {
    const decoded = decodeRequest(view, at, extended, header);
    const good = decoded && refusalOf(header, rules, false) === null;
    if (simple) writeSimpleReply(view, replyAt, header, 0);
    else writeDataHeader(view, replyAt, extended, header, true, header.offset, header.bytes);
    return good;
  };
  return {
    name: `NBD ${modes.join(", ")}: parse, check, reply's header`,
    run(count) {
      for (let i = 0; i < count; i++) {
        if (!serve(clients[i % clients.length]!)) throw new Error("a request was refused");
      }
      return count;
    },
  };
}

async function resolveLoop(reactor: Reactor, filename: string): Promise<HotLoop> {
  const open = (name: string, some: Parameters<typeof openContext>[1]) => {
    const driver = blockDrivers.find((each) => each.name === name);
    if (driver === undefined) throw new Error(`no block driver ${name}`);
    return runOn(reactor, () => driver.open(openContext(reactor, some)));
  };
  const file = await open("file", { options: { filename } });
  const raw = await open("raw", { children: { file } });
  const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
  return {
    name: "raw over file: resolve",
    run(count) {
      let bytes = 0;
      for (let i = 0; i < count; i++) {
        raw.resolve(OP_READ, (i & 127) * BLOCK_BYTES, BLOCK_BYTES, out);
        bytes += out.bytes;
      }
      if (bytes !== count * BLOCK_BYTES) throw new Error("a range was not mapped");
      return count;
    },
  };
}

/** A new image whose clusters all have their place, or on a backing file, none. */
async function createQcow2(
  reactor: Reactor,
  filename: string,
  some: Readonly<Record<string, unknown>>,
): Promise<void> {
  const options = { size: QCOW2_BYTES, ...some };
  const { file: plan } = qcow2.creation!.plan!(options, ["file"]);
  await sparseImage(filename, plan!.bytes);
  const node = await runOn(reactor, () =>
    file.open(openContext(reactor, { options: { filename } })),
  );
  await runOn(reactor, () => node.setPermissions(PERM_ALL, PERM_ALL));
  const { calls } = new ImageCreations({ reactor, drivers: [qcow2], getNode: () => node });
  const target = { nodeName: node.nodeName, filename };
  await runOn(reactor, () =>
    calls["image-create"]({
      ...{ jobId: "create", driver: "qcow2", options },
      ...{ targets: { file: target }, servedDevices: [] },
    }),
  );
  await runOn(reactor, () => node.close());
}

/** Random reads of allocated clusters, through `layers` of which the lowest has them all. */
async function qcow2Loop(reactor: Reactor, directory: string, layers: 1 | 2): Promise<HotLoop> {
  const path = `${directory}/base.qcow2`;
  await createQcow2(reactor, path, { preallocation: "metadata" });
  let files: ImageFiles = { path };
  if (layers === 2) {
    const top = `${directory}/top.qcow2`;
    await createQcow2(reactor, top, { "backing-file": path, "backing-fmt": "qcow2" });
    files = { path: top, backing: { path, format: "qcow2" } };
  }
  const { node, backend } = await openQcow2(reactor, files);
  const buffer = reactor.memory.address + reactor.buffers.allocate(BLOCK_BYTES);
  for (let at = 0; at < QCOW2_BYTES; at += MiB) {
    await runOn(reactor, () => backend.request(OP_READ, at, BLOCK_BYTES, buffer, 0));
  }
  const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
  return {
    name: `qcow2, ${layers} layer${layers === 1 ? "" : "s"}: resolve a random block`,
    run(count) {
      let at = 1;
      for (let i = 0; i < count; i++) {
        at = (at * 5 + 3) & (QCOW2_BYTES / BLOCK_BYTES - 1);
        const kind = node.resolve(OP_READ, at * BLOCK_BYTES, BLOCK_BYTES, out);
        if (kind !== MAPPED) throw new Error("a range was not mapped");
      }
      return count;
    },
  };
}

const WARM_REQUESTS = 200_000;
const TIMED_REQUESTS = 1_000_000;
const TIMED_ROUNDS = 5;
const COUNTED_REQUESTS = 100_000;
const countsAllocations = "Deno" in globalThis;

/** The best of several rounds: what disturbs only adds. */
function measure(loop: HotLoop): Measure {
  loop.run(WARM_REQUESTS);
  let ns = Number.POSITIVE_INFINITY;
  for (let round = 0; round < TIMED_ROUNDS; round++) {
    const start = performance.now();
    const count = loop.run(TIMED_REQUESTS / TIMED_ROUNDS);
    ns = Math.min(ns, ((performance.now() - start) * 1e6) / count);
  }
  const bytes = countsAllocations ? allocatedBytes(loop) : null;
  return { name: loop.name, ns, bytes };
}

function allocatedBytes(loop: HotLoop): number {
  const idle = heapGrowth(() => 1);
  const busy = heapGrowth(() => loop.run(COUNTED_REQUESTS));
  return Math.max(0, busy - idle) / COUNTED_REQUESTS;
}

function heapGrowth(action: () => number): number {
  const before = process.memoryUsage().heapUsed;
  action();
  return process.memoryUsage().heapUsed - before;
}

await using directory = await temporaryDirectory();
await sparseImage(directory.file("disk.raw"), MiB);
const reactor = makeReactor("io_uring");
const makers: Record<LoopName, () => HotLoop | Promise<HotLoop>> = {
  ring: () => ringLoop(reactor),
  "nbd-simple": () => nbdLoop(reactor, ["simple"]),
  "nbd-structured": () => nbdLoop(reactor, ["structured"]),
  "nbd-extended": () => nbdLoop(reactor, ["extended"]),
  "nbd-mixed": () => nbdLoop(reactor, ["simple", "structured", "extended"]),
  resolve: () => resolveLoop(reactor, directory.file("disk.raw")),
  qcow2: () => qcow2Loop(reactor, directory.path, 1),
  overlay: () => qcow2Loop(reactor, directory.path, 2),
};
console.log(JSON.stringify(measure(await makers[process.argv[2] as LoopName]())));
