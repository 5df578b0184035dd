/**
 * The hot loops of the data plane, each alone: nanoseconds per request and, where the runtime can
 * tell, bytes that JavaScript allocated for it. Prints JSON for main.ts.
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

/** What the connection does for a read besides I/O: parse, check, write the reply's header. */
function nbdLoop(reactor: Reactor, mode: RequestRules["mode"]): HotLoop {
  const { view, u8 } = reactor.memory;
  const at = reactor.buffers.allocate(BLOCK_BYTES);
  const replyAt = reactor.buffers.allocate(BLOCK_BYTES);
  const extended = mode === "extended";
  const fields = { type: NBD_CMD_READ, cookie: 7, offset: 65_536, length: BLOCK_BYTES };
  u8.set(request(fields, extended), at);
  const header: RequestHeader = { flags: 0, type: 0, cookie0: 0, cookie1: 0, offset: 0, bytes: 0 };
  const rules: RequestRules = { mode, exportBytes: MiB, readOnly: false };
  return {
    name: `NBD ${mode}: parse, check, header of the reply`,
    run(count) {
      let refused = 0;
      for (let i = 0; i < count; i++) {
        if (!decodeRequest(view, at, extended, header)) refused++;
        if (refusalOf(header, rules) !== null) refused++;
        if (mode === "simple") writeSimpleReply(view, replyAt, header, 0);
        else writeDataHeader(view, replyAt, extended, header, true, header.offset, header.bytes);
      }
      if (refused > 0) throw new Error("a request was refused");
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
const loops = [
  ringLoop(reactor),
  nbdLoop(reactor, "simple"),
  nbdLoop(reactor, "structured"),
  nbdLoop(reactor, "extended"),
  await resolveLoop(reactor, directory.file("disk.raw")),
];
console.log(JSON.stringify(loops.map(measure)));
