/**
 * Block status: the extents of a range in each context that the client chose. Thread: iothread;
 * may suspend.
 * Spec: NBD proto.md "Metadata querying", NBD_CMD_BLOCK_STATUS
 */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_EXTENDED_REPLY_BYTES,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_STATE_DIRTY,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
} from "../../abi/nbd.ts";
import type { HBitmap } from "../../bitmaps/hbitmap.ts";
import { type BlockStatus, STATUS_DATA, STATUS_ZERO } from "../../block/node.ts";
import { EINVAL } from "../../runtime/errno.ts";
import type { NbdConnection } from "./connection.ts";
import { failureMessage } from "./errors.ts";
import { BASE_ALLOCATION, FIRST_BITMAP_ID, type NbdMetaContext } from "./meta-context.ts";
import { flagsType, setU64, writeChunkHeader } from "./replies.ts";
import { getU64, payloadBytes, type RequestHeader } from "./request.ts";

/** Extents of one chunk; with its header it fits a buffer as pieces of data take it. */
function extentsMax({ pieceBytes }: NbdConnection): number {
  return Math.floor((pieceBytes - NBD_EXTENDED_REPLY_BYTES - 8) / 16);
}
/** Extents found in one go; then the other clients have their turn. */
const EXTENTS_PER_TURN = 256;
/** A payload that asks for some of the contexts: u64 length, then u32 ids. */
const PAYLOAD_LENGTH_BYTES = 8;
const PAYLOAD_BYTES_MAX = 4096;
const SMALL_BYTES = 4096;

/** [bytes, flags] of each extent. */
type Extents = [bytes: number, flags: number][];

/** Answers a BLOCK_STATUS request. */
export async function replyBlockStatus(
  connection: NbdConnection,
  header: RequestHeader,
): Promise<void> {
  const fail = async (error: number, message: string) => {
    const at = await connection.allocate(SMALL_BYTES);
    connection.replyError(at, header, error, message);
  };
  let contexts: readonly NbdMetaContext[] | null = connection.session.contexts;
  let bytes = header.bytes;
  if (payloadBytes(header, connection.session.mode) > 0) {
    const asked = await receiveQuery(connection, header);
    if (asked === null) return fail(-EINVAL, "CMD_BLOCK_STATUS payload not valid");
    ({ contexts, bytes } = asked);
  }
  if (bytes === 0) return fail(-EINVAL, "need non-zero length");
  if (contexts.length === 0) return fail(-EINVAL, "CMD_BLOCK_STATUS not negotiated");
  const countMax = (header.flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : extentsMax(connection);
  for (const [index, context] of contexts.entries()) {
    const extents: Extents = [];
    const range = { offset: header.offset, bytes };
    const error = await findContext(connection, context.id, range, countMax, extents);
    if (error < 0) return fail(error, failureMessage(NBD_CMD_BLOCK_STATUS));
    await sendExtents(connection, header, context.id, extents, index === contexts.length - 1);
  }
}

interface Range {
  readonly offset: number;
  readonly bytes: number;
}

/** Fills `extents`, equal neighbours merged. Returns 0 or -errno. */
function findContext(
  connection: NbdConnection,
  contextId: number,
  range: Range,
  countMax: number,
  extents: Extents,
): Promise<number> {
  if (contextId >= FIRST_BITMAP_ID) {
    const { bits } = connection.bitmaps[contextId - FIRST_BITMAP_ID]!;
    return findDirty(connection, bits, range, countMax, extents);
  }
  const flagsOf = contextId === BASE_ALLOCATION.id ? allocationFlags : depthFlags;
  return findExtents(connection, range, countMax, flagsOf, extents);
}

async function findDirty(
  connection: NbdConnection,
  bits: HBitmap,
  { offset, bytes }: Range,
  countMax: number,
  extents: Extents,
): Promise<number> {
  const end = offset + bytes;
  let isDirty = bits.get(offset);
  for (let at = offset; at < end && extents.length < countMax && !connection.closing; ) {
    const next = isDirty ? bits.nextZero(at, end) : bits.nextDirty(at, end);
    const extentEnd = next < 0 ? end : next;
    extents.push([extentEnd - at, isDirty ? NBD_STATE_DIRTY : 0]);
    at = extentEnd;
    isDirty = !isDirty;
    if (extents.length % EXTENTS_PER_TURN === 0) await connection.reactor.sleep(0);
  }
  return 0;
}

function allocationFlags(status: BlockStatus): number {
  const hole = (status.flags & STATUS_DATA) === 0 ? NBD_STATE_HOLE : 0;
  return hole | ((status.flags & STATUS_ZERO) !== 0 ? NBD_STATE_ZERO : 0);
}

function depthFlags(status: BlockStatus): number {
  return status.depth;
}

async function findExtents(
  connection: NbdConnection,
  range: Range,
  countMax: number,
  flagsOf: (status: BlockStatus) => number,
  extents: Extents,
): Promise<number> {
  const { reactor, backend } = connection;
  const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
  const end = range.offset + range.bytes;
  let looks = 0;
  for (let at = range.offset; at < end && !connection.closing; ) {
    const result = backend.node.blockStatus(at, end - at, status);
    const error = typeof result === "number" ? result : await result;
    if (error < 0) return error;
    const flags = flagsOf(status);
    const last = extents.at(-1);
    if (last !== undefined && last[1] === flags) last[0] += status.bytes;
    else if (extents.length === countMax) return 0;
    else extents.push([status.bytes, flags]);
    at += status.bytes;
    if (++looks % EXTENTS_PER_TURN === 0) await reactor.sleep(0);
  }
  return 0;
}

async function sendExtents(
  connection: NbdConnection,
  header: RequestHeader,
  contextId: number,
  extents: Extents,
  last: boolean,
): Promise<void> {
  const { extended } = connection;
  const payload = extended ? 8 + 16 * extents.length : 4 + 8 * extents.length;
  const at = await connection.allocate(NBD_EXTENDED_REPLY_BYTES + payload);
  const { view } = connection.reactor.memory;
  const type = extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;
  let to = at + writeChunkHeader(view, at, extended, header, flagsType(last, type), payload);
  view.setUint32(to, contextId);
  to += 4;
  if (extended) {
    view.setUint32(to, extents.length);
    to += 4;
  }
  for (const [bytes, flags] of extents) {
    if (extended) {
      setU64(view, to, bytes);
      setU64(view, to + 8, flags);
      to += 16;
    } else {
      view.setUint32(to, bytes);
      view.setUint32(to + 4, flags);
      to += 8;
    }
  }
  connection.send(at, to - at, at, last);
}

/** Receives the payload of the request. Null when it is not valid; all of it is taken then, too. */
async function receiveQuery(
  connection: NbdConnection,
  header: RequestHeader,
): Promise<{ contexts: NbdMetaContext[]; bytes: number } | null> {
  const length = header.bytes;
  const at = await connection.allocate(PAYLOAD_BYTES_MAX);
  let query: { contexts: NbdMetaContext[]; bytes: number } | null = null;
  for (let done = 0; done < length; done += PAYLOAD_BYTES_MAX) {
    const part = Math.min(length - done, PAYLOAD_BYTES_MAX);
    if (!(await connection.receive(at, part))) break;
    if (part === length) query = parseQuery(connection, at, length, header.offset);
  }
  connection.release(at);
  connection.endReceiving();
  return query;
}

function parseQuery(
  connection: NbdConnection,
  at: number,
  length: number,
  offset: number,
): { contexts: NbdMetaContext[]; bytes: number } | null {
  const { view } = connection.reactor.memory;
  if (length < PAYLOAD_LENGTH_BYTES || (length - PAYLOAD_LENGTH_BYTES) % 4 !== 0) return null;
  const bytes = getU64(view, at);
  if (offset + bytes > connection.backend.node.bytes) return null;
  const ids = new Set<number>();
  for (let i = PAYLOAD_LENGTH_BYTES; i < length; i += 4) ids.add(view.getUint32(at + i));
  const contexts = connection.session.contexts.filter(({ id }) => ids.has(id));
  return contexts.length === ids.size ? { contexts, bytes } : null;
}
