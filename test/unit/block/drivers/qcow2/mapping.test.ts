import { describe, expect, test } from "bun:test";
import * as abi from "../../../../../src/abi/qcow2.ts";
import { parseHeader, viewOf } from "../../../../../src/block/drivers/qcow2/header.ts";
import { L2Tables } from "../../../../../src/block/drivers/qcow2/l2-tables.ts";
import { type Layout, layoutOf } from "../../../../../src/block/drivers/qcow2/layout.ts";
import * as mapping from "../../../../../src/block/drivers/qcow2/mapping.ts";
import { headerCluster } from "../../../../support/qcow2-header.ts";

const CLUSTER = 65536;
const COPIED = 0x8000_0000;
const COMPRESSED = 0x4000_0000;

function layout(incompatible = 0, version = 3): Layout {
  const cluster = headerCluster();
  viewOf(cluster).setUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4, incompatible);
  viewOf(cluster).setUint32(abi.HEADER_VERSION, version);
  return layoutOf(parseHeader(cluster));
}

/** A disk whose first table holds these words. */
function mapOf(of: Layout, words: readonly number[]): mapping.ClusterMap {
  const l1 = new Uint32Array([COPIED, 0x40000, COPIED, 0x50000, 0, 0]);
  const tables = new L2Tables({ layout: of, l1, sliceBytes: 4096, slicesMax: 4 });
  tables.add(
    0,
    Uint32Array.from({ length: 1024 }, (_, i) => words[i] ?? 0),
  );
  return new mapping.ClusterMap(tables);
}

const out = mapping.newMapping();
const look = (map: mapping.ClusterMap, offset: number, bytes: number): mapping.Mapping => {
  map.lookup(offset, bytes, out);
  return { ...out };
};

describe("ClusterMap", () => {
  test("merges what is one run in the file", () => {
    const map = mapOf(layout(), [COPIED, 0x50000, COPIED, 0x60000, COPIED, 0x80000]);
    expect(look(map, 512, 3 * CLUSTER)).toEqual({
      kind: mapping.NORMAL,
      host: 0x50000 + 512,
      bytes: 2 * CLUSTER - 512,
      copied: true,
    });
  });

  test("parts runs where others share a cluster", () => {
    const map = mapOf(layout(), [COPIED, 0x50000, 0, 0x60000]);
    expect(look(map, 0, 2 * CLUSTER).bytes).toBe(CLUSTER);
    expect(look(map, CLUSTER, CLUSTER).copied).toBe(false);
  });

  test("tells zeroes with a place from others", () => {
    const map = mapOf(layout(), [0, 1, 0, 1, COPIED, 0x50001, 0, 0]);
    expect([look(map, 0, 4 * CLUSTER).kind, out.bytes]).toEqual([mapping.ZERO_PLAIN, 2 * CLUSTER]);
    expect(look(map, 2 * CLUSTER, CLUSTER).kind).toBe(mapping.ZERO_PLACED);
    expect(look(map, 3 * CLUSTER, CLUSTER).kind).toBe(mapping.UNALLOCATED);
  });

  test("knows what can't be", () => {
    const words = [COPIED, 0x50200, COPIED | 0x40_0000, 0x10000, COMPRESSED, 0x50123];
    const map = mapOf(layout(), words);
    expect(look(map, 0, 1).kind).toBe(mapping.INVALID);
    expect(look(map, CLUSTER, 1).kind).toBe(mapping.INVALID);
    expect(look(map, 2 * CLUSTER, 1).kind).toBe(mapping.COMPRESSED);
    expect(look(mapOf(layout(0, 2), [0, 1]), 0, 1).kind).toBe(mapping.INVALID);
  });

  test("says what is not in memory, and what does not exist", () => {
    const map = mapOf(layout(), []);
    const slice = 512 * CLUSTER;
    expect(look(map, slice, 1).kind).toBe(mapping.MISSING);
    const span = 8192 * CLUSTER;
    expect(look(map, 2 * span, 3 * span)).toMatchObject({
      kind: mapping.UNALLOCATED,
      bytes: span,
    });
  });

  test("never looks beyond its slice", () => {
    expect(look(mapOf(layout(), []), 510 * CLUSTER, 10 * CLUSTER).bytes).toBe(2 * CLUSTER);
  });

  test("takes only the guest's own offset in a data file", () => {
    const words = [COPIED, 0, COPIED, 0x50000, COMPRESSED, 0x50123];
    const map = mapOf(layout(abi.QCOW2_INCOMPAT_DATA_FILE), words);
    expect(look(map, 0, 1)).toMatchObject({ kind: mapping.NORMAL, host: 0 });
    expect(look(map, 2 * CLUSTER, 1).kind).toBe(mapping.INVALID);
    expect(look(map, CLUSTER, 1).kind).toBe(mapping.INVALID);
  });

  describe("with subclusters", () => {
    const extended = layout(abi.QCOW2_INCOMPAT_EXTL2);
    const SUB = 2048;

    test("follows the bitmap through clusters", () => {
      // Allocated but for the first, which is zeroes; all of the next one.
      const first = [COPIED, 0x50000, 1, 0xffff_fffe];
      const map = mapOf(extended, [...first, COPIED, 0x60000, 0, 0xffff_ffff]);
      expect(look(map, 0, CLUSTER)).toMatchObject({ kind: mapping.ZERO_PLACED, bytes: SUB });
      expect(look(map, SUB + 7, 2 * CLUSTER)).toMatchObject({
        kind: mapping.NORMAL,
        host: 0x50000 + SUB + 7,
        bytes: 2 * CLUSTER - SUB - 7,
      });
    });

    test("tells whether what is not allocated has a place", () => {
      const map = mapOf(extended, [COPIED, 0x50000, 0, 1, 0, 0, 0, 0, 0, 0, 0xffff_ffff, 0]);
      expect(look(map, SUB, CLUSTER)).toMatchObject({
        kind: mapping.UNALLOCATED_PLACED,
        bytes: CLUSTER - SUB,
      });
      expect(look(map, CLUSTER, 9).kind).toBe(mapping.UNALLOCATED);
      expect(look(map, 2 * CLUSTER, 9).kind).toBe(mapping.ZERO_PLAIN);
    });

    test("knows what can't be", () => {
      const both = mapOf(extended, [COPIED, 0x50000, 1, 1, 0, 0, 0, 1, COMPRESSED, 9, 0, 1]);
      for (const cluster of [0, 1, 2]) {
        expect(look(both, cluster * CLUSTER, 1).kind).toBe(mapping.INVALID);
      }
    });
  });
});

describe("L2Tables", () => {
  const make = (slicesMax: number) => {
    const l1 = new Uint32Array([COPIED, 0x40000]);
    return new L2Tables({ layout: layout(), l1, sliceBytes: 4096, slicesMax });
  };

  test("evicts what was not used, is not dirty and not in use", () => {
    const tables = make(3);
    const slices = [0, 1, 2].map((key) => tables.add(key, tables.emptyWords()));
    slices[0]!.pins = 1;
    tables.markDirty(slices[1]!, 0, 2);
    expect([tables.isFull, tables.evict(), tables.sliceCount]).toEqual([true, true, 2]);
    expect(tables.find(2 * tables.sliceSpan)).toBe(null);
    expect(tables.evict()).toBe(false);
    tables.markClean();
    expect([tables.evict(), tables.evict()]).toEqual([true, false]);
  });

  test("knows where slices lie", () => {
    const tables = make(3);
    expect(tables.offsetOf(tables.add(3, tables.emptyWords()))).toBe(0x40000 + 3 * 4096);
  });

  test("forgets what a dropped table had", () => {
    const tables = make(3);
    tables.markDirty(tables.add(0, tables.emptyWords()), 0, 1);
    tables.dropTable(0);
    expect([tables.find(0), tables.dirty.size, [...tables.dirtyL1]]).toEqual([null, 0, [0]]);
  });
});
