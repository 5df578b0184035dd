/**
 * Requests of the transmission phase: decoding, and every check that needs no I/O; each once,
 * here. Thread: iothread.
 * Spec: NBD proto.md "Request message", "Request types"
 */
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_EXTENDED_REQUEST_BYTES,
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_MAX_BUFFER_SIZE,
  NBD_REQUEST_BYTES,
  NBD_REQUEST_MAGIC,
} from "../../abi/nbd.ts";
import {
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_FUA,
  REQ_MAY_UNMAP,
  REQ_NO_FALLBACK,
} from "../../block/node.ts";
import { EINVAL, ENOSPC, EPERM } from "../../runtime/errno.ts";
import { trace } from "../../util/trace.ts";
import type { NbdMode } from "./export-table.ts";

/** One decoded request header; reused for each. */
export interface RequestHeader {
  flags: number;
  type: number;
  /** The cookie's two words in memory order, i32, to be written back as they are. */
  cookie0: number;
  cookie1: number;
  /** Exact up to 2^53; what is larger is far outside of any export anyway. */
  offset: number;
  bytes: number;
}

export function requestBytes(mode: NbdMode): number {
  return mode === "extended" ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

/** Decodes the header at `at`; all of it is there. False: wrong magic, the stream is lost. */
export function decodeRequest(
  view: DataView,
  at: number,
  extended: boolean,
  out: RequestHeader,
): boolean {
  const magic = extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC;
  if (view.getUint32(at) !== magic) return false;
  out.flags = view.getUint16(at + 4);
  out.type = view.getUint16(at + 6);
  out.cookie0 = view.getInt32(at + 8, true);
  out.cookie1 = view.getInt32(at + 12, true);
  out.offset = getU64(view, at + 16);
  out.bytes = extended ? getU64(view, at + 24) : view.getUint32(at + 24);
  return true;
}

/** Small values stay integers: arithmetic on doubles costs several times as much. */
export function getU64(view: DataView, at: number): number {
  const high = view.getUint32(at);
  const low = view.getUint32(at + 4);
  return high === 0 ? low : high * 0x1_0000_0000 + low;
}

/** What the checks need to know of the export and the session. */
export interface RequestRules {
  readonly mode: NbdMode;
  readonly exportBytes: number;
  readonly readOnly: boolean;
}

/** Bytes that follow the header: data to write, or contexts to ask for. */
export function payloadBytes(header: RequestHeader, mode: NbdMode): number {
  if (header.type === NBD_CMD_WRITE) return header.bytes;
  const payload = mode === "extended" && (header.flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0;
  return payload ? header.bytes : 0;
}

const FLAGS_BY_TYPE: readonly number[] = [
  NBD_CMD_FLAG_FUA, // READ; DF with structured replies
  NBD_CMD_FLAG_FUA, // WRITE
  0, // DISC
  NBD_CMD_FLAG_FUA, // FLUSH
  NBD_CMD_FLAG_FUA, // TRIM
  NBD_CMD_FLAG_FUA, // CACHE
  NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, // WRITE_ZEROES
  NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE, // BLOCK_STATUS
];
const NAME_BY_TYPE: readonly string[] = [
  "read",
  "write",
  "disconnect",
  "flush",
  "trim",
  "cache",
  "write zeroes",
  "block status",
];

/** A refusal: the errno to answer and the message of structured errors. */
export interface Refusal {
  readonly error: number;
  readonly message: string;
}

/** What all but reads get while another process may change the image. */
const INACTIVE: Refusal = { error: -EPERM, message: "export is inactive" };

/**
 * Null when the request may be carried out. `inactive`: the node is. The payload, if any, is the
 * caller's to take or skip; one beyond NBD_MAX_BUFFER_SIZE can't be skipped.
 */
export function refusalOf(
  header: RequestHeader,
  rules: RequestRules,
  inactive: boolean,
): Refusal | null {
  const { type, offset, bytes } = header;
  if (type > NBD_CMD_BLOCK_STATUS || type === NBD_CMD_DISC) {
    if (inactive) return INACTIVE;
    return { error: -EINVAL, message: `invalid request type (${type}) received` };
  }
  const carriesData = type === NBD_CMD_READ || type === NBD_CMD_WRITE || type === NBD_CMD_CACHE;
  const payload = payloadBytes(header, rules.mode);
  if ((carriesData || payload > 0) && bytes > NBD_MAX_BUFFER_SIZE) {
    const message = `len (${bytes}) is larger than max len (${NBD_MAX_BUFFER_SIZE})`;
    return { error: -EINVAL, message };
  }
  const writes = type === NBD_CMD_WRITE || type === NBD_CMD_TRIM || type === NBD_CMD_WRITE_ZEROES;
  if (rules.readOnly && writes) {
    // QSD differs: it answers EINVAL. The specification says EPERM.
    return { error: -EPERM, message: "Export is read-only" };
  }
  const ranged = type !== NBD_CMD_FLUSH && !(type === NBD_CMD_BLOCK_STATUS && payload > 0);
  if (ranged && (payload === 0 || writes) && offset + bytes > rules.exportBytes) {
    // QSD differs: it answers EINVAL to writes, too. The specification says ENOSPC.
    const grows = type === NBD_CMD_WRITE || type === NBD_CMD_WRITE_ZEROES;
    const size = rules.exportBytes;
    const message = `operation past EOF; From: ${offset}, Len: ${bytes}, Size: ${size}`;
    return { error: grows ? -ENOSPC : -EINVAL, message };
  }
  let valid = FLAGS_BY_TYPE[type]!;
  if (type === NBD_CMD_READ && rules.mode !== "simple") valid |= NBD_CMD_FLAG_DF;
  if ((type === NBD_CMD_WRITE || type === NBD_CMD_BLOCK_STATUS) && rules.mode === "extended") {
    valid |= NBD_CMD_FLAG_PAYLOAD_LEN;
  }
  if ((header.flags & ~valid) !== 0) {
    const got = header.flags.toString(16);
    const message = `unsupported flags for command ${NAME_BY_TYPE[type]} (got 0x${got})`;
    return { error: -EINVAL, message };
  }
  return inactive && type !== NBD_CMD_READ ? INACTIVE : null;
}

/** The block operation that carries out a command other than BLOCK_STATUS. */
export function opOf(type: number): Op {
  switch (type) {
    case NBD_CMD_READ:
      return OP_READ;
    case NBD_CMD_WRITE:
      return OP_WRITE;
    case NBD_CMD_FLUSH:
      return OP_FLUSH;
    case NBD_CMD_TRIM:
      return OP_DISCARD;
    case NBD_CMD_CACHE:
      return OP_CACHE;
    default:
      return OP_WRITE_ZEROES;
  }
}

/** REQ_* of the request. */
export function requestFlags({ type, flags }: RequestHeader): number {
  let result = (flags & NBD_CMD_FLAG_FUA) !== 0 ? REQ_FUA : 0;
  if (opOf(type) !== OP_WRITE_ZEROES) return result;
  if ((flags & NBD_CMD_FLAG_NO_HOLE) === 0) result |= REQ_MAY_UNMAP;
  if ((flags & NBD_CMD_FLAG_FAST_ZERO) !== 0) result |= REQ_NO_FALLBACK;
  return result;
}

const traced = trace.nbd_receive_request;

/** A request is taken. */
export function traceRequest({ flags, type, offset, bytes }: RequestHeader): void {
  if (!traced.enabled) return;
  const what = `.flags = 0x${flags.toString(16)}, .type = 0x${type.toString(16)}`;
  traced.write(`Got request: { ${what}, from = ${offset}, len = ${bytes} }`);
}
