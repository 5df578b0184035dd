/**
 * Compressed clusters: where one lies, and what is in it. Thread: iothread; everything async may
 * suspend.
 * Spec: QEMU docs/interop/qcow2.rst "Compressed Clusters Descriptor"
 */
import { constants, inflateRawSync, zstdDecompressSync } from "node:zlib";
import { QCOW2_COMPRESSION_TYPE_ZSTD } from "../../../abi/qcow2.ts";
import { EIO } from "../../../runtime/errno.ts";
import type { Image } from "./image.ts";
import { zstdFrameBytes } from "./zstd-frame.ts";

const SECTOR_BYTES = 512;

export interface CompressedPlace {
  readonly offset: number;
  /** Up to the end of its last sector. */
  readonly bytes: number;
}

/** Of an entry's halves. */
export function compressedPlace(hi: number, lo: number, clusterBits: number): CompressedPlace {
  // The lower 62 bits: the offset, and above it the number of additional sectors.
  const sizeBits = clusterBits - 8;
  const offsetBitsHi = 62 - sizeBits - 32;
  const low62 = hi & 0x3fff_ffff;
  const offset = (low62 & (2 ** offsetBitsHi - 1)) * 0x1_0000_0000 + lo;
  const sectors = (low62 >>> offsetBitsHi) + 1;
  return { offset, bytes: sectors * SECTOR_BYTES - (offset % SECTOR_BYTES) };
}

/** The cluster in full, or -errno. */
export async function readCompressed(
  image: Image,
  hi: number,
  lo: number,
): Promise<Uint8Array | number> {
  const { layout, header, file } = image;
  const place = compressedPlace(hi, lo, header.clusterBits);
  if (!Number.isSafeInteger(place.offset) || place.offset >= file.node.bytes) return -EIO;
  const bytes = await file.readBytes(place.offset, place.bytes);
  if (typeof bytes === "number") return bytes;
  return inflate(bytes, layout.clusterBytes, header.compressionType);
}

/** All of a cluster, which is as long as it must be; or -EIO. */
function inflate(bytes: Uint8Array, clusterBytes: number, type: number): Uint8Array | number {
  try {
    const result =
      type === QCOW2_COMPRESSION_TYPE_ZSTD
        ? zstdDecompressSync(bytes.subarray(0, zstdFrameBytes(bytes)), {
            maxOutputLength: clusterBytes,
          })
        : inflateRawSync(bytes, {
            finishFlush: constants.Z_SYNC_FLUSH,
            maxOutputLength: clusterBytes,
          });
    return result.length === clusterBytes ? new Uint8Array(result) : -EIO;
  } catch {
    return -EIO;
  }
}
