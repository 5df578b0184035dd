/**
 * The block node interface: resolve, then submit. Thread: iothread.
 * A node answers at once where a range lives, or says SLOW and does it in an async method.
 */

import type { NodeDescription } from "../iothread/messages.ts";
import type { DirectFile } from "./direct-access.ts";
import type { OpenContext, Permissions } from "./driver.ts";
import type { WriteGate } from "./write-gate.ts";

/** What a request does. Values fit the op column of the request table. */
export const OP_READ = 0;
export const OP_WRITE = 1;
export const OP_FLUSH = 2;
export const OP_DISCARD = 3;
export const OP_WRITE_ZEROES = 4;
/** Copy-on-read prefetch (NBD CACHE): copyUp(). Nodes without anything to do resolve it as ZERO. */
export const OP_CACHE = 5;
export type Op = 0 | 1 | 2 | 3 | 4 | 5;

/** Bytes [0, out.bytes) of the range live at out.offset of host file out.fd: submit I/O there. */
export const MAPPED = 0;
/** READ: [0, out.bytes) reads as zeroes. Other ops: there is nothing to do. */
export const ZERO = 1;
/** Only the async methods know. */
export const SLOW = 2;
export type ResolutionKind = 0 | 1 | 2;

/**
 * Filled by resolve(); one per caller, reused. out.bytes is at least 1 for a range of any bytes.
 */
export interface Resolution {
  fd: number;
  offset: number;
  bytes: number;
}

/** Request flags, as the block layer names them. */
export const REQ_FUA = 1 << 0;
/** WRITE_ZEROES may punch a hole. */
export const REQ_MAY_UNMAP = 1 << 1;
/** WRITE_ZEROES: -ENOTSUP rather than writing zeroes by hand. */
export const REQ_NO_FALLBACK = 1 << 2;

/** Block status bits, as bdrv_block_status() has them. */
export const STATUS_DATA = 1 << 0;
export const STATUS_ZERO = 1 << 1;
/** The range is allocated in this layer of the chain. */
export const STATUS_ALLOCATED = 1 << 2;

/** Filled by blockStatus(): one extent from the asked offset on. */
export interface BlockStatus {
  /** STATUS_* bits. */
  flags: number;
  /** 1 ..= asked bytes. */
  bytes: number;
  /** How many layers down the data was found: 0 nowhere, 1 top, 2 its backing node, ... */
  depth: number;
}

/** No request alignment is larger: buffers for widened requests are multiples of it. */
export const ALIGNMENT_MAX = 256 * 1024;

/** What requests to a node must keep to. Powers of two but for the maxima. */
export interface BlockLimits {
  /**
   * Offsets and lengths that the node takes, at most ALIGNMENT_MAX; the backend widens others. 1
   * when buffered.
   */
  readonly requestAlignment: number;
  /** Alignment of memory addresses. */
  readonly memoryAlignment: number;
  /** Largest single READ or WRITE; the backend splits. */
  readonly transferBytesMax: number;
  /** Alignment below which DISCARD is ignored. */
  readonly discardAlignment: number;
  /** What clients are asked to keep to, where it is more than the request alignment. */
  readonly blockBytes?: number;
  /** Of an image in clusters. */
  readonly clusterBytes?: number;
}

/** Permissions on a node. Spec: QEMU include/block/block-common.h, BLK_PERM_* */
export const PERM_CONSISTENT_READ = 1 << 0;
export const PERM_WRITE = 1 << 1;
export const PERM_WRITE_UNCHANGED = 1 << 2;
export const PERM_RESIZE = 1 << 3;
export const PERM_ALL = 15;

/** A node that has been reopened, and may still go back. Neither way fails. */
export interface ReopenedNode {
  commit(): void;
  undo(): void | Promise<void>;
}

/**
 * One node of the graph, open. Data-plane methods return 0 or a count, or a negative errno; they
 * never throw. Requests given to a node are in bounds, aligned to its limits, not longer than
 * its maxima; the backend has seen to that.
 */
export interface BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  // What follows, up to the limits, changes in drained sections only: nobody keeps it beyond one.
  /** Length in bytes: what the driver reports, rounded up to 512. */
  readonly bytes: number;
  /** False when writes fail: opened read-only. */
  readonly writable: boolean;
  readonly limits: BlockLimits;
  /** Of the host file that all of its writes go to; missing when there is not one such file. */
  readonly writeGate?: WriteGate | undefined;

  /** Synchronous, allocates nothing. FLUSH and range-free ops pass offset 0, bytes 0. */
  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind;

  /**
   * The slow ways. `address` is native memory of `bytes` bytes. 0 or -errno. Whoever wants REQ_FUA
   * flushes afterwards, as ChildIo does: nodes need not look at it.
   */
  read(offset: number, bytes: number, address: number): Promise<number>;
  write(offset: number, bytes: number, address: number, flags: number): Promise<number>;
  writeZeroes(offset: number, bytes: number, flags: number): Promise<number>;
  /**
   * A write that is kept compressed where that makes it shorter. Any offset and length: what it
   * does not cover of a cluster is read. Missing: the driver can't.
   */
  writeCompressed?(offset: number, bytes: number, address: number): Promise<number>;
  discard(offset: number, bytes: number): Promise<number>;
  flush(): Promise<number>;
  /**
   * Copies into this layer what the range still takes from the layers below; rounds to what it
   * allocates. No write may come in between: as allocating writes, it is the node's own to
   * serialise. Missing: there is nothing below.
   */
  copyUp?(offset: number, bytes: number): Promise<number>;

  /**
   * One extent at `offset`. Returns 0, -errno, or a Promise of it when metadata must be loaded.
   * What it claims as data may be zeroes; what it claims as zero is zero.
   */
  blockStatus(offset: number, bytes: number, out: BlockStatus): number | Promise<number>;
  /**
   * True when the whole range is known to be data without asking the host: the cheap question of
   * every structured read. False says nothing.
   */
  isKnownData(offset: number, bytes: number): boolean;
  /**
   * The I/O of a MAPPED range of this fd failed or ended short in a way that the node must know
   * (a failed fsync). Returns the errno to report. Called by the backend, for -errno results only.
   */
  onMappedError(op: Op, errno: number): number;

  /**
   * Takes on new permissions: what all parents together use, and what all of them let others use.
   * A file node takes or drops its image locks and reopens for writing when it must. All or
   * nothing. Throws OutportError. `handedOver`: another open file of this process holds the same
   * image locks, and shields this one until it is closed.
   */
  setPermissions(used: number, shared: number, handedOver?: boolean): Promise<void>;
  /**
   * Takes on other options, children and permissions, in a drained section. Flushed before.
   * Throws OutportError in QSD's words, and nothing has changed then. Missing: the driver can't.
   */
  reopen?(context: OpenContext, permissions: Permissions): Promise<ReopenedNode>;
  /**
   * A drained section of the node's tree begins: what waits here for some other reason than the
   * host (a token bucket) goes on at once, until the section ends. Sections may nest.
   */
  drainBegin?(): void;
  drainEnd?(): void;
  /** Something happened that a test may have armed an error for: a BlkdebugEvent. */
  onBlockEvent?(event: string): void;
  /**
   * A new length, with PERM_RESIZE; in a drained section, unless it only grows. The node and those
   * below know it then, others by refreshLength(). Throws OutportError in QSD's words, and nothing
   * has changed then. Missing: the driver can't.
   */
  truncate?(bytes: number): Promise<void>;
  /**
   * All that is kept of the image in memory goes into it, as if it were closed. `next`: what comes
   * then; another process may change the image when it is handed over. Drained and flushed. Throws
   * OutportError, and nothing has changed.
   */
  settle?(next: "read-only" | "handover" | null): Promise<void>;
  /** What would have come after settle() does not, unless it was a handover. Does not fail. */
  unsettle?(): Promise<void>;
  /** Another host may have changed its image: forgets what is kept of it. Throws OutportError. */
  invalidate?(): Promise<void>;
  /** Its file or child may have another length by now. Children first. Throws OutportError. */
  refreshLength?(): void;
  /**
   * The host file that this node is, byte for byte, when nothing here needs to see requests; adds
   * itself and those below to `through`. Null or missing: it is not.
   */
  directFile?(through: BlockNode[]): DirectFile | null;
  /**
   * Throws OutportError, in QSD's words, if its image can't keep one more dirty bitmap. Missing: it
   * keeps none.
   */
  checkNewBitmap?(name: string, granularity: number): Promise<void>;
  /** Its image keeps that dirty bitmap no longer, if it does. Throws OutportError. */
  removeStoredBitmap?(name: string): Promise<void>;
  /**
   * Internal snapshots of its image: takes one, or deletes the one that `describe()` lists under
   * this id and name. Drained. -errno, and nothing has changed. Missing: its format has none.
   */
  takeSnapshot?(name: string, timeUs: number): Promise<{ readonly id: string } | number>;
  deleteSnapshot?(id: string, name: string): Promise<number>;
  /**
   * Has its image name another backing file, or none for "". Drained. -errno, and nothing has
   * changed. Missing: its format has none.
   */
  changeBackingFile?(backingFile: string, format: string): Promise<number>;
  describe(): NodeDescription;
  /** Members of its branch of BlockStatsSpecific. */
  describeStatistics?(): Readonly<Record<string, number>>;
  /**
   * For the same node on another iothread, as OpenContext.handedOver: what its options don't tell.
   * Structured-cloneable. Drained and flushed; a file stays open until it is open there.
   */
  handOver?(): unknown;
  /** Where the write ended that ended highest, of all parents. */
  readonly highestWrite?: number;
  /** Children are closed by the graph, after this. Nothing is in flight. */
  close(): Promise<void>;
}
