/**
 * What users of a node have asked of it, counted as their requests end. A transport may ask in
 * several parts for what its client asked at once. Thread: iothread.
 * QSD differs: it counts for devices of a machine only, and so nothing for exports.
 */
import type { SavedStatistics } from "../iothread/messages.ts";
import type { BlockDeviceStats } from "../qapi/block-stats.ts";
import {
  type BlockNode,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
} from "./node.ts";

const OP_COUNT = OP_CACHE + 1;

export class Statistics {
  // By OP_*.
  #operations = new Float64Array(OP_COUNT);
  #failed = new Float64Array(OP_COUNT);
  #bytes = new Float64Array(OP_COUNT);
  #timeNs = new Float64Array(OP_COUNT);
  /** When the last request ended, on this thread's clock; null before the first. */
  #lastNs: number | null = null;
  /** Where the write ended that ended highest. */
  #highestWrite = 0;

  /** A request ended. `result`: -errno for a failure. `timeNs`: how long it took. */
  count(op: Op, bytes: number, result: number, timeNs: number, nowNs: number): void {
    if (result < 0) {
      this.#failed[op]!++;
      return;
    }
    this.#operations[op]!++;
    this.#bytes[op]! += bytes;
    this.#timeNs[op]! += timeNs;
    this.#lastNs = nowNs;
  }

  /** A WRITE or WRITE_ZEROES succeeded that ended at `end`. */
  countEnd(end: number): void {
    if (end > this.#highestWrite) this.#highestWrite = end;
  }

  /** For statistics of the same node on another thread, whose clock is another. */
  save(nowNs: number): SavedStatistics {
    return {
      operations: this.#operations,
      failed: this.#failed,
      bytes: this.#bytes,
      timeNs: this.#timeNs,
      idleNs: this.#idleNs(nowNs),
      highestWrite: this.#highestWrite,
    };
  }

  restore(saved: SavedStatistics, nowNs: number): void {
    this.#operations.set(saved.operations);
    this.#failed.set(saved.failed);
    this.#bytes.set(saved.bytes);
    this.#timeNs.set(saved.timeNs);
    this.#lastNs = saved.idleNs === null ? null : nowNs - saved.idleNs;
    this.#highestWrite = saved.highestWrite;
  }

  /** `highestWrite`: what the node itself knows, from its parents. */
  describe(nowNs: number, highestWrite: number): BlockDeviceStats {
    const idleNs = this.#idleNs(nowNs);
    const writes = (counts: Float64Array) => counts[OP_WRITE]! + counts[OP_WRITE_ZEROES]!;
    return {
      ...NEVER_COUNTED,
      rd_bytes: this.#bytes[OP_READ]!,
      wr_bytes: writes(this.#bytes),
      unmap_bytes: this.#bytes[OP_DISCARD]!,
      rd_operations: this.#operations[OP_READ]!,
      wr_operations: writes(this.#operations),
      flush_operations: this.#operations[OP_FLUSH]!,
      unmap_operations: this.#operations[OP_DISCARD]!,
      rd_total_time_ns: Math.round(this.#timeNs[OP_READ]!),
      wr_total_time_ns: Math.round(writes(this.#timeNs)),
      flush_total_time_ns: Math.round(this.#timeNs[OP_FLUSH]!),
      unmap_total_time_ns: Math.round(this.#timeNs[OP_DISCARD]!),
      wr_highest_offset: Math.max(this.#highestWrite, highestWrite),
      failed_rd_operations: this.#failed[OP_READ]!,
      failed_wr_operations: writes(this.#failed),
      failed_flush_operations: this.#failed[OP_FLUSH]!,
      failed_unmap_operations: this.#failed[OP_DISCARD]!,
      ...(idleNs === null ? {} : { idle_time_ns: Math.round(idleNs) }),
    };
  }

  #idleNs(nowNs: number): number | null {
    return this.#lastNs === null ? null : nowNs - this.#lastNs;
  }
}

/** No node merges requests or has zones, and transports refuse invalid requests themselves. */
const NEVER_COUNTED = {
  zone_append_bytes: 0,
  zone_append_operations: 0,
  zone_append_total_time_ns: 0,
  rd_merged: 0,
  wr_merged: 0,
  zone_append_merged: 0,
  unmap_merged: 0,
  failed_zone_append_operations: 0,
  invalid_rd_operations: 0,
  invalid_wr_operations: 0,
  invalid_zone_append_operations: 0,
  invalid_flush_operations: 0,
  invalid_unmap_operations: 0,
  account_invalid: false,
  account_failed: false,
  timed_stats: [],
};

const statistics = new WeakMap<BlockNode, Statistics>();

/** All users of a node count together, and what they counted outlives them. */
export function statisticsOf(node: BlockNode): Statistics {
  let ofNode = statistics.get(node);
  if (ofNode === undefined) {
    ofNode = new Statistics();
    statistics.set(node, ofNode);
  }
  return ofNode;
}
