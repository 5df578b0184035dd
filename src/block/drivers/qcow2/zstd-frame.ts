/**
 * Where a zstd frame ends: compressed clusters are followed by others in the same sector, which a
 * decompressor would take for another frame. Pure. Thread: any.
 * Spec: RFC 8878 3.1.1
 */
const ZSTD_MAGIC_LE = 0xfd2fb528;
const HEADER_AT = 5;
const BLOCK_HEADER_BYTES = 3;
const RLE_BLOCK = 1;
const RESERVED_BLOCK = 3;
const CHECKSUM_BYTES = 4;
/** By the flags of the frame header descriptor. */
const DICTIONARY_ID_BYTES = [0, 1, 2, 4];
const CONTENT_SIZE_BYTES = [0, 2, 4, 8];

/** Bytes of the frame at the start of `bytes`; 0: there is no whole one. */
export function zstdFrameBytes(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < HEADER_AT || view.getUint32(0, true) !== ZSTD_MAGIC_LE) return 0;
  const descriptor = bytes[4]!;
  const isSingleSegment = (descriptor & 0x20) !== 0;
  let at = HEADER_AT + (isSingleSegment ? 0 : 1) + DICTIONARY_ID_BYTES[descriptor & 3]!;
  const contentSize = CONTENT_SIZE_BYTES[descriptor >>> 6]!;
  at += contentSize === 0 && isSingleSegment ? 1 : contentSize;
  for (let isLast = false; !isLast; ) {
    if (at + BLOCK_HEADER_BYTES > bytes.length) return 0;
    const header = bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16);
    const type = (header >>> 1) & 3;
    if (type === RESERVED_BLOCK) return 0;
    isLast = (header & 1) !== 0;
    at += BLOCK_HEADER_BYTES + (type === RLE_BLOCK ? 1 : header >>> 3);
  }
  if ((descriptor & 4) !== 0) at += CHECKSUM_BYTES;
  return at <= bytes.length ? at : 0;
}
