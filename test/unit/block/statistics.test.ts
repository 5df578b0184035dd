import { describe, expect, test } from "bun:test";
import {
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
} from "../../../src/block/node.ts";
import { Statistics } from "../../../src/block/statistics.ts";
import { EIO } from "../../../src/runtime/errno.ts";

describe("Statistics", () => {
  test("starts with nothing, and no idle time", () => {
    const stats = new Statistics().describe(1000, 0);
    const { timed_stats, account_failed, account_invalid, ...counts } = stats;
    expect(timed_stats).toEqual([]);
    expect([account_failed, account_invalid]).toEqual([false, false]);
    expect(new Set(Object.values(counts))).toEqual(new Set([0]));
    expect(Object.keys(counts)).toHaveLength(29);
  });

  test("counts requests, bytes and time of each kind; zeroes are writes", () => {
    const statistics = new Statistics();
    statistics.count(OP_READ, 512, 0, 10, 1000);
    statistics.count(OP_READ, 1024, 0, 30, 1010);
    statistics.count(OP_WRITE, 4096, 0, 5, 1020);
    statistics.count(OP_WRITE_ZEROES, 8192, 0, 7, 1030);
    statistics.count(OP_DISCARD, 65536, 0, 11, 1040);
    statistics.count(OP_FLUSH, 0, 0, 13, 1050);
    statistics.count(OP_CACHE, 99, 0, 17, 1060);
    expect(statistics.describe(1500, 0)).toMatchObject({
      rd_operations: 2,
      rd_bytes: 1536,
      rd_total_time_ns: 40,
      wr_operations: 2,
      wr_bytes: 12288,
      wr_total_time_ns: 12,
      unmap_operations: 1,
      unmap_bytes: 65536,
      unmap_total_time_ns: 11,
      flush_operations: 1,
      flush_total_time_ns: 13,
      idle_time_ns: 440,
    });
  });

  test("counts failures apart, and neither their bytes nor their time", () => {
    const statistics = new Statistics();
    for (const op of [OP_READ, OP_WRITE, OP_WRITE_ZEROES, OP_DISCARD, OP_FLUSH] as const) {
      statistics.count(op, 512, -EIO, 10, 1000);
    }
    const stats = statistics.describe(2000, 0);
    expect(stats).toMatchObject({
      failed_rd_operations: 1,
      failed_wr_operations: 2,
      failed_unmap_operations: 1,
      failed_flush_operations: 1,
      rd_operations: 0,
      wr_bytes: 0,
      wr_total_time_ns: 0,
    });
    expect(stats.idle_time_ns).toBeUndefined();
  });

  test("knows where the write ended that ended highest, its own or the node's", () => {
    const statistics = new Statistics();
    statistics.countEnd(4096);
    statistics.countEnd(512);
    expect(statistics.describe(0, 0).wr_highest_offset).toBe(4096);
    expect(statistics.describe(0, 8192).wr_highest_offset).toBe(8192);
  });

  test("goes on elsewhere with what was saved", () => {
    const statistics = new Statistics();
    statistics.count(OP_READ, 512, 0, 10, 1000);
    statistics.count(OP_WRITE, 512, -EIO, 10, 1000);
    statistics.countEnd(512);
    const other = new Statistics();
    // There the clock began later.
    other.restore(structuredClone(statistics.save(1500)), 20);
    expect(other.describe(30, 0).idle_time_ns).toBe(510);
    other.count(OP_READ, 512, 0, 10, 100);
    expect(other.describe(1000, 0)).toMatchObject({
      rd_operations: 2,
      failed_wr_operations: 1,
      wr_highest_offset: 512,
      idle_time_ns: 900,
    });
    expect(statistics.describe(2000, 0).rd_operations).toBe(1);
    const unused = new Statistics();
    unused.restore(new Statistics().save(1500), 20);
    expect(unused.describe(30, 0).idle_time_ns).toBeUndefined();
  });
});
