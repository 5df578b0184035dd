/**
 * The hot loops of the data plane: nanoseconds per request and, where the runtime can tell, bytes
 * that JavaScript allocated for it. The first argument names one loop, as each is compiled for what
 * it met before in its process; prints JSON for main.ts.
 */

import { POLLIN } from "../../src/abi/linux.ts";
import { NBD_CMD_READ } from "../../src/abi/nbd.ts";
import { blockDrivers } from "../../src/block/drivers/index.ts";
import { OP_READ, type Resolution } from "../../src/block/node.ts";
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
import { MiB, sparseImage, temporaryDirectory } from "../support/images.ts";
import { request } from "../support/nbd-wire.ts";
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
  | "resolve";

interface HotLoop {
  readonly name: string;
  /** Does about this many requests; returns how many. */
  run(count: number): number;
}

const BATCH = 64;
const BLOCK_BYTES = 4096;

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
};
console.log(JSON.stringify(measure(await makers[process.argv[2] as LoopName]())));
