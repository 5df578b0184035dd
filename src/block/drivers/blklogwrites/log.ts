/**
 * The log of blklogwrites: entries are appended, the superblock tells how many of them count.
 * Thread: iothread. Spec: src/abi/log-writes.ts
 */
import {
  LOG_DISCARD_FLAG,
  LOG_ENTRY_BYTES,
  LOG_ENTRY_DATA_LEN,
  LOG_ENTRY_FLAGS,
  LOG_ENTRY_NR_SECTORS,
  LOG_ENTRY_SECTOR,
  LOG_FLAG_MASK,
  LOG_SUPER_BYTES,
  LOG_SUPER_MAGIC,
  LOG_SUPER_NR_ENTRIES,
  LOG_SUPER_SECTORSIZE,
  LOG_SUPER_VERSION,
  WRITE_LOG_MAGIC,
  WRITE_LOG_VERSION,
} from "../../../abi/log-writes.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { EFBIG, EIO, ENOSPC, strerror } from "../../../runtime/errno.ts";
import { OutportError } from "../../../util/error.ts";
import { ChildIo } from "../../child-io.ts";
import { SECTOR_BYTES } from "../../description.ts";
import { ALIGNMENT_MAX, type BlockNode } from "../../node.ts";

export interface LogEntry {
  /** Of the disk, in bytes; multiples of the log's sector size. */
  readonly offset: number;
  readonly bytes: number;
  /** LOG_*_FLAG */
  readonly flags: number;
  /** Native memory of `bytes` bytes; 0: the data are zeroes, or there are none. */
  readonly address: number;
}

interface Position {
  /** Of the next entry. */
  sector: number;
  entryCount: number;
}

/** How far a log has come, for going on with it. */
export interface LogState extends Readonly<Position> {
  readonly sectorBytes: number;
}

export class WriteLog {
  readonly sectorBytes: number;
  #reactor: Reactor;
  #node: BlockNode;
  #io: ChildIo;
  #position: Position;
  /** The superblock is brought up to date after so many entries, and at a flush. */
  #updateInterval: number;
  /** Growth and superblocks, one after the other. */
  #last: Promise<number> = Promise.resolve(0);

  private constructor(
    reactor: Reactor,
    node: BlockNode,
    facts: { sectorBytes: number; updateInterval: number; position: Position },
  ) {
    this.#reactor = reactor;
    this.#node = node;
    this.#io = new ChildIo(reactor, node);
    this.sectorBytes = facts.sectorBytes;
    this.#updateInterval = facts.updateInterval;
    this.#position = facts.position;
  }

  /** A new log. Throws OutportError. */
  static create(
    reactor: Reactor,
    node: BlockNode,
    sectorBytes: number,
    updateInterval: number,
  ): WriteLog {
    checkSectorBytes(sectorBytes, node);
    const position = { sector: 1, entryCount: 0 };
    return new WriteLog(reactor, node, { sectorBytes, updateInterval, position });
  }

  /** Goes on where another one stopped. */
  static resume(
    reactor: Reactor,
    node: BlockNode,
    { sectorBytes, ...position }: LogState,
    updateInterval: number,
  ): WriteLog {
    return new WriteLog(reactor, node, { sectorBytes, updateInterval, position });
  }

  /** Goes on after the last entry of a log that is there. Throws OutportError. */
  static async append(
    reactor: Reactor,
    node: BlockNode,
    updateInterval: number,
  ): Promise<WriteLog> {
    if (node.bytes === 0) return WriteLog.create(reactor, node, SECTOR_BYTES, updateInterval);
    const head = await readHead(reactor, node, 0);
    if (typeof head === "number") {
      throw new OutportError("io", `Could not read log superblock: ${strerror(-head)}`);
    }
    if (head.getBigUint64(LOG_SUPER_MAGIC, true) !== WRITE_LOG_MAGIC) {
      throw new OutportError("corrupt", "Invalid log superblock magic");
    }
    const version = head.getBigUint64(LOG_SUPER_VERSION, true);
    if (version !== WRITE_LOG_VERSION) {
      throw new OutportError("unsupported", `Unsupported log version ${version}`);
    }
    const sectorBytes = head.getUint32(LOG_SUPER_SECTORSIZE, true);
    checkSectorBytes(sectorBytes, node);
    const entryCount = Number(head.getBigUint64(LOG_SUPER_NR_ENTRIES, true));
    const sector = await findEnd(reactor, node, sectorBytes, entryCount);
    const position = { sector, entryCount };
    return new WriteLog(reactor, node, { sectorBytes, updateInterval, position });
  }

  get state(): LogState {
    return { ...this.#position, sectorBytes: this.sectorBytes };
  }

  /** Returns 0 or -errno. `durable`: with all entries so far, when it returns. */
  async add(entry: LogEntry, durable: boolean): Promise<number> {
    const position = this.#position;
    const at = position.sector * this.sectorBytes;
    const dataBytes = (entry.flags & LOG_DISCARD_FLAG) === 0 ? entry.bytes : 0;
    position.entryCount++;
    position.sector += 1 + dataBytes / this.sectorBytes;
    const isSuperDue = durable || position.entryCount % this.#updateInterval === 0;
    const result = await this.#write(at, entry, dataBytes);
    if (result < 0 || !isSuperDue) return result;
    return this.#inTurn(() => this.#writeSuper());
  }

  async #write(at: number, entry: LogEntry, dataBytes: number): Promise<number> {
    const { sectorBytes } = this;
    const end = at + sectorBytes + dataBytes;
    const grown = await this.#inTurn(() => this.#grow(end));
    if (grown < 0) return grown;
    const head = await this.#writeSector(at, (view) => {
      view.setBigUint64(LOG_ENTRY_SECTOR, BigInt(entry.offset / sectorBytes), true);
      view.setBigUint64(LOG_ENTRY_NR_SECTORS, BigInt(entry.bytes / sectorBytes), true);
      view.setBigUint64(LOG_ENTRY_FLAGS, BigInt(entry.flags), true);
      view.setBigUint64(LOG_ENTRY_DATA_LEN, 0n, true);
    });
    if (head < 0 || dataBytes === 0) return head;
    const dataAt = at + sectorBytes;
    return entry.address === 0
      ? this.#io.writeZeroes(dataAt, dataBytes, 0)
      : this.#io.write(dataAt, dataBytes, entry.address, 0);
  }

  /** A log in a file is as long as what is in it. */
  async #grow(end: number): Promise<number> {
    const node = this.#node;
    if (end <= node.bytes) return 0;
    if (node.truncate === undefined) return -ENOSPC;
    if (!Number.isSafeInteger(end)) return -EFBIG;
    try {
      await node.truncate(end);
      return 0;
    } catch (error) {
      if (error instanceof OutportError) return -EIO;
      throw error;
    }
  }

  async #writeSuper(): Promise<number> {
    const { entryCount } = this.#position;
    const result = await this.#writeSector(0, (view) => {
      view.setBigUint64(LOG_SUPER_MAGIC, WRITE_LOG_MAGIC, true);
      view.setBigUint64(LOG_SUPER_VERSION, WRITE_LOG_VERSION, true);
      view.setBigUint64(LOG_SUPER_NR_ENTRIES, BigInt(entryCount), true);
      view.setUint32(LOG_SUPER_SECTORSIZE, this.sectorBytes, true);
    });
    return result < 0 ? result : this.#io.flush();
  }

  /** One sector: what `fill` writes, then zeroes. */
  async #writeSector(offset: number, fill: (view: DataView) => void): Promise<number> {
    const { memory, buffers } = this.#reactor;
    const at = await this.#reactor.allocate(this.sectorBytes);
    memory.u8.fill(0, at, at + this.sectorBytes);
    fill(new DataView(memory.u8.buffer, memory.u8.byteOffset + at, LOG_ENTRY_BYTES));
    const result = await this.#io.write(offset, this.sectorBytes, memory.address + at, 0);
    buffers.free(at);
    return result;
  }

  #inTurn(task: () => Promise<number>): Promise<number> {
    this.#last = this.#last.then(task);
    return this.#last;
  }
}

function checkSectorBytes(bytes: number, node: BlockNode): void {
  const isPowerOfTwo = bytes > 0 && 2 ** Math.round(Math.log2(bytes)) === bytes;
  // QSD differs: it takes sectors up to 8 MiB, and smaller ones than the log's file can write.
  const isWritable = bytes >= Math.max(SECTOR_BYTES, node.limits.requestAlignment);
  if (isPowerOfTwo && isWritable && bytes <= ALIGNMENT_MAX) return;
  throw new OutportError("invalid", `Invalid log sector size ${bytes}`);
}

/** The sector after the last of `entryCount` entries. Throws OutportError. */
async function findEnd(
  reactor: Reactor,
  node: BlockNode,
  sectorBytes: number,
  entryCount: number,
): Promise<number> {
  let sector = 1;
  for (let index = 0; index < entryCount; index++) {
    const head = await readHead(reactor, node, sector * sectorBytes);
    if (typeof head === "number") {
      throw new OutportError("io", `Failed to read log entry ${index}: ${strerror(-head)}`);
    }
    const flags = head.getBigUint64(LOG_ENTRY_FLAGS, true);
    if (flags > BigInt(LOG_FLAG_MASK)) {
      const text = `Invalid flags 0x${flags.toString(16)} in log entry ${index}`;
      throw new OutportError("corrupt", text);
    }
    const hasData = (Number(flags) & LOG_DISCARD_FLAG) === 0;
    sector += 1 + (hasData ? Number(head.getBigUint64(LOG_ENTRY_NR_SECTORS, true)) : 0);
  }
  return sector;
}

/** The first bytes of a sector, or -errno. */
async function readHead(
  reactor: Reactor,
  node: BlockNode,
  offset: number,
): Promise<DataView | number> {
  const { memory, buffers } = reactor;
  const bytes = Math.max(SECTOR_BYTES, node.limits.requestAlignment);
  if (!(offset + bytes <= node.bytes)) return -EIO;
  const at = await reactor.allocate(bytes);
  const result = await new ChildIo(reactor, node).read(offset, bytes, memory.address + at);
  const head = memory.u8.slice(at, at + Math.max(LOG_SUPER_BYTES, LOG_ENTRY_BYTES));
  buffers.free(at);
  return result < 0 ? result : new DataView(head.buffer);
}
