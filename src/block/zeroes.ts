/** Finding zeroes in payload, for detect-zeroes. Thread: iothread. */
import type { Memory } from "../io/memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { assert } from "../util/error.ts";
import type { OpenContext } from "./driver.ts";
import { type BlockNode, REQ_MAY_UNMAP } from "./node.ts";

/** Where payload can be looked at: all of it lives in the reactor's one mapping. */
function memoryOf(reactor: Reactor, address: number, bytes: number): Memory {
  const { memory } = reactor;
  const at = address - memory.address;
  assert(at >= 0 && at + bytes <= memory.bytes, "payload lies in the reactor's memory");
  return memory;
}

/** Whether [address, address + bytes) is all zero; any alignment. Stops at the first other byte. */
export function isZero(reactor: Reactor, address: number, bytes: number): boolean {
  const memory = memoryOf(reactor, address, bytes);
  const { u8, u32 } = memory;
  let at = address - memory.address;
  const end = at + bytes;
  // Most data shows at its end or in its middle.
  if (bytes > 0 && (u8[end - 1] !== 0 || u8[at + (bytes >>> 1)] !== 0)) return false;
  for (; at < end && at % 4 !== 0; at++) if (u8[at] !== 0) return false;
  const wordEnd = Math.floor(end / 4);
  for (let word = at / 4; word < wordEnd; word++) if (u32[word] !== 0) return false;
  for (at = Math.max(at, wordEnd * 4); at < end; at++) if (u8[at] !== 0) return false;
  return true;
}

/**
 * detect-zeroes: does a write as a write-zeroes where its payload allows. True when it is done;
 * false when there is data to write, be it zeroes that could not be written in another way.
 */
export async function writeDetectedZeroes(
  context: OpenContext,
  node: BlockNode,
  offset: number,
  bytes: number,
  address: number,
): Promise<boolean> {
  const { detectZeroes, reactor } = context;
  if (detectZeroes === "off" || !isZero(reactor, address, bytes)) return false;
  const flags = detectZeroes === "unmap" ? REQ_MAY_UNMAP : 0;
  return (await node.writeZeroes(offset, bytes, flags)) === 0;
}
