/** Statistics of block nodes and devices. Pure. Spec: qapi/block-core.json BlockStats */
import type { GenericSchema, InferOutput } from "valibot";
import {
  arrayOf,
  bool,
  doc,
  enumeration,
  int,
  lazy,
  number,
  object,
  optional,
  str,
  uint64,
  union,
} from "./scalars.ts";
import type { ObjectMembers } from "./types.ts";

/** Bytes, requests and nanoseconds are totals since the node or device was made. */
const timedStats = object("BlockDeviceTimedStats", {
  interval_length: doc(int, "Seconds that the figures are about"),
  min_rd_latency_ns: doc(int, "Shortest read"),
  max_rd_latency_ns: doc(int, "Longest read"),
  avg_rd_latency_ns: doc(int, "Mean read"),
  min_wr_latency_ns: doc(int, "Shortest write"),
  max_wr_latency_ns: doc(int, "Longest write"),
  avg_wr_latency_ns: doc(int, "Mean write"),
  min_zone_append_latency_ns: doc(int, "Shortest zone append"),
  max_zone_append_latency_ns: doc(int, "Longest zone append"),
  avg_zone_append_latency_ns: doc(int, "Mean zone append"),
  min_flush_latency_ns: doc(int, "Shortest flush"),
  max_flush_latency_ns: doc(int, "Longest flush"),
  avg_flush_latency_ns: doc(int, "Mean flush"),
  avg_rd_queue_depth: doc(number, "Mean of reads in flight"),
  avg_wr_queue_depth: doc(number, "Mean of writes in flight"),
  avg_zone_append_queue_depth: doc(number, "Mean of zone appends in flight"),
});

const latencyHistogram = object("BlockLatencyHistogramInfo", {
  boundaries: doc(arrayOf(uint64), "Nanoseconds between the bins"),
  bins: doc(arrayOf(uint64), "Requests per bin"),
});

const blockDeviceStats = object("BlockDeviceStats", {
  rd_bytes: doc(int, "Bytes read"),
  wr_bytes: doc(int, "Bytes written"),
  zone_append_bytes: doc(int, "Bytes appended to zones"),
  unmap_bytes: doc(int, "Bytes discarded"),
  rd_operations: doc(int, "Reads"),
  wr_operations: doc(int, "Writes"),
  zone_append_operations: doc(int, "Zone appends"),
  flush_operations: doc(int, "Flushes"),
  unmap_operations: doc(int, "Discards"),
  rd_total_time_ns: doc(int, "Time in reads"),
  wr_total_time_ns: doc(int, "Time in writes"),
  zone_append_total_time_ns: doc(int, "Time in zone appends"),
  flush_total_time_ns: doc(int, "Time in flushes"),
  unmap_total_time_ns: doc(int, "Time in discards"),
  wr_highest_offset: doc(int, "Where the write that ended highest ended"),
  rd_merged: doc(int, "Reads merged with others"),
  wr_merged: doc(int, "Writes merged with others"),
  zone_append_merged: doc(int, "Zone appends merged with others"),
  unmap_merged: doc(int, "Discards merged with others"),
  idle_time_ns: optional(int, "Time since the last request"),
  failed_rd_operations: doc(int, "Reads that failed"),
  failed_wr_operations: doc(int, "Writes that failed"),
  failed_zone_append_operations: doc(int, "Zone appends that failed"),
  failed_flush_operations: doc(int, "Flushes that failed"),
  failed_unmap_operations: doc(int, "Discards that failed"),
  invalid_rd_operations: doc(int, "Reads that were refused"),
  invalid_wr_operations: doc(int, "Writes that were refused"),
  invalid_zone_append_operations: doc(int, "Zone appends that were refused"),
  invalid_flush_operations: doc(int, "Flushes that were refused"),
  invalid_unmap_operations: doc(int, "Discards that were refused"),
  account_invalid: doc(bool, "Refused requests count for idle_time_ns"),
  account_failed: doc(bool, "Failed requests count for latencies and idle_time_ns"),
  timed_stats: doc(arrayOf(timedStats), "Figures per interval that the user defined"),
  rd_latency_histogram: optional(latencyHistogram, "Reads"),
  wr_latency_histogram: optional(latencyHistogram, "Writes"),
  zone_append_latency_histogram: optional(latencyHistogram, "Zone appends"),
  flush_latency_histogram: optional(latencyHistogram, "Flushes"),
});
export type BlockDeviceStats = InferOutput<typeof blockDeviceStats>;

/** BlockStatsSpecificFile: branch of the drivers that open host files. */
const fileStats = {
  "discard-nb-ok": doc(uint64, "Discards that succeeded"),
  "discard-nb-failed": doc(uint64, "Discards that failed"),
  "discard-bytes-ok": doc(uint64, "Bytes discarded"),
} satisfies ObjectMembers;
const SPECIFIC: Readonly<Record<string, ObjectMembers>> = {
  file: fileStats,
  host_device: fileStats,
};

/** A device or node with those below, as query-blockstats tells it. */
export interface BlockStats {
  readonly device?: string | undefined;
  readonly qdev?: string | undefined;
  readonly "node-name"?: string | undefined;
  readonly stats: BlockDeviceStats;
  readonly "driver-specific"?: { readonly driver: string } | undefined;
  readonly parent?: BlockStats | undefined;
  readonly backing?: BlockStats | undefined;
}

/** `drivers`: names of all block drivers. */
export function blockStats(drivers: readonly string[]): GenericSchema<BlockStats> {
  const schema: GenericSchema<BlockStats> = object("BlockStats", {
    device: optional(str, "Name of the device"),
    qdev: optional(str, "Path or id of the device's object"),
    "node-name": optional(str, "Name of the node"),
    stats: doc(blockDeviceStats, "Counters"),
    "driver-specific": optional(
      union("BlockStatsSpecific", {
        base: { driver: enumeration("BlockdevDriver", drivers) },
        tag: "driver",
        branches: Object.fromEntries(
          Object.entries(SPECIFIC).filter(([driver]) => drivers.includes(driver)),
        ),
      }),
      "Counters of the driver",
    ),
    parent: optional(
      lazy(() => schema),
      "The file below",
    ),
    backing: optional(
      lazy(() => schema),
      "The image behind",
    ),
  });
  return schema;
}
