/** What one backend has done, counted as its requests end. Thread: iothread. */
import type { ExportStatistics } from "../iothread/messages.ts";
import { OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES, type Op } from "./node.ts";

const OP_COUNT = 6;

export class Statistics {
  #ops = new Float64Array(OP_COUNT);
  #bytes = new Float64Array(OP_COUNT);
  #failedOps = 0;

  count(op: Op, bytes: number, result: number): void {
    if (result < 0) {
      this.#failedOps++;
    } else {
      this.#ops[op]!++;
      this.#bytes[op]! += bytes;
    }
  }

  snapshot(): ExportStatistics {
    const ops = this.#ops;
    const bytes = this.#bytes;
    return {
      readOps: ops[OP_READ]!,
      readBytes: bytes[OP_READ]!,
      writeOps: ops[OP_WRITE]!,
      writeBytes: bytes[OP_WRITE]!,
      flushOps: ops[OP_FLUSH]!,
      discardOps: ops[OP_DISCARD]!,
      discardBytes: bytes[OP_DISCARD]!,
      zeroesOps: ops[OP_WRITE_ZEROES]!,
      zeroesBytes: bytes[OP_WRITE_ZEROES]!,
      failedOps: this.#failedOps,
    };
  }
}
