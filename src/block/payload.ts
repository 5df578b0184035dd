/**
 * Payload that does not simply lie in the reactor's memory: in several pieces, or in a guest's
 * memory. Thread: iothread.
 */
import { IOVEC_BASE, IOVEC_LEN, IOVEC_SIZE } from "../abi/linux.ts";
import type { PayloadMemory } from "../io/payload-memory.ts";
import type { Reactor } from "../io/reactor.ts";
import { type BlockLimits, OP_READ, OP_WRITE, REQ_FUA } from "./node.ts";
import type { SlowPath } from "./slow-path.ts";

/** A multiple of any alignment. */
const BOUNCE_BYTES = 256 * 1024;
/**
 * What such requests hold of the buffer pool while they ask it for more stays a small part of it:
 * otherwise they could wait for each other.
 */
const BOUNCES_MAX = 64;

/** Each piece can be given to a node with these limits. */
export function isPayloadAligned(
  reactor: Reactor,
  slot: number,
  { requestAlignment, memoryAlignment }: BlockLimits,
): boolean {
  if (requestAlignment === 1) return true;
  const count = reactor.requests.iovCount[slot]!;
  for (let i = 0; i < count; i++) {
    if (pieceAddress(reactor, slot, i) % memoryAlignment !== 0) return false;
    if (pieceBytes(reactor, slot, i) % requestAlignment !== 0) return false;
  }
  return true;
}

/** Zeroes the payload from byte `start` on. */
export function zeroPayload(reactor: Reactor, slot: number, start: number): void {
  const { requests, memory } = reactor;
  const payload: Pick<PayloadMemory, "zero"> = requests.payload[slot] ?? memory;
  const count = requests.iovCount[slot]!;
  if (count === 0) {
    payload.zero(requests.address[slot]! + start, requests.bytes[slot]! - start);
    return;
  }
  let pieceStart = 0;
  for (let i = 0; i < count; i++) {
    const bytes = pieceBytes(reactor, slot, i);
    const skipped = Math.min(Math.max(start - pieceStart, 0), bytes);
    if (skipped < bytes) payload.zero(pieceAddress(reactor, slot, i) + skipped, bytes - skipped);
    pieceStart += bytes;
  }
}

/** A READ or WRITE the slow way, through buffers of our own. Returns 0 or -errno; may suspend. */
export async function runBounced(
  reactor: Reactor,
  slowPath: SlowPath,
  slot: number,
  flags: number,
): Promise<number> {
  const { requests, memory, buffers } = reactor;
  const op = requests.op[slot] === OP_READ ? OP_READ : OP_WRITE;
  const offset = requests.offset[slot]!;
  const bytes = requests.bytes[slot]!;
  await enterBounce(reactor);
  const at = await reactor.allocate(Math.max(Math.min(bytes, BOUNCE_BYTES), 1));
  let result = 0;
  for (let done = 0; done < bytes && result === 0; done += BOUNCE_BYTES) {
    const part = Math.min(BOUNCE_BYTES, bytes - done);
    // One flush at the end is for all parts.
    const partFlags = done + part < bytes ? flags & ~REQ_FUA : flags;
    if (op === OP_WRITE) copyPayload(reactor, slot, done, part, at);
    result = await slowPath.run(op, offset + done, part, memory.address + at, partFlags);
    if (op === OP_READ && result === 0) copyPayload(reactor, slot, done, part, at);
  }
  buffers.free(at);
  leaveBounce(reactor);
  return result;
}

/** Copies bytes [start, start + bytes) of the payload: out of it for a WRITE, else into it. */
function copyPayload(
  reactor: Reactor,
  slot: number,
  start: number,
  bytes: number,
  at: number,
): void {
  const { requests, memory } = reactor;
  const payload = requests.payload[slot]!;
  const isWrite = requests.op[slot] === OP_WRITE;
  const count = Math.max(requests.iovCount[slot]!, 1);
  let pieceStart = 0;
  for (let i = 0; i < count; i++) {
    const length = pieceBytes(reactor, slot, i);
    const from = Math.max(start, pieceStart);
    const to = Math.min(start + bytes, pieceStart + length);
    if (from < to) {
      const address = pieceAddress(reactor, slot, i) + (from - pieceStart);
      const target = at + (from - start);
      if (isWrite) payload.read(address, to - from, memory, target);
      else payload.write(address, to - from, memory, target);
    }
    pieceStart += length;
  }
}

function pieceAddress({ requests, memory }: Reactor, slot: number, index: number): number {
  const address = requests.address[slot]!;
  if (requests.iovCount[slot] === 0) return address;
  const word = (address - memory.address + index * IOVEC_SIZE + IOVEC_BASE) >>> 2;
  return memory.u32[word]! + memory.u32[word + 1]! * 0x1_0000_0000;
}

function pieceBytes({ requests, memory }: Reactor, slot: number, index: number): number {
  if (requests.iovCount[slot] === 0) return requests.bytes[slot]!;
  const at = requests.address[slot]! - memory.address;
  const word = (at + index * IOVEC_SIZE + IOVEC_LEN) >>> 2;
  return memory.u32[word]! + memory.u32[word + 1]! * 0x1_0000_0000;
}

interface Bounces {
  count: number;
  readonly waiting: (() => void)[];
}

const bounces = new WeakMap<Reactor, Bounces>();

function enterBounce(reactor: Reactor): Promise<void> {
  let all = bounces.get(reactor);
  if (all === undefined) {
    all = { count: 0, waiting: [] };
    bounces.set(reactor, all);
  }
  if (all.count < BOUNCES_MAX) {
    all.count++;
    return Promise.resolve();
  }
  const { waiting } = all;
  return new Promise((resolve) => waiting.push(resolve));
}

function leaveBounce(reactor: Reactor): void {
  const all = bounces.get(reactor)!;
  const next = all.waiting.shift();
  if (next === undefined) {
    all.count--;
    return;
  }
  reactor.asyncResumed();
  next();
}
