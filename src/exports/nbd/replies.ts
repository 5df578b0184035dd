/**
 * Reply headers and small replies, written into the native memory of the iothread. Positions are
 * offsets into that memory; each function returns the bytes written. Thread: iothread.
 * Spec: NBD proto.md "Simple reply message", "Structured reply chunk message", "Extended reply
 * chunk message"
 */
import {
  NBD_EXTENDED_REPLY_BYTES,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_BYTES,
  NBD_STRUCTURED_REPLY_MAGIC,
} from "../../abi/nbd.ts";
import { trace } from "../../util/trace.ts";

/** Longest message of an error chunk; what is over it is cut. */
const MESSAGE_BYTES_MAX = 2048;
/** Room that the largest reply without data takes. */
export const SMALL_REPLY_BYTES_MAX = NBD_EXTENDED_REPLY_BYTES + 6 + MESSAGE_BYTES_MAX;

/** What a reply echoes of its request. */
export interface ReplyTo {
  readonly cookie0: number;
  readonly cookie1: number;
  /** Of the request; extended replies repeat it. */
  readonly offset: number;
}

export function writeSimpleReply(view: DataView, at: number, to: ReplyTo, error: number): number {
  view.setUint32(at, NBD_SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, error);
  view.setInt32(at + 8, to.cookie0, true);
  view.setInt32(at + 12, to.cookie1, true);
  return NBD_SIMPLE_REPLY_BYTES;
}

/** The header of a structured or extended chunk with `bytes` of payload. */
export function writeChunkHeader(
  view: DataView,
  at: number,
  extended: boolean,
  to: ReplyTo,
  flagsType: number,
  bytes: number,
): number {
  view.setUint32(at, extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
  view.setUint32(at + 4, flagsType);
  view.setInt32(at + 8, to.cookie0, true);
  view.setInt32(at + 12, to.cookie1, true);
  if (!extended) {
    view.setUint32(at + 16, bytes);
    return NBD_STRUCTURED_REPLY_BYTES;
  }
  setU64(view, at + 16, to.offset);
  setU64(view, at + 24, bytes);
  return NBD_EXTENDED_REPLY_BYTES;
}

/** Of a chunk header: flags u16 | type u16. */
export function flagsType(done: boolean, type: number): number {
  return ((done ? NBD_REPLY_FLAG_DONE : 0) << 16) | type;
}

/** The header of `bytes` of data from `offset`, without the data. */
export function writeDataHeader(
  view: DataView,
  at: number,
  extended: boolean,
  to: ReplyTo,
  done: boolean,
  offset: number,
  bytes: number,
): number {
  const type = flagsType(done, NBD_REPLY_TYPE_OFFSET_DATA);
  const header = writeChunkHeader(view, at, extended, to, type, bytes + 8);
  setU64(view, at + header, offset);
  return header + 8;
}

export function dataHeaderBytes(extended: boolean): number {
  return (extended ? NBD_EXTENDED_REPLY_BYTES : NBD_STRUCTURED_REPLY_BYTES) + 8;
}

export function writeHole(
  view: DataView,
  at: number,
  extended: boolean,
  to: ReplyTo,
  done: boolean,
  offset: number,
  bytes: number,
): number {
  const type = flagsType(done, NBD_REPLY_TYPE_OFFSET_HOLE);
  const header = writeChunkHeader(view, at, extended, to, type, 12);
  setU64(view, at + header, offset);
  view.setUint32(at + header + 8, bytes);
  return header + 12;
}

/** Ends a reply without saying more. */
export function writeNone(view: DataView, at: number, extended: boolean, to: ReplyTo): number {
  return writeChunkHeader(view, at, extended, to, flagsType(true, NBD_REPLY_TYPE_NONE), 0);
}

/** `error` is an NBD error value. Ends the reply. */
export function writeErrorChunk(
  view: DataView,
  at: number,
  extended: boolean,
  to: ReplyTo,
  error: number,
  message: string,
): number {
  const text = new TextEncoder().encode(message).subarray(0, MESSAGE_BYTES_MAX);
  const type = flagsType(true, NBD_REPLY_TYPE_ERROR);
  const header = writeChunkHeader(view, at, extended, to, type, 6 + text.length);
  view.setUint32(at + header, error);
  view.setUint16(at + header + 4, text.length);
  new Uint8Array(view.buffer, view.byteOffset + at + header + 6, text.length).set(text);
  return header + 6 + text.length;
}

export function setU64(view: DataView, at: number, value: number): void {
  if (value <= 0x7fff_ffff) {
    // An integer all the way: converting a double costs several times as much.
    view.setUint32(at, 0);
    view.setUint32(at + 4, value | 0);
  } else {
    view.setUint32(at, value / 0x1_0000_0000);
    view.setUint32(at + 4, value);
  }
}

/** An error is answered, in this form of replies. */
export function traceError(structured: boolean, to: ReplyTo, error: number, message: string): void {
  const point = structured ? trace.nbd_co_send_chunk_error : trace.nbd_co_send_simple_reply;
  if (point.enabled) point.write(`offset = ${to.offset}, error = ${error}, msg = '${message}'`);
}
