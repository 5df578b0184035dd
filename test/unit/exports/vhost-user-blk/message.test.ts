import { describe, expect, test } from "bun:test";
import * as vu from "../../../../src/abi/vhost-user.ts";
import {
  checkHeader,
  checkShape,
  encodeMessage,
  encodeU64,
  type Message,
  PAYLOAD_BYTES_MAX,
  Payload,
  readHeader,
} from "../../../../src/exports/vhost-user-blk/message.ts";
import { longs, words } from "../../../support/vhost-user-client.ts";

const message = (request: number, bytes: Uint8Array, fdCount = 0): Message => ({
  request,
  needsReply: false,
  payload: new Payload(bytes),
  fds: new Array(fdCount).fill(5),
});

describe("checkHeader()", () => {
  const check = (flags: number, bytes: number) => checkHeader(readHeader(words(1, flags, bytes)));

  test("takes what is well-formed", () => {
    expect(check(1, 0)).toBeUndefined();
    expect(check(9, PAYLOAD_BYTES_MAX)).toBeUndefined();
  });

  test("refuses versions, replies and sizes that are none", () => {
    for (const flags of [0, 2, 3, 0xffff_fffe]) expect(check(flags, 0)).toContain("version");
    expect(check(5, 0)).toBe("Unexpected reply: 1");
    for (const bytes of [PAYLOAD_BYTES_MAX + 1, 0x8000_0000, 0xffff_ffff]) {
      expect(check(1, bytes)).toContain("too big message request: 1");
    }
  });
});

describe("checkShape()", () => {
  test("wants as many descriptors as there are regions", () => {
    const table = (count: number, given: number) =>
      Uint8Array.of(...words(count, 0), ...new Uint8Array(32 * given));
    const check = (count: number, given: number, fdCount: number) =>
      checkShape(message(vu.VHOST_USER_SET_MEM_TABLE, table(count, given), fdCount));
    expect(check(0, 0, 0)).toBeUndefined();
    expect(check(8, 8, 8)).toBeUndefined();
    expect(check(2, 2, 1)).toContain("Invalid fds");
    expect(check(2, 1, 2)).toContain("Invalid size");
    expect(check(9, 9, 8)).toContain("Invalid size");
    expect(check(0xffff_ffff, 1, 1)).toContain("Invalid size");
  });

  test("wants a descriptor, or the flag that there is none", () => {
    for (const request of [12, 13, 14]) {
      expect(checkShape(message(request, longs(3), 1))).toBeUndefined();
      expect(checkShape(message(request, longs(3 | 256), 0))).toBeUndefined();
      expect(checkShape(message(request, longs(3), 0))).toContain("Invalid fds");
      expect(checkShape(message(request, longs(3), 2))).toContain("Invalid fds");
      expect(checkShape(message(request, words(3), 1))).toContain("Invalid size");
    }
  });

  test("believes no configuration that is longer than its message", () => {
    const config = (bytes: number, given: number) =>
      message(vu.VHOST_USER_GET_CONFIG, Uint8Array.of(...words(0, bytes, 0), ...Array(given)));
    expect(checkShape(config(60, 60))).toBeUndefined();
    expect(checkShape(config(61, 60))).toContain("Invalid size");
    expect(checkShape(config(0xffff_ffff, 60))).toContain("Invalid size");
  });

  test("refuses what it does not know, and payloads that are too short", () => {
    for (const request of [0, 19, 22, 23, 28, 33, 44, 0xffff_ffff]) {
      expect(checkShape(message(request, longs(0)))).toBe(`Unhandled request: ${request}`);
    }
    for (const request of [2, 8, 9, 10, 11, 16, 18, 31, 39]) {
      expect(checkShape(message(request, new Uint8Array(4)))).toContain("Invalid size");
    }
    expect(checkShape(message(vu.VHOST_USER_GET_FEATURES, new Uint8Array(0), 1))).toContain("fds");
  });
});

describe("Payload", () => {
  test("has fields of all sizes, wherever it begins", () => {
    const bytes = Uint8Array.of(9, ...longs(0x1_0000_0002n, 2n ** 64n - 1n)).subarray(1);
    const payload = new Payload(bytes);
    expect(payload.u16(0)).toBe(2);
    expect(payload.u32(4)).toBe(1);
    expect(payload.u64(0)).toBe(0x1_0000_0002);
    expect(Number.isSafeInteger(payload.u64(8))).toBe(false);
    expect(payload.bits(8)).toBe(2n ** 64n - 1n);
  });
});

describe("encodeMessage()", () => {
  test("marks replies, and requests of the back-end as none", () => {
    expect(encodeMessage(1, encodeU64(5n))).toEqual(Uint8Array.of(...words(1, 5, 8), ...longs(5)));
    expect(encodeMessage(2, new Uint8Array(0), 1)).toEqual(words(2, 1, 0));
  });
});
