/**
 * Compression as work for offload threads: numbers that IoEngine.call() takes in place of a system
 * call's. What is read and written lies in one mapping of native memory. Thread: any.
 */
import {
  constants,
  deflateRawSync,
  inflateRawSync,
  zstdCompressSync,
  zstdDecompressSync,
} from "node:zlib";
import type { Ffi } from "../runtime/driver.ts";
import { EINVAL, EIO, ENOSPC } from "../runtime/errno.ts";

/** A raw deflate stream, whatever follows it. */
export const CODEC_INFLATE = -1;
/** Raw deflate with a window of 4 KiB. */
export const CODEC_DEFLATE = -2;
/** One zstd frame, and nothing behind it. */
export const CODEC_UNZSTD = -3;
export const CODEC_ZSTD = -4;

/** More would not fit what the other side looks back at. */
const WINDOW_BITS = 12;
const MEM_LEVEL = 9;
const CHUNK_SPARE_BYTES = 64;
/** Of mappings, kept by each thread: more than the images that are busy at a time. */
const VIEWS_MAX = 64;

/** Where the work is done: positions in a mapping. */
export interface CodecPlace {
  readonly address: number;
  readonly bytes: number;
  readonly source: number;
  readonly sourceBytes: number;
  readonly target: number;
  /** No result is longer. */
  readonly targetBytes: number;
}

/** As arguments of IoEngine.call(). */
export function codecArgs(place: CodecPlace): readonly number[] {
  const { address, bytes, source, sourceBytes, target, targetBytes } = place;
  return [address, bytes, source, sourceBytes, target, targetBytes];
}

/**
 * Returns the length of the result at the target, or -errno: -EIO for what can't be decompressed,
 * -ENOSPC for what does not get short enough. `memory`: the whole mapping.
 */
export function runCodec(codec: number, memory: Uint8Array, place: CodecPlace): number {
  const { source, sourceBytes, target, targetBytes } = place;
  const input = memory.subarray(source, source + sourceBytes);
  const isCompression = codec === CODEC_DEFLATE || codec === CODEC_ZSTD;
  try {
    const output = transform(codec, input, targetBytes);
    if (output.length <= targetBytes) {
      memory.set(output, target);
      return output.length;
    }
  } catch {
    // A thread that died of it would leave its caller waiting for ever.
  }
  return isCompression ? -ENOSPC : -EIO;
}

/** Throws what the library throws. */
function transform(codec: number, input: Uint8Array, targetBytes: number): Uint8Array {
  // In one piece, without another one to see that nothing follows.
  const chunkSize = targetBytes + CHUNK_SPARE_BYTES;
  const maxOutputLength = targetBytes;
  switch (codec) {
    case CODEC_INFLATE: {
      const finishFlush = constants.Z_SYNC_FLUSH;
      return inflateRawSync(input, { finishFlush, maxOutputLength, chunkSize });
    }
    case CODEC_DEFLATE:
      return deflateRawSync(input, { windowBits: WINDOW_BITS, memLevel: MEM_LEVEL, chunkSize });
    case CODEC_UNZSTD:
      return zstdDecompressSync(input, { maxOutputLength, chunkSize });
    default:
      return zstdCompressSync(input, { chunkSize });
  }
}

/** Runs codecs on an offload thread, by the arguments of codecArgs(). */
export class CodecRunner {
  #ffi: Ffi;
  /** Of the mappings that were used lately. */
  #views = new Map<number, Uint8Array>();

  constructor(ffi: Ffi) {
    this.#ffi = ffi;
  }

  run(codec: number, args: Float64Array): number {
    const [address, bytes, source, sourceBytes, target, targetBytes] = args as unknown as number[];
    if (codec < CODEC_ZSTD) return -EINVAL;
    const place = { address, bytes, source, sourceBytes, target, targetBytes } as CodecPlace;
    return runCodec(codec, this.#view(place), place);
  }

  #view({ address, bytes }: CodecPlace): Uint8Array {
    const known = this.#views.get(address);
    if (known?.length === bytes) return known;
    if (this.#views.size >= VIEWS_MAX) this.#views.clear();
    // SAFETY: who asks keeps the mapping until the call has completed; a view that is kept longer
    // is not looked through unless such a call names the same place again.
    const view = new Uint8Array(this.#ffi.view(address, bytes));
    this.#views.set(address, view);
    return view;
  }
}
