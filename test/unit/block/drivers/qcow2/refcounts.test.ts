import { describe, expect, test } from "bun:test";
import * as abi from "../../../../../src/abi/qcow2.ts";
import { parseHeader, viewOf } from "../../../../../src/block/drivers/qcow2/header.ts";
import { layoutOf } from "../../../../../src/block/drivers/qcow2/layout.ts";
import { MetadataMap } from "../../../../../src/block/drivers/qcow2/metadata-map.ts";
import {
  parseRefcountTable,
  type RefcountBlock,
  Refcounts,
} from "../../../../../src/block/drivers/qcow2/refcounts.ts";
import { headerCluster } from "../../../../support/qcow2-header.ts";

function refcounts(order: number): Refcounts {
  const cluster = headerCluster();
  viewOf(cluster).setUint32(abi.HEADER_REFCOUNT_ORDER, order);
  const layout = layoutOf(parseHeader(cluster));
  return new Refcounts(null as never, layout, new Float64Array(4), 4);
}

describe("Refcounts", () => {
  test("keeps entries of all widths apart", () => {
    for (const order of [0, 1, 2, 3, 4, 5, 6]) {
      const counts = refcounts(order);
      const block = counts.addBlock(1, 0x50000);
      const most = Math.min(counts.layout.refcountMax, 2 ** 40);
      for (const entry of [0, 1, 2, 5, 7, 8]) counts.set(block, entry, entry % 2 === 1 ? most : 0);
      const read = [0, 1, 2, 5, 7, 8].map((entry) => counts.get(block, entry));
      expect(read).toEqual([0, most, 0, most, most, 0]);
    }
  });

  test("puts narrow entries where qcow2 does: the lowest bits first", () => {
    const counts = refcounts(1);
    const block = counts.addBlock(0, 0x50000);
    counts.set(block, 1, 2);
    counts.set(block, 4, 3);
    expect([...block.bytes.subarray(0, 2)]).toEqual([0b1000, 0b11]);
  });

  test("knows what has to be written", () => {
    const counts = refcounts(4);
    const block = counts.addBlock(2, 0x50000);
    expect([counts.fresh.has(block), counts.has(2), counts.has(3), counts.has(4)]).toEqual([
      true,
      true,
      false,
      false,
    ]);
    counts.markClean(block);
    counts.set(block, 10, 1);
    expect([block.dirtyFrom, block.dirtyTo]).toEqual([20, 22]);
  });
});

describe("Refcounts without room", () => {
  const clusterBytes = 65536;
  const file = {
    node: { bytes: 10 * clusterBytes },
    async readBytes(_offset: number, bytes: number) {
      return new Uint8Array(bytes);
    },
  };
  const make = (): Refcounts => {
    const table = Float64Array.from([1, 2, 3].map((at) => at * clusterBytes));
    return new Refcounts(file as never, layoutOf(parseHeader(headerCluster())), table, 1);
  };

  test("keep a block until the disk has it", async () => {
    const counts = make();
    const block = (await counts.load(0)) as RefcountBlock;
    counts.set(block, 5, 1);
    counts.markClean(block);
    block.isBeingWritten = true;
    await counts.load(1);
    expect(counts.find(0)).toBe(block);
    block.isBeingWritten = false;
    await counts.load(2);
    expect(counts.find(0)).toBe(null);
  });

  test("keep a block that is changed by who waited for it", async () => {
    const counts = make();
    const block = (await counts.load(0)) as RefcountBlock;
    await counts.load(1);
    expect(counts.find(0)).toBe(null);
    const again = counts.load(0);
    counts.set(block, 5, 1);
    expect(await again).toBe(block);
    expect(counts.find(0)).toBe(block);
  });
});

describe("parseRefcountTable()", () => {
  test("drops reserved bits", () => {
    const bytes = new Uint8Array(16);
    viewOf(bytes).setUint32(4, 0x50001ff);
    viewOf(bytes).setUint32(8, 1);
    expect([...parseRefcountTable(bytes)]).toEqual([0x5000000, 2 ** 32]);
  });
});

describe("MetadataMap", () => {
  const map = () => new MetadataMap(4096, new Set(["active-l1"]));

  test("finds overlaps of what is checked", () => {
    const metadata = map();
    metadata.add("active-l1", 8192, 100);
    metadata.add("active-l2", 16384, 4096);
    expect(metadata.overlapOf(0, 8192)).toBe(null);
    expect(metadata.overlapOf(4096, 4097)).toBe("active-l1");
    expect(metadata.overlapOf(16384, 1)).toBe(null);
    expect(metadata.has(16384)).toBe(true);
    metadata.remove(8192, 100);
    expect(metadata.overlapOf(8192, 1)).toBe(null);
  });

  test("knows clusters that are said to hold two things", () => {
    const metadata = map();
    metadata.add("active-l1", 8192, 100);
    metadata.add("active-l2", 8192, 4096);
    expect(metadata.dispute).toEqual({ kind: "active-l1", offset: 8192 });
  });
});
