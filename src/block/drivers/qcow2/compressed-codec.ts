/**
 * Compresses and inflates clusters of one image: small ones at once, larger ones on the offload
 * threads, so that others needn't wait. Thread: iothread; everything may suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Incompatible features" compression type
 */
import { QCOW2_COMPRESSION_TYPE_ZSTD } from "../../../abi/qcow2.ts";
import {
  CODEC_DEFLATE,
  CODEC_INFLATE,
  CODEC_UNZSTD,
  CODEC_ZSTD,
  type CodecPlace,
  codecArgs,
  runCodec,
} from "../../../io/codecs.ts";
import type { Memory } from "../../../io/memory.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { EIO } from "../../../runtime/errno.ts";
import { zstdFrameBytes } from "./zstd-frame.ts";

/** Handing work over takes 20 to 60 µs of processor time: as long as this much of it. */
const INFLATE_AT_ONCE_BYTES = 16 * 1024;
const DEFLATE_AT_ONCE_BYTES = 4 * 1024;

type Work = Omit<CodecPlace, "address" | "bytes">;

export class ClusterCodec {
  #reactor: Reactor;
  #clusterBytes: number;
  #isZstd: boolean;

  /** `type`: QCOW2_COMPRESSION_TYPE_*. */
  constructor(reactor: Reactor, clusterBytes: number, type: number) {
    this.#reactor = reactor;
    this.#clusterBytes = clusterBytes;
    this.#isZstd = type === QCOW2_COMPRESSION_TYPE_ZSTD;
  }

  /** `sourceBytes` at `source`, which may end in other data, to a cluster. 0 or -errno. */
  async inflate(
    memory: Memory,
    source: number,
    sourceBytes: number,
    target: number,
  ): Promise<number> {
    let bytes = sourceBytes;
    if (this.#isZstd) bytes = zstdFrameBytes(memory.u8.subarray(source, source + bytes));
    if (bytes === 0) return -EIO;
    const codec = this.#isZstd ? CODEC_UNZSTD : CODEC_INFLATE;
    const targetBytes = this.#clusterBytes;
    const work = { source, sourceBytes: bytes, target, targetBytes };
    const result = await this.#run(codec, memory, work, INFLATE_AT_ONCE_BYTES);
    if (result < 0) return result;
    return result === targetBytes ? 0 : -EIO;
  }

  /** A cluster. Returns the length, which is shorter than a cluster, or -ENOSPC. */
  deflate(memory: Memory, source: number, target: number): Promise<number> {
    const codec = this.#isZstd ? CODEC_ZSTD : CODEC_DEFLATE;
    const sourceBytes = this.#clusterBytes;
    const work = { source, sourceBytes, target, targetBytes: sourceBytes - 1 };
    return this.#run(codec, memory, work, DEFLATE_AT_ONCE_BYTES);
  }

  async #run(codec: number, memory: Memory, work: Work, atOnceBytes: number): Promise<number> {
    const place = { address: memory.address, bytes: memory.bytes, ...work };
    if (this.#clusterBytes <= atOnceBytes) return runCodec(codec, memory.u8, place);
    const args = codecArgs(place);
    // SAFETY: who gave us the memory keeps it until this has ended.
    return this.#reactor.op((engine, token) => engine.call(codec, args, token));
  }
}
