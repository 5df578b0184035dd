import { describe, expect, test } from "bun:test";
import * as memfd from "../../../src/abi/memfd.ts";
import * as blk from "../../../src/abi/virtio-blk.ts";
import * as ring from "../../../src/abi/virtio-ring.ts";
import headers from "./virtio.json" with { type: "json" };

describe("abi", () => {
  test("virtio-blk.ts, virtio-ring.ts and memfd.ts have the values of the C headers", () => {
    const ours: Readonly<Record<string, unknown>> = { ...blk, ...ring, ...memfd };
    const named = Object.fromEntries(Object.keys(headers).map((name) => [name, ours[name]]));
    expect(named).toEqual(headers);
    expect(Object.keys(headers).length).toBeGreaterThan(90);
  });

  test("positions by word and by half agree with those by byte", () => {
    expect(ring.VIRTQ_DESC_LEN_U32 * 4).toBe(ring.VIRTQ_DESC_LEN);
    expect(ring.VIRTQ_DESC_FLAGS_NEXT_U32 * 4).toBe(ring.VIRTQ_DESC_FLAGS);
    expect(ring.VIRTQ_DESC_FLAGS + 2).toBe(ring.VIRTQ_DESC_NEXT);
    expect(ring.PVIRTQ_DESC_ID_FLAGS_U32 * 4).toBe(ring.PVIRTQ_DESC_ID);
    expect(ring.PVIRTQ_DESC_ID_U16 * 2).toBe(ring.PVIRTQ_DESC_ID);
    expect(ring.PVIRTQ_DESC_FLAGS_U16 * 2).toBe(ring.PVIRTQ_DESC_FLAGS);
    expect([ring.virtqAvailBytes(8), ring.virtqUsedBytes(8)]).toEqual([22, 70]);
  });
});
