import { describe, expect, test } from "bun:test";
import {
  planImage,
  type Qcow2CreateOptions,
} from "../../../../../src/block/drivers/qcow2/create-options.ts";
import { newHeader } from "../../../../../src/block/drivers/qcow2/new-header.ts";
import { Random, randomSeed } from "../../../../support/random.ts";

const MiB = 1024 * 1024;
const TiB = MiB * MiB;

function said(options: Partial<Qcow2CreateOptions>, hasDataFile = false): string {
  try {
    planImage({ size: MiB, ...options }, hasDataFile);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

describe("planImage()", () => {
  test("refuses what does not go together, in QSD's words", () => {
    const modern = "compatibility level 1.1 and above (use version=v3 or greater)";
    const v2 = { version: "v2" } as const;
    const sizes = "Cluster size must be a power of two between 512 and 2048k";
    for (const size of [0, 1, 256, 511, 1000, 4 * MiB])
      expect(said({ "cluster-size": size })).toBe(sizes);
    for (const bits of [0, 3, 5, 128, -8]) {
      expect(said({ "refcount-bits": bits })).toBe(
        "Refcount width must be a power of two and may not exceed 64 bits",
      );
    }
    expect(said({ ...v2, "refcount-bits": 8 })).toBe(
      "Different refcount widths than 16 bits require compatibility level 1.1 or above " +
        "(use version=v3 or greater)",
    );
    expect(said({ ...v2, "refcount-bits": 16 })).toBe("");
    expect(said({ ...v2, "extended-l2": true })).toBe(
      `Extended L2 entries are only supported with ${modern}`,
    );
    expect(said({ ...v2, "compression-type": "zstd" })).toBe(
      `Non-zlib compression type is only supported with ${modern}`,
    );
    expect(said(v2, true)).toBe(`External data files are only supported with ${modern}`);
    const both = { "backing-file": "b", preallocation: "metadata" } as const;
    expect(said(both)).toBe(
      "Backing file and preallocation can only be used at the same time if extended_l2 is on",
    );
    expect(said({ ...both, "extended-l2": true })).toBe("");
    expect(said({ "data-file-raw": true, "backing-file": "b" }, true)).toBe(
      "Backing file and data-file-raw cannot be used at the same time",
    );
    expect(said({ size: -512 })).toBe("Could not resize image: Image size cannot be negative");
  });

  test("refuses sizes that the tables can't have", () => {
    const tables = {
      "cluster-size": 4096,
      "refcount-bits": 64,
      preallocation: "metadata",
    } as const;
    const message = "Could not resize image: Failed to grow the L1 table: File too large";
    expect(said({ size: 128 * 1024 * MiB, "cluster-size": 512 })).toBe("");
    expect(said({ size: 128 * 1024 * MiB + 512, "cluster-size": 512 })).toBe(message);
    expect(said({ size: 2048 * TiB })).toBe("");
    expect(said({ size: Number.MAX_SAFE_INTEGER })).toBe(message);
    expect(said({ ...tables, size: 4 * TiB })).toBe(
      "Could not resize image: Failed to grow the refcount table: File too large",
    );
  });

  test("puts all parts one after the other, with a refcount for each cluster", () => {
    const random = new Random(randomSeed());
    for (let i = 0; i < 500; i++) {
      const clusterBytes = 2 ** (9 + random.below(13));
      const bits = 2 ** random.below(7);
      const clusters = 2 ** random.below(20) + random.below(3);
      const options = {
        size: Math.min(clusters, 60_000_000 / 64) * clusterBytes - 512 * random.below(2),
        "cluster-size": clusterBytes,
        "refcount-bits": bits,
        preallocation: random.pick(["off", "metadata"] as const),
      };
      const image = planImage(options, random.chance(0.3));
      const { refcountBlocksOffset, l1TableOffset, l2TablesOffset, dataOffset } = image;
      expect(refcountBlocksOffset).toBe((1 + image.refcountTableClusters) * clusterBytes);
      const blocks = (l1TableOffset - refcountBlocksOffset) / clusterBytes;
      expect(Number.isInteger(blocks)).toBe(true);
      expect((blocks * clusterBytes * 8) / bits).toBeGreaterThanOrEqual(image.clusterCount);
      expect(image.refcountTableClusters * clusterBytes).toBeGreaterThanOrEqual(blocks * 8);
      expect(l2TablesOffset - l1TableOffset).toBeGreaterThanOrEqual(image.l1Entries * 8);
      expect(dataOffset - l2TablesOffset).toBe(image.l2TableCount * clusterBytes);
      const end = dataOffset + image.dataClusters * clusterBytes;
      expect(end).toBe(image.clusterCount * clusterBytes);
      expect(image.fileBytes).toBeLessThanOrEqual(end);
    }
  });
});

describe("newHeader()", () => {
  const headerOf = (options: Partial<Qcow2CreateOptions>, dataFile?: string) =>
    newHeader(planImage({ size: MiB, ...options }, dataFile !== undefined), dataFile);

  test("has room for long names only where clusters have", () => {
    const name = "x".repeat(1023);
    const named = { "backing-file": name, "backing-fmt": "raw" };
    expect(headerOf(named).length).toBe(112 + 16 + 392 + 8 + 1023);
    const words = `Could not assign backing file '${name}' with format 'raw': `;
    expect(() => headerOf({ ...named, "cluster-size": 512 })).toThrow(
      `${words}No space left on device`,
    );
    expect(() => headerOf({ "backing-file": `${name}x` })).toThrow("Invalid argument");
    const dataFile = "d".repeat(500);
    expect(() => headerOf({ "cluster-size": 512 }, dataFile)).toThrow("No space left on device");
  });
});
