/** Replies of the transmission phase as tests look at them, checked for form while being read. */
import {
  NBD_CMD_READ,
  NBD_EXTENDED_REPLY_BYTES,
  NBD_EXTENDED_REPLY_MAGIC,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_FLAG_ERROR,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_BYTES,
  NBD_STRUCTURED_REPLY_MAGIC,
} from "../../src/abi/nbd.ts";
import type { ByteStream } from "./byte-stream.ts";
import { concat, textOf, viewOf } from "./nbd-wire.ts";

/** A payload longer than what one chunk may carry means that the stream is out of step. */
const PAYLOAD_BYTES_MAX = 64 * 1024 * 1024;

/** What the request was. */
export interface ReplyShape {
  readonly command: number;
  readonly offset: number;
  readonly length: number;
}

/** One message of the server. A simple reply is a chunk, too. */
export interface Chunk {
  readonly magic: number;
  /** NBD_REPLY_TYPE_*; -1 for a simple reply. */
  readonly type: number;
  readonly flags: number;
  readonly done: boolean;
  /** Of a simple reply. */
  readonly error: number;
  /** Of an extended header; what the request said otherwise. */
  readonly offset: number;
  readonly payload: Uint8Array;
}

export interface Extent {
  readonly length: number;
  readonly flags: number;
}

/** Reads the rest of the message that begins with the 16 bytes `first`. */
export async function readChunk(
  stream: ByteStream,
  first: Uint8Array,
  shape: ReplyShape,
): Promise<Chunk> {
  const magic = viewOf(first).getUint32(0);
  if (magic === NBD_SIMPLE_REPLY_MAGIC) {
    const error = viewOf(first).getUint32(4);
    const bytes = shape.command === NBD_CMD_READ && error === 0 ? shape.length : 0;
    const payload = await stream.read(bytes);
    return { magic, type: -1, flags: 0, done: true, error, offset: shape.offset, payload };
  }
  const extended = magic === NBD_EXTENDED_REPLY_MAGIC;
  if (!extended && magic !== NBD_STRUCTURED_REPLY_MAGIC) {
    throw new Error(`a reply with magic 0x${magic.toString(16)}`);
  }
  const headerBytes = extended ? NBD_EXTENDED_REPLY_BYTES : NBD_STRUCTURED_REPLY_BYTES;
  const view = viewOf(concat(first, await stream.read(headerBytes - first.length)));
  const bytes = extended ? Number(view.getBigUint64(24)) : view.getUint32(16);
  if (bytes > PAYLOAD_BYTES_MAX) throw new Error(`a chunk of ${bytes} bytes`);
  const flags = view.getUint16(4);
  return {
    magic,
    type: view.getUint16(6),
    flags,
    done: (flags & NBD_REPLY_FLAG_DONE) !== 0,
    error: 0,
    offset: extended ? Number(view.getBigUint64(16)) : shape.offset,
    payload: await stream.read(bytes),
  };
}

export class NbdReply {
  readonly shape: ReplyShape;
  readonly chunks: readonly Chunk[];

  constructor(shape: ReplyShape, chunks: readonly Chunk[]) {
    this.shape = shape;
    this.chunks = chunks;
  }

  /** NBD_E* of the first error; 0 without any. */
  get error(): number {
    for (const chunk of this.chunks) {
      if (chunk.error !== 0) return chunk.error;
      if (isErrorChunk(chunk)) return viewOf(chunk.payload).getUint32(0);
    }
    return 0;
  }

  /** The text that came with it; "" in simple replies. */
  get message(): string {
    const chunk = this.chunks.find(isErrorChunk);
    if (chunk === undefined) return "";
    const bytes = viewOf(chunk.payload).getUint16(4);
    return textOf(chunk.payload.subarray(6, 6 + bytes));
  }

  /** Where the error is, if the server said so. */
  get errorOffset(): number | undefined {
    const chunk = this.chunks.find(({ type }) => type === NBD_REPLY_TYPE_ERROR_OFFSET);
    if (chunk === undefined) return undefined;
    return Number(viewOf(chunk.payload).getBigUint64(chunk.payload.length - 8));
  }

  /** Holes of a read, in the order of their chunks. */
  get holes(): { readonly offset: number; readonly length: number }[] {
    return this.chunks
      .filter(({ type }) => type === NBD_REPLY_TYPE_OFFSET_HOLE)
      .map(({ payload }) => holeOf(payload));
  }

  /** The data of a read. Throws unless chunks cover every byte exactly once. */
  data(): Uint8Array {
    const { offset, length } = this.shape;
    if (this.chunks[0]?.type === -1) return this.chunks[0].payload;
    const result = new Uint8Array(length);
    const covered: { start: number; end: number }[] = [];
    for (const { type, payload } of this.chunks) {
      let start = 0;
      let bytes = 0;
      if (type === NBD_REPLY_TYPE_OFFSET_DATA) {
        start = Number(viewOf(payload).getBigUint64(0)) - offset;
        bytes = payload.length - 8;
        result.set(payload.subarray(8), start);
      } else if (type === NBD_REPLY_TYPE_OFFSET_HOLE) {
        start = holeOf(payload).offset - offset;
        bytes = holeOf(payload).length;
      }
      if (bytes > 0) covered.push({ start, end: start + bytes });
    }
    covered.sort((a, b) => a.start - b.start);
    let at = 0;
    for (const { start, end } of covered) {
      if (start !== at) throw new Error(`a read's chunks leave or repeat bytes at ${at}, ${start}`);
      at = end;
    }
    if (at !== length) throw new Error(`a read's chunks cover ${at} of ${length} bytes`);
    return result;
  }

  /** Block status chunks. */
  statuses(): { contextId: number; extents: Extent[] }[] {
    return this.chunks.flatMap(({ type, payload }) => {
      const wide = type === NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
      if (!wide && type !== NBD_REPLY_TYPE_BLOCK_STATUS) return [];
      const view = viewOf(payload);
      const contextId = view.getUint32(0);
      const extents: Extent[] = [];
      if (wide) {
        const count = view.getUint32(4);
        if (payload.length !== 8 + 16 * count) throw new Error("an extent count that is not true");
        for (let at = 8; at < payload.length; at += 16) {
          const length = Number(view.getBigUint64(at));
          extents.push({ length, flags: Number(view.getBigUint64(at + 8)) });
        }
      } else {
        for (let at = 4; at < payload.length; at += 8) {
          extents.push({ length: view.getUint32(at), flags: view.getUint32(at + 4) });
        }
      }
      return [{ contextId, extents }];
    });
  }
}

function isErrorChunk(chunk: Chunk): boolean {
  return chunk.type >= 0 && (chunk.type & NBD_REPLY_FLAG_ERROR) !== 0;
}

function holeOf(payload: Uint8Array): { offset: number; length: number } {
  const view = viewOf(payload);
  return { offset: Number(view.getBigUint64(0)), length: view.getUint32(8) };
}
