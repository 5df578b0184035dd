/**
 * null-co and null-aio: a disk of zeroes that forgets what is written. Schema on main, nodes on
 * an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsNull
 */
import type { Reactor } from "../../io/reactor.ts";
import type { NodeDescription } from "../../iothread/messages.ts";
import { bool, int, optional, uint64 } from "../../qapi/scalars.ts";
import { ENOTSUP } from "../../runtime/errno.ts";
import { assert, OutportError } from "../../util/error.ts";
import { LENGTH_MAX, nodeBytes, SECTOR_BYTES } from "../description.ts";
import type { BlockDriver, OpenContext } from "../driver.ts";
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  OP_WRITE,
  type Op,
  REQ_NO_FALLBACK,
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_ZERO,
  ZERO,
} from "../node.ts";

const BYTES_DEFAULT = 1024 * 1024 * 1024;

interface NullOptions {
  readonly size?: number;
  readonly "latency-ns"?: number;
  readonly "read-zeroes"?: boolean;
}

const LIMITS: BlockLimits = {
  requestAlignment: 1,
  memoryAlignment: 1,
  transferBytesMax: 2 ** 31 - 512,
  discardAlignment: 1,
};

class NullNode implements BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  readonly bytes: number;
  writable: boolean;
  readonly limits = LIMITS;
  highestWrite = 0;
  #reactor: Reactor;
  #context: OpenContext;
  #latencyNs: number;
  #statusFlags: number;

  constructor(driver: string, context: OpenContext) {
    const options = context.options as NullOptions;
    const { size = BYTES_DEFAULT, "latency-ns": latencyNs = 0 } = options;
    // A negative one arrives as the largest number.
    if (latencyNs === Number.MAX_SAFE_INTEGER)
      throw new OutportError("invalid", "latency-ns is invalid");
    if (size < 0) {
      throw new OutportError("invalid", `Value '${size}' is out of range for parameter 'size'`);
    }
    if (size > LENGTH_MAX) {
      throw new OutportError("limit", "Could not refresh total sector count: File too large");
    }
    this.nodeName = context.nodeName;
    this.driver = driver;
    this.bytes = nodeBytes(size);
    this.writable = !context.readOnly;
    this.#reactor = context.reactor;
    this.#context = context;
    this.#latencyNs = latencyNs;
    // What QSD says of it: without read-zeroes nothing is promised about the contents.
    this.#statusFlags = options["read-zeroes"] === true ? STATUS_ZERO | STATUS_ALLOCATED : 0;
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    if (op === OP_WRITE) this.#noteWrite(offset + bytes);
    if (this.#latencyNs > 0) return SLOW;
    out.bytes = bytes;
    return ZERO;
  }

  #noteWrite(end: number): void {
    if (end > this.highestWrite) this.highestWrite = end;
  }

  async read(_offset: number, bytes: number, address: number): Promise<number> {
    this.#reactor.memory.zero(address, bytes);
    return this.#sleep();
  }

  write(): Promise<number> {
    return this.#sleep();
  }

  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    this.#noteWrite(offset + bytes);
    // QSD has no quick way here, and says so.
    return (flags & REQ_NO_FALLBACK) !== 0 ? -ENOTSUP : this.#sleep();
  }

  discard(): Promise<number> {
    return this.#sleep();
  }

  flush(): Promise<number> {
    return this.#sleep();
  }

  async #sleep(): Promise<number> {
    if (this.#latencyNs > 0) await this.#reactor.sleep(this.#latencyNs);
    return 0;
  }

  blockStatus(_offset: number, bytes: number, out: BlockStatus): number {
    out.flags = this.#statusFlags;
    out.bytes = bytes;
    out.depth = this.#statusFlags === 0 ? 0 : 1;
    return 0;
  }

  isKnownData(): boolean {
    return false;
  }

  onMappedError(): number {
    assert(false, "nothing of a null node is mapped");
  }

  async setPermissions(): Promise<void> {}

  async reopen(context: OpenContext): Promise<ReopenedNode> {
    const before = this.#context;
    const use = (now: OpenContext): void => {
      this.#context = now;
      this.writable = !now.readOnly;
    };
    use(context);
    return { commit: () => {}, undo: () => use(before) };
  }

  describe(): NodeDescription {
    const { "latency-ns": _, ...strong } = this.#context.options as NullOptions;
    const isPlain = Object.keys(strong).length === 0;
    return {
      ...(isPlain ? { exactFilename: `${this.driver}://` } : {}),
      actualBytes: 0,
      // It takes any; QSD says the alignment of those that don't know.
      limits: { "request-alignment": 1, "min-mem-alignment": SECTOR_BYTES },
    };
  }

  async close(): Promise<void> {}
}

function nullDriver(name: string): BlockDriver {
  return {
    name,
    members: {
      size: optional(int, "Bytes of the disk (default: 1 GiB)"),
      "latency-ns": optional(uint64, "Nanoseconds that each request takes (default: 0)"),
      "read-zeroes": optional(bool, "Promise that all reads are zeroes (default: false)"),
    },
    children: [],
    strongOptions: ["size", "read-zeroes"],
    isProtocol: true,
    reopenable: [],
    async open(context) {
      return new NullNode(name, context);
    },
  };
}

export const nullCo = nullDriver("null-co");
export const nullAio = nullDriver("null-aio");
