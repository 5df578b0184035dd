/** Nodes for unit tests: what open() gets, payload in native memory, waiting for the slow ways. */

import type { OpenContext } from "../../src/block/driver.ts";
import type { BlockNode, BlockStatus } from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { runOn } from "./reactor.ts";

export function openContext(reactor: Reactor, some: Partial<OpenContext> = {}): OpenContext {
  return {
    reactor,
    log: () => {},
    nodeName: "node0",
    options: {},
    readOnly: false,
    autoReadOnly: false,
    forceShare: false,
    cacheDirect: false,
    cacheNoFlush: false,
    discardUnmap: false,
    detectZeroes: "off",
    children: {},
    ...some,
  };
}

/** Bytes at the start of a buffer of the pool, which is never given back. */
export class Payload {
  readonly address: number;
  readonly u8: Uint8Array;

  constructor(reactor: Reactor, bytes: number) {
    const at = reactor.buffers.allocate(bytes);
    this.address = reactor.memory.address + at;
    this.u8 = reactor.memory.u8.subarray(at, at + bytes);
  }
}

/** All extents of [offset, offset + bytes) as [flags, bytes], equal neighbours merged. */
export async function extentsOf(
  reactor: Reactor,
  node: BlockNode,
  offset: number,
  bytes: number,
): Promise<[flags: number, bytes: number][]> {
  const extents: [number, number][] = [];
  const out: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
  for (let at = offset; at < offset + bytes; at += out.bytes) {
    const ask = async () => node.blockStatus(at, offset + bytes - at, out);
    const result = await runOn(reactor, ask);
    if (result !== 0) throw new Error(`blockStatus() said ${result}`);
    const last = extents.at(-1);
    if (last?.[0] === out.flags) last[1] += out.bytes;
    else extents.push([out.flags, out.bytes]);
  }
  return extents;
}
