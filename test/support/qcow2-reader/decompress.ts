/** One compressed cluster. Behind its stream there may be anything. */
import { constants, inflateRawSync, zstdDecompressSync } from "node:zlib";

export function decompress(type: number, data: Uint8Array, clusterBytes: number): Uint8Array {
  const content =
    type === 0
      ? inflateRawSync(data, { finishFlush: constants.Z_SYNC_FLUSH })
      : zstdDecompressSync(data.subarray(0, zstdFrameBytes(data)));
  if (content.length !== clusterBytes) throw new Error(`inflates to ${content.length} bytes`);
  return content;
}

/** Where a zstd frame ends. Spec: RFC 8878, 3.1.1 */
function zstdFrameBytes(data: Uint8Array): number {
  const descriptor = data[4]!;
  const singleSegment = (descriptor & 0x20) !== 0;
  const contentSizeBytes = [singleSegment ? 1 : 0, 2, 4, 8][descriptor >>> 6]!;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  let at = 5 + (singleSegment ? 0 : 1) + dictionaryBytes + contentSizeBytes;
  for (let last = false; !last; ) {
    const block = data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16);
    last = (block & 1) !== 0;
    const isRun = ((block >>> 1) & 3) === 1;
    at += 3 + (isRun ? 1 : block >>> 3);
    if (!(at <= data.length)) throw new Error("a zstd frame has no end");
  }
  return at + ((descriptor & 4) !== 0 ? 4 : 0);
}
