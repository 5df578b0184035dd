/**
 * The block node interface: resolve, then submit. Thread: iothread.
 * A node answers at once where a range lives, or says SLOW and does it in an async method.
 */

/** What a request does. Values fit the op column of the request table. */
export const OP_READ = 0;
export const OP_WRITE = 1;
export const OP_FLUSH = 2;
export const OP_DISCARD = 3;
export const OP_WRITE_ZEROES = 4;
/** Copy-on-read prefetch (NBD CACHE); nodes without anything to prefetch resolve it as ZERO. */
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

/** What requests to a node must keep to. Powers of two but for the maxima. */
export interface BlockLimits {
  /** Offsets and lengths that the node takes; the backend widens others. 1 when buffered. */
  readonly requestAlignment: number;
  /** Alignment of memory addresses. */
  readonly memoryAlignment: number;
  /** Largest single READ or WRITE; the backend splits. */
  readonly transferBytesMax: number;
  /** Alignment below which DISCARD is ignored. */
  readonly discardAlignment: number;
}

/** Permissions on a node. Spec: QEMU include/block/block-common.h, BLK_PERM_* */
export const PERM_CONSISTENT_READ = 1 << 0;
export const PERM_WRITE = 1 << 1;
export const PERM_WRITE_UNCHANGED = 1 << 2;
export const PERM_RESIZE = 1 << 3;
export const PERM_ALL = 15;

/**
 * One node of the graph, open. Data-plane methods return 0 or a count, or a negative errno; they
 * never throw. Requests given to a node are in bounds, aligned to its limits, not longer than
 * its maxima; the backend has seen to that.
 */
export interface BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  /** Length in bytes: what the driver reports, rounded up to 512. */
  readonly bytes: number;
  /** False when writes fail: opened read-only. */
  readonly writable: boolean;
  readonly limits: BlockLimits;

  /** Synchronous, allocates nothing. FLUSH and range-free ops pass offset 0, bytes 0. */
  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind;

  /** The slow ways. `address` is native memory of `bytes` bytes. 0 or -errno. */
  read(offset: number, bytes: number, address: number): Promise<number>;
  write(offset: number, bytes: number, address: number, flags: number): Promise<number>;
  writeZeroes(offset: number, bytes: number, flags: number): Promise<number>;
  discard(offset: number, bytes: number): Promise<number>;
  flush(): Promise<number>;

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
   * nothing. Throws OutportError.
   */
  setPermissions(used: number, shared: number): Promise<void>;
  /** Facts for query-named-block-nodes, wire names. */
  describe(): Record<string, unknown>;
  /** Children are closed by the graph, after this. Nothing is in flight. */
  close(): Promise<void>;
}
