import { describe, expect, test } from "bun:test";
import { zstdFrameBytes } from "../../../../../src/block/drivers/qcow2/zstd-frame.ts";

/** A frame of one raw block "abc", as zstd writes it for a stream. */
const FRAME = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x19, 0x00, 0x00, 0x61, 0x62, 0x63];

describe("zstdFrameBytes()", () => {
  test("ends where the frame does", () => {
    expect(zstdFrameBytes(Uint8Array.from([...FRAME, 1, 2, 3]))).toBe(FRAME.length);
  });

  test("counts a checksum", () => {
    const frame = Uint8Array.from([...FRAME, 1, 2, 3, 4, 5]);
    frame[4] = 4;
    expect(zstdFrameBytes(frame)).toBe(FRAME.length + 4);
  });

  test("finds no frame in what is none, or not whole", () => {
    expect(zstdFrameBytes(Uint8Array.from(FRAME.slice(1)))).toBe(0);
    for (let bytes = 0; bytes < FRAME.length; bytes++) {
      expect(zstdFrameBytes(Uint8Array.from(FRAME.slice(0, bytes)))).toBe(0);
    }
  });
});
