/** NBD messages as tests write and read them: any field, right or wrong. */
import {
  NBD_EXTENDED_REQUEST_MAGIC,
  NBD_INFO_BLOCK_SIZE,
  NBD_OPTION_HEADER_BYTES,
  NBD_OPTION_REPLY_HEADER_BYTES,
  NBD_OPTS_MAGIC_HI,
  NBD_OPTS_MAGIC_LO,
  NBD_REP_MAGIC_HI,
  NBD_REP_MAGIC_LO,
  NBD_REQUEST_MAGIC,
} from "../../src/abi/nbd.ts";

const UTF8 = new TextEncoder();

export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Uint8Array;
}

/** One request header; every field may lie. */
export interface RequestFields {
  readonly type: number;
  readonly flags?: number;
  readonly cookie?: number | bigint;
  readonly offset?: number | bigint;
  readonly length?: number | bigint;
  readonly magic?: number;
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

export function bytesOf(text: string): Uint8Array {
  return UTF8.encode(text);
}

export function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function u16(value: number): Uint8Array {
  return new Uint8Array([value >>> 8, value]);
}

export function u32(value: number): Uint8Array {
  return new Uint8Array([value >>> 24, value >>> 16, value >>> 8, value]);
}

export function u64(value: number | bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  viewOf(bytes).setBigUint64(0, BigInt(value), false);
  return bytes;
}

/** An option with its data. `length` is what the header says, where that is not the truth. */
export function option(
  code: number,
  data: Uint8Array = new Uint8Array(0),
  length = data.length,
): Uint8Array {
  const magic = concat(u32(NBD_OPTS_MAGIC_HI), u32(NBD_OPTS_MAGIC_LO));
  const header = concat(magic, u32(code), u32(length));
  if (header.length !== NBD_OPTION_HEADER_BYTES) throw new Error("an option header has 16 bytes");
  return concat(header, data);
}

/** A string with its u32 length before it. */
export function lengthString(text: string): Uint8Array {
  const bytes = bytesOf(text);
  return concat(u32(bytes.length), bytes);
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO. */
export function infoData(
  name: string,
  infos: readonly number[] = [NBD_INFO_BLOCK_SIZE],
): Uint8Array {
  return concat(lengthString(name), u16(infos.length), ...infos.map(u16));
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
export function metaData(name: string, queries: readonly string[]): Uint8Array {
  return concat(lengthString(name), u32(queries.length), ...queries.map(lengthString));
}

export function request(fields: RequestFields, extended = false): Uint8Array {
  const length = fields.length ?? 0;
  return concat(
    u32(fields.magic ?? (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)),
    u16(fields.flags ?? 0),
    u16(fields.type),
    u64(fields.cookie ?? 0),
    u64(fields.offset ?? 0),
    extended ? u64(length) : u32(Number(length)),
  );
}

/** Whole option replies at the beginning of `bytes`, and how many bytes they took. */
export function parseOptionReplies(bytes: Uint8Array): { replies: OptionReply[]; used: number } {
  const replies: OptionReply[] = [];
  const view = viewOf(bytes);
  let at = 0;
  while (at + NBD_OPTION_REPLY_HEADER_BYTES <= bytes.length) {
    if (view.getUint32(at) !== NBD_REP_MAGIC_HI || view.getUint32(at + 4) !== NBD_REP_MAGIC_LO) {
      break;
    }
    const end = at + NBD_OPTION_REPLY_HEADER_BYTES + view.getUint32(at + 16);
    if (end > bytes.length) break;
    replies.push({
      option: view.getUint32(at + 8),
      type: view.getUint32(at + 12),
      data: bytes.slice(at + NBD_OPTION_REPLY_HEADER_BYTES, end),
    });
    at = end;
  }
  return { replies, used: at };
}
