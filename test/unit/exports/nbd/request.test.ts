import { describe, expect, test } from "bun:test";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_PAYLOAD_LEN,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
} from "../../../../src/abi/nbd.ts";
import { REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK } from "../../../../src/block/node.ts";
import {
  decodeRequest,
  payloadBytes,
  type RequestHeader,
  type RequestRules,
  refusalOf,
  requestFlags,
} from "../../../../src/exports/nbd/request.ts";
import { EINVAL, ENOSPC, EPERM } from "../../../../src/runtime/errno.ts";
import { concat, request, viewOf } from "../../../support/nbd-wire.ts";

const MAX = 32 * 1024 * 1024;
const rules: RequestRules = { mode: "extended", exportBytes: 2 ** 40, readOnly: false };

function header(type: number, some: Partial<RequestHeader> = {}): RequestHeader {
  return { flags: 0, type, cookie0: 0, cookie1: 0, offset: 0, bytes: 512, ...some };
}

function errorOf(type: number, some: Partial<RequestHeader>, other: Partial<RequestRules> = {}) {
  return refusalOf(header(type, some), { ...rules, ...other }, false)?.error ?? 0;
}

describe("decodeRequest()", () => {
  test("takes every field of both forms from anywhere, and keeps the cookie's bytes", () => {
    for (const extended of [false, true]) {
      const offset = 2 ** 53 - 1;
      const length = extended ? 2 ** 40 + 5 : 2 ** 32 - 1;
      const fields = { type: 6, flags: 0x8001, cookie: 0x1122334455667788n, offset, length };
      const bytes = concat(new Uint8Array(3), request(fields, extended));
      const out = header(0);
      expect(decodeRequest(viewOf(bytes), 3, extended, out)).toBe(true);
      const expected = { type: 6, flags: 0x8001, offset, bytes: length };
      expect(out).toMatchObject({ ...expected, cookie0: 0x44332211, cookie1: 0x88776655 | 0 });
      expect(decodeRequest(viewOf(bytes), 3, !extended, out)).toBe(false);
      expect(decodeRequest(viewOf(bytes), 2, extended, out)).toBe(false);
    }
  });
});

describe("payloadBytes()", () => {
  test("counts what follows the header", () => {
    const flags = NBD_CMD_FLAG_PAYLOAD_LEN;
    expect(payloadBytes(header(NBD_CMD_WRITE), "simple")).toBe(512);
    expect(payloadBytes(header(NBD_CMD_WRITE), "extended")).toBe(512);
    expect(payloadBytes(header(NBD_CMD_READ), "extended")).toBe(0);
    expect(payloadBytes(header(NBD_CMD_READ, { flags }), "structured")).toBe(0);
    expect(payloadBytes(header(NBD_CMD_READ, { flags }), "extended")).toBe(512);
    expect(payloadBytes(header(999, { flags }), "extended")).toBe(512);
  });
});

describe("refusalOf()", () => {
  test("lets only reads pass to an inactive node, after all other checks", () => {
    const refusals = [0, 1, 3, 4, 5, 6, 7, 8].map((type) =>
      refusalOf(header(type), { ...rules, mode: "structured" }, true),
    );
    const inactive = { error: -EPERM, message: "export is inactive" };
    expect(refusals).toEqual([null, ...Array(7).fill(inactive)]);
    expect(refusalOf(header(1, { offset: 2 ** 41 }), rules, true)?.error).toBe(-ENOSPC);
  });

  test("allows all up to the last byte, and nothing beyond", () => {
    const last = rules.exportBytes - 512;
    for (const [type, error] of [
      [NBD_CMD_READ, -EINVAL],
      [NBD_CMD_WRITE, -ENOSPC],
      [NBD_CMD_TRIM, -EINVAL],
      [NBD_CMD_CACHE, -EINVAL],
      [NBD_CMD_WRITE_ZEROES, -ENOSPC],
      [NBD_CMD_BLOCK_STATUS, -EINVAL],
    ] as const) {
      expect([type, errorOf(type, { offset: last })]).toEqual([type, 0]);
      expect([type, errorOf(type, { offset: last + 1 })]).toEqual([type, error]);
      expect([type, errorOf(type, { offset: 2 ** 64 })]).toEqual([type, error]);
      expect([type, errorOf(type, { offset: rules.exportBytes, bytes: 0 })]).toEqual([type, 0]);
    }
    expect(errorOf(NBD_CMD_FLUSH, { offset: 2 ** 60 })).toBe(0);
  });

  test("limits what is carried, not what is only named", () => {
    for (const type of [NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_CACHE]) {
      expect([type, errorOf(type, { bytes: MAX })]).toEqual([type, 0]);
      expect([type, errorOf(type, { bytes: MAX + 1 })]).toEqual([type, -EINVAL]);
    }
    for (const type of [NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS]) {
      expect([type, errorOf(type, { bytes: 2 ** 40 })]).toEqual([type, 0]);
    }
  });

  test("allows of the flags those of the command and the kind of replies", () => {
    const allowed: [number, number][] = [
      [NBD_CMD_READ, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF],
      [NBD_CMD_WRITE, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN],
      [NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA],
      [NBD_CMD_TRIM, NBD_CMD_FLAG_FUA],
      [NBD_CMD_CACHE, NBD_CMD_FLAG_FUA],
      [NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO],
      [NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN],
    ];
    for (const [type, valid] of allowed) {
      for (let bit = 0; bit < 16; bit++) {
        const flags = 1 << bit;
        const error = (flags & valid) !== 0 ? 0 : -EINVAL;
        expect([type, bit, errorOf(type, { flags })]).toEqual([type, bit, error]);
      }
    }
    expect(errorOf(NBD_CMD_READ, { flags: NBD_CMD_FLAG_DF }, { mode: "simple" })).toBe(-EINVAL);
    const flags = NBD_CMD_FLAG_PAYLOAD_LEN;
    expect(errorOf(NBD_CMD_WRITE, { flags }, { mode: "structured" })).toBe(-EINVAL);
  });

  test("refuses unknown commands, and writes to what is read-only", () => {
    for (const type of [NBD_CMD_DISC, 8, 65535]) expect(errorOf(type, {})).toBe(-EINVAL);
    for (const type of [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES]) {
      expect([type, errorOf(type, {}, { readOnly: true })]).toEqual([type, -EPERM]);
    }
    for (const type of [NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_CACHE, NBD_CMD_BLOCK_STATUS]) {
      expect([type, errorOf(type, {}, { readOnly: true })]).toEqual([type, 0]);
    }
  });
});

describe("requestFlags()", () => {
  test("translates what the block layer has to know", () => {
    const fua = { flags: NBD_CMD_FLAG_FUA };
    expect(requestFlags(header(NBD_CMD_WRITE, fua))).toBe(REQ_FUA);
    expect(requestFlags(header(NBD_CMD_WRITE))).toBe(0);
    expect(requestFlags(header(NBD_CMD_WRITE_ZEROES))).toBe(REQ_MAY_UNMAP);
    const flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_FUA;
    expect(requestFlags(header(NBD_CMD_WRITE_ZEROES, { flags }))).toBe(REQ_FUA | REQ_NO_FALLBACK);
  });
});
