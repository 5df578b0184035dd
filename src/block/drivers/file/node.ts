/**
 * A host file or block device as a node: reads and writes map straight to it. Thread: iothread.
 * Spec: QEMU block/file-posix.c; lseek(2) SEEK_DATA, SEEK_HOLE
 */
import { SEEK_DATA, SEEK_HOLE } from "../../../abi/linux.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { EIO, ENXIO } from "../../../runtime/errno.ts";
import { assert } from "../../../util/error.ts";
import { describeNode, nodeBytes } from "../../description.ts";
import type { OpenContext, Permissions } from "../../driver.ts";
import { ImageLocks } from "../../locks.ts";
import {
  type BlockLimits,
  type BlockNode,
  type BlockStatus,
  MAPPED,
  OP_CACHE,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  PERM_RESIZE,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  REQ_MAY_UNMAP,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "../../node.ts";
import { checkWriteLength } from "../../permissions.ts";
import { writeDetectedZeroes } from "../../zeroes.ts";
import { type FileDriver, reopenHostFile } from "./host-file.ts";
import { KnownData } from "./known-data.ts";
import { Zeroing } from "./zeroing.ts";

/** What statx() counts allocated space in. */
const STATX_BLOCK_BYTES = 512;
const PERMS_OF_WRITERS = PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE;

/** What open() found out. */
export interface FileFacts {
  readonly driver: FileDriver;
  readonly filename: string;
  /** The node's for good: a reopen changes the file behind it, not the number. */
  readonly fd: number;
  /** Of the file as it is open now. */
  readonly writable: boolean;
  readonly bytes: number;
  readonly limits: BlockLimits;
  /** Block size of a block device; 0 for a file. */
  readonly deviceBlock: number;
  readonly locking: boolean;
}

export class FileNode implements BlockNode {
  readonly nodeName: string;
  readonly driver: FileDriver;
  readonly bytes: number;
  readonly writable: boolean;
  readonly limits: BlockLimits;
  #reactor: Reactor;
  #context: OpenContext;
  #filename: string;
  #fd: number;
  #fdWritable: boolean;
  /** The file was open for writing at some time. */
  #maybeDirty: boolean;
  #zeroing: Zeroing;
  #known = new KnownData();
  #hasHoles: boolean;
  #locks: ImageLocks | null;
  /** -errno of a failed fsync on a buffered file: what is on disk is unknown from then on. */
  #cacheError = 0;

  constructor(context: OpenContext, facts: FileFacts) {
    this.nodeName = context.nodeName;
    this.driver = facts.driver;
    this.bytes = nodeBytes(facts.bytes);
    // With auto-read-only it can be written to as soon as someone wants to.
    this.writable = !context.readOnly;
    this.limits = facts.limits;
    this.#reactor = context.reactor;
    this.#context = context;
    this.#filename = facts.filename;
    this.#fd = facts.fd;
    this.#fdWritable = facts.writable;
    this.#maybeDirty = facts.writable;
    this.#zeroing = new Zeroing(context.reactor, facts.fd, facts.deviceBlock);
    this.#hasHoles = facts.driver === "file";
    this.#locks = facts.locking ? new ImageLocks(context.reactor.linux) : null;
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.fd = this.#fd;
    out.offset = offset;
    out.bytes = bytes;
    switch (op) {
      case OP_READ:
        return MAPPED;
      case OP_WRITE:
        return this.#context.detectZeroes === "off" ? MAPPED : SLOW;
      case OP_FLUSH:
        if (this.#context.cacheNoFlush || !this.#maybeDirty) return ZERO;
        return this.#cacheError < 0 ? SLOW : MAPPED;
      case OP_DISCARD:
        return this.#context.discardUnmap ? SLOW : ZERO;
      case OP_WRITE_ZEROES:
        return SLOW;
      case OP_CACHE:
        return ZERO;
    }
  }

  async read(offset: number, bytes: number, address: number): Promise<number> {
    for (let done = 0; done < bytes; ) {
      const result = await this.#reactor.op((engine, token) =>
        engine.read(this.#fd, address + done, bytes - done, offset + done, token),
      );
      if (result < 0) return result;
      done += result;
      // Not whole blocks: the file ends here, and can't be asked for more there.
      if (result === 0 || result % this.limits.requestAlignment !== 0) {
        this.#reactor.memory.zero(address + done, bytes - done);
        break;
      }
    }
    return 0;
  }

  async write(offset: number, bytes: number, address: number): Promise<number> {
    if (await writeDetectedZeroes(this.#context, this, offset, bytes, address)) return 0;
    for (let done = 0; done < bytes; ) {
      const result = await this.#reactor.op((engine, token) =>
        engine.write(this.#fd, address + done, bytes - done, offset + done, 0, token),
      );
      if (result <= 0) return result === 0 ? -EIO : result;
      done += result;
    }
    return 0;
  }

  async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    const allowed = this.#context.discardUnmap ? flags : flags & ~REQ_MAY_UNMAP;
    const result = await this.#zeroing.writeZeroes(offset, bytes, allowed);
    this.#known.cut(offset, offset + bytes);
    return result;
  }

  async discard(offset: number, bytes: number): Promise<number> {
    if (!this.#context.discardUnmap) return 0;
    const result = await this.#zeroing.discard(offset, bytes);
    this.#known.cut(offset, offset + bytes);
    return result;
  }

  async flush(): Promise<number> {
    if (this.#context.cacheNoFlush || !this.#maybeDirty) return 0;
    if (this.#cacheError < 0) return this.#cacheError;
    const fd = this.#fd;
    const result = await this.#reactor.op((engine, token) => engine.fsync(fd, true, token));
    return result < 0 ? this.onMappedError(OP_FLUSH, result) : 0;
  }

  blockStatus(offset: number, bytes: number, out: BlockStatus): number {
    out.depth = 1;
    out.bytes = bytes;
    out.flags = STATUS_DATA | STATUS_ALLOCATED;
    if (!this.#hasHoles || this.#known.covers(offset, offset + bytes)) return 0;
    const { linux } = this.#reactor;
    const data = linux.lseek(this.#fd, offset, SEEK_DATA);
    if (data === -ENXIO) {
      // A hole up to the end of the file, or nothing: it ends before.
      out.flags = STATUS_ZERO | STATUS_ALLOCATED;
    } else if (data > offset) {
      out.flags = STATUS_ZERO | STATUS_ALLOCATED;
      out.bytes = Math.min(bytes, this.#alignDown(data - offset));
      // A hole smaller than what this node can tell apart.
      if (out.bytes === 0) this.#claimData(bytes, this.limits.requestAlignment, out);
    } else if (data === offset) {
      const hole = linux.lseek(this.#fd, offset, SEEK_HOLE);
      if (hole > offset) {
        this.#known.add(offset, hole);
        this.#claimData(bytes, this.#alignUp(hole - offset), out);
      }
    }
    // Anything else: the host can't say, so all of it is data.
    return 0;
  }

  #claimData(bytes: number, dataBytes: number, out: BlockStatus): void {
    out.flags = STATUS_DATA | STATUS_ALLOCATED;
    out.bytes = Math.min(bytes, dataBytes);
  }

  isKnownData(offset: number, bytes: number): boolean {
    return !this.#hasHoles || this.#known.covers(offset, offset + bytes);
  }

  onMappedError(op: Op, errno: number): number {
    // After a failed fsync the host forgets which pages never reached the disk and calls them
    // clean: the next one would succeed, and data be lost in silence.
    if (op === OP_FLUSH && !this.#context.cacheDirect) this.#cacheError = errno;
    return errno;
  }

  async setPermissions(used: number, shared: number): Promise<void> {
    const next: Permissions = { used, shared };
    checkWriteLength(this, used);
    const { readOnly, autoReadOnly } = this.#context;
    const dynamic = autoReadOnly && !readOnly;
    const writable = dynamic ? (used & PERMS_OF_WRITERS) !== 0 : this.#fdWritable;
    if (writable !== this.#fdWritable) this.#reopen(writable, next);
    else this.#locks?.prepare(this.#fd, next);
    this.#locks?.commit(this.#fd, next);
  }

  /** Takes the locks of `next`, too: on both files, so that nobody gets in between. */
  #reopen(writable: boolean, next: Permissions): void {
    const { linux } = this.#reactor;
    const mode = { writable, direct: this.#context.cacheDirect };
    const newFd = reopenHostFile(linux, this.#fd, this.#filename, mode);
    try {
      this.#locks?.prepare(this.#fd, next);
      try {
        this.#locks?.copy(newFd, next);
      } catch (error) {
        this.#locks?.abort(this.#fd, next);
        throw error;
      }
    } catch (error) {
      linux.close(newFd);
      throw error;
    }
    // The number stays: operations that wait for their turn in the engine name it.
    const result = linux.dup3(newFd, this.#fd);
    assert(result === this.#fd, "dup3() of two open files works");
    linux.close(newFd);
    this.#fdWritable = writable;
    this.#maybeDirty ||= writable;
  }

  describe(): Record<string, unknown> {
    const status = this.#reactor.linux.fstat(this.#fd);
    return describeNode(this, this.#context, {
      filename: this.#filename,
      actualBytes: typeof status === "number" ? 0 : status.blocks * STATX_BLOCK_BYTES,
      image: { "dirty-flag": false, "format-specific": { type: "file", data: {} } },
    });
  }

  async close(): Promise<void> {
    this.#reactor.linux.close(this.#fd);
    this.#fd = -1;
  }

  #alignDown(bytes: number): number {
    return bytes - (bytes % this.limits.requestAlignment);
  }

  #alignUp(bytes: number): number {
    return this.#alignDown(bytes + this.limits.requestAlignment - 1);
  }
}
