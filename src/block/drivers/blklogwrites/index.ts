/**
 * blklogwrites: keeps a log of all that is written, for replaying up to any point. Schema and
 * child rules on main, nodes on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsBlklogwrites; src/abi/log-writes.ts
 */
import { LOG_DISCARD_FLAG, LOG_FLUSH_FLAG, LOG_FUA_FLAG } from "../../../abi/log-writes.ts";
import type { NodeDescription } from "../../../iothread/messages.ts";
import { bool, optional, uint32, uint64 } from "../../../qapi/scalars.ts";
import { OutportError } from "../../../util/error.ts";
import { SECTOR_BYTES } from "../../description.ts";
import type { BlockDriver, OpenContext, Permissions } from "../../driver.ts";
import { FilterNode } from "../../filter-node.ts";
import {
  type BlockLimits,
  OP_CACHE,
  OP_DISCARD,
  OP_READ,
  type Op,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  REQ_FUA,
  type Resolution,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "../../node.ts";
import { type LogState, WriteLog } from "./log.ts";

interface LogWritesOptions {
  readonly "log-append"?: boolean;
  readonly "log-sector-size"?: number;
  readonly "log-super-update-interval"?: number;
}

class LogWritesNode extends FilterNode {
  #log: WriteLog;

  constructor(context: OpenContext, log: WriteLog) {
    super("blklogwrites", context);
    this.#log = log;
  }

  override get limits(): BlockLimits {
    const { limits } = this.child;
    const requestAlignment = Math.max(this.#log.sectorBytes, limits.requestAlignment);
    const discardAlignment = Math.max(requestAlignment, limits.discardAlignment);
    return { ...limits, requestAlignment, discardAlignment };
  }

  override resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    if (op === OP_READ || op === OP_CACHE) return super.resolve(op, offset, bytes, out);
    return op === OP_DISCARD && !this.context.discardUnmap ? ZERO : SLOW;
  }

  protected override async writeData(
    offset: number,
    bytes: number,
    address: number,
    flags: number,
  ): Promise<number> {
    const result = await super.writeData(offset, bytes, address, flags);
    const logFlags = (flags & REQ_FUA) === 0 ? 0 : LOG_FUA_FLAG;
    return this.#logged(result, { offset, bytes, flags: logFlags, address });
  }

  override async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    const result = await super.writeZeroes(offset, bytes, flags);
    return this.#logged(result, { offset, bytes, flags: 0, address: 0 });
  }

  override async discard(offset: number, bytes: number): Promise<number> {
    const result = await super.discard(offset, bytes);
    return this.#logged(result, { offset, bytes, flags: LOG_DISCARD_FLAG, address: 0 });
  }

  override async flush(): Promise<number> {
    const result = await super.flush();
    return this.#logged(result, { offset: 0, bytes: 0, flags: LOG_FLUSH_FLAG, address: 0 });
  }

  /** The log goes on: the flush with which this node is closed is all that is written over. */
  handOver(): LogState {
    return this.#log.state;
  }

  override describe(): NodeDescription {
    return { limits: { "request-alignment": this.#log.sectorBytes } };
  }

  /** What the disk made of the request; the log has it in any case. */
  async #logged(result: number, entry: Parameters<WriteLog["add"]>[0]): Promise<number> {
    const logged = await this.#log.add(entry, (entry.flags & LOG_FLUSH_FLAG) !== 0);
    return logged < 0 ? logged : result;
  }
}

const UPDATE_INTERVAL = 4096;

export const blklogwrites: BlockDriver = {
  name: "blklogwrites",
  members: {
    "log-sector-size": optional(uint32, "Sector size of the log in bytes (default: 512)"),
    "log-append": optional(bool, "Go on with the log that is there (default: false)"),
    "log-super-update-interval": optional(
      uint64,
      "Entries after which the superblock of the log is written (default: 4096)",
    ),
  },
  children: [
    { role: "file", optional: false },
    { role: "log", optional: false },
  ],
  filtered: "file",
  strongOptions: ["log-append", "log-sector-size"],
  childPermissions(role, { used, shared }, _options, writable): Permissions {
    if (role === "file") return { used, shared };
    const writes = writable ? PERM_WRITE | PERM_RESIZE : 0;
    return {
      used: used | PERM_CONSISTENT_READ | writes,
      shared: shared & (PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED),
    };
  },
  async open(context) {
    const { reactor, children } = context;
    const {
      "log-append": append = false,
      "log-sector-size": sectorBytes,
      "log-super-update-interval": interval = UPDATE_INTERVAL,
    } = context.options as LogWritesOptions;
    if (append && sectorBytes !== undefined) {
      const text = "log-append and log-sector-size are mutually exclusive";
      throw new OutportError("invalid", text);
    }
    if (interval === 0) {
      throw new OutportError("invalid", "Invalid log superblock update interval 0");
    }
    const node = children.log!;
    const state = context.handedOver as LogState | undefined;
    let log: WriteLog;
    if (state !== undefined) log = WriteLog.resume(reactor, node, state, interval);
    else if (append) log = await WriteLog.append(reactor, node, interval);
    else log = WriteLog.create(reactor, node, sectorBytes ?? SECTOR_BYTES, interval);
    return new LogWritesNode(context, log);
  },
};
