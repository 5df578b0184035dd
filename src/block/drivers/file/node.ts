/**
 * A host file or block device as a node: reads and writes map straight to it. Thread: iothread.
 * Spec: QEMU block/file-posix.c; lseek(2) SEEK_DATA, SEEK_HOLE
 */
import { F_DUPFD_CLOEXEC, POSIX_FADV_DONTNEED, SEEK_DATA, SEEK_HOLE } from "../../../abi/linux.ts";
import type { Reactor } from "../../../io/reactor.ts";
import type { NodeDescription } from "../../../iothread/messages.ts";
import { EFBIG, EIO, ENXIO, strerror } from "../../../runtime/errno.ts";
import { assert, OutportError } from "../../../util/error.ts";
import { LENGTH_MAX, nodeBytes } from "../../description.ts";
import type { DirectFile } from "../../direct-access.ts";
import type { OpenContext, Permissions } from "../../driver.ts";
import { KnownData } from "../../known-data.ts";
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
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  STATUS_ZERO,
  ZERO,
} from "../../node.ts";
import { checkWriteLength } from "../../permissions.ts";
import { acquireWriteGate, type WriteGate } from "../../write-gate.ts";
import { writeDetectedZeroes } from "../../zeroes.ts";
import { fileLimits } from "./alignment.ts";
import { HostDirectFile } from "./direct-file.ts";
import {
  type FileDriver,
  type HostFile,
  hostError,
  hostFileBytes,
  reopenHostFile,
} from "./host-file.ts";
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
  /** Of a block device, as the host tells them: members of BlockLimitsInfo. */
  readonly hostLimits: Readonly<Record<string, number>>;
  /** Block size of a block device; 0 for a file. */
  readonly deviceBlock: number;
  readonly locking: boolean;
}

/** The name may lead to another file by now. */
export interface FileHandover {
  /** Of the process, whatever its thread. */
  readonly fd: number;
}

export class FileNode implements BlockNode {
  readonly nodeName: string;
  readonly driver: FileDriver;
  bytes: number;
  writable: boolean;
  limits: BlockLimits;
  highestWrite = 0;
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
  #gateUse: ReturnType<typeof acquireWriteGate>;
  #locks: ImageLocks | null;
  #hostLimits: FileFacts["hostLimits"];
  #deviceBlock: number;
  #discards = { ok: 0, failed: 0, bytesOk: 0 };
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
    this.#hostLimits = facts.hostLimits;
    this.#deviceBlock = facts.deviceBlock;
    this.#hasHoles = facts.driver === "file";
    this.#gateUse = acquireWriteGate(context.reactor, identityOf(context.reactor, facts.fd));
    this.#locks = facts.locking ? new ImageLocks(context.reactor.linux) : null;
  }

  get writeGate(): WriteGate {
    return this.#gateUse.gate;
  }

  resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    out.fd = this.#fd;
    out.offset = offset;
    out.bytes = bytes;
    switch (op) {
      case OP_READ:
        return MAPPED;
      case OP_WRITE:
        this.#noteWrite(offset + bytes);
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

  #noteWrite(end: number): void {
    if (end > this.highestWrite) this.highestWrite = end;
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
    this.#noteWrite(offset + bytes);
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
    this.#noteWrite(offset + bytes);
    const allowed = this.#context.discardUnmap ? flags : flags & ~REQ_MAY_UNMAP;
    const result = await this.#zeroing.writeZeroes(offset, bytes, allowed);
    this.#known.cut(offset, offset + bytes);
    return result;
  }

  async discard(offset: number, bytes: number): Promise<number> {
    if (!this.#context.discardUnmap) return 0;
    const result = await this.#zeroing.discard(offset, bytes);
    if (result < 0) {
      this.#discards.failed++;
    } else {
      this.#discards.ok++;
      this.#discards.bytesOk += bytes;
    }
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

  async setPermissions(used: number, shared: number, handedOver = false): Promise<void> {
    const next: Permissions = { used, shared };
    checkWriteLength(this, used);
    const writable = this.#context.readOnly ? this.#fdWritable : wantsWritable(this.#context, used);
    if (writable === this.#fdWritable) {
      this.#locks?.prepare(this.#fd, next, handedOver);
      this.#locks?.commit(this.#fd, next);
      return;
    }
    try {
      const { fd } = this.#openAgain(this.#context, writable);
      this.#switchTo(fd, writable, next, handedOver).commit();
    } catch (error) {
      if (writable) throw error;
      // A file open for more than is needed does no harm.
      this.#locks?.commit(this.#fd, next);
    }
  }

  async reopen(context: OpenContext, next: Permissions): Promise<ReopenedNode> {
    const writable = wantsWritable(context, next.used);
    const before = { context: this.#context, writable: this.writable, limits: this.limits };
    const isSame =
      writable === this.#fdWritable && context.cacheDirect === before.context.cacheDirect;
    const again = isSame ? null : this.#openAgain(context, writable);
    const limits = again === null ? before.limits : await this.#limitsOf(context, again);
    const file =
      again === null ? this.#stay(next) : this.#switchTo(again.fd, writable, next, false);
    this.#context = context;
    this.writable = !context.readOnly;
    this.limits = limits;
    return {
      commit: file.commit,
      undo: () => {
        file.undo();
        this.#context = before.context;
        this.writable = before.writable;
        this.limits = before.limits;
      },
    };
  }

  #openAgain({ cacheDirect: direct }: OpenContext, writable: boolean): HostFile {
    return reopenHostFile(this.#reactor.linux, this.#fd, this.#filename, { writable, direct });
  }

  /** Closes the file when it throws. */
  async #limitsOf(context: OpenContext, hostFile: HostFile): Promise<BlockLimits> {
    try {
      return await fileLimits(context, hostFile, this.#deviceBlock);
    } catch (error) {
      this.#reactor.linux.close(hostFile.fd);
      throw error;
    }
  }

  #stay(next: Permissions): ReopenedNode {
    this.#locks?.prepare(this.#fd, next);
    return {
      commit: () => this.#locks?.commit(this.#fd, next),
      undo: () => this.#locks?.abort(this.#fd, next),
    };
  }

  /**
   * Goes on with another open file, which is taken over or closed; with the locks of `next` on both
   * until commit(), so that nobody gets in between.
   */
  #switchTo(
    newFd: number,
    writable: boolean,
    next: Permissions,
    handedOver: boolean,
  ): ReopenedNode {
    const { linux } = this.#reactor;
    const oldFd = linux.fcntl(this.#fd, F_DUPFD_CLOEXEC, 0);
    try {
      if (oldFd < 0) throw hostError(`Could not open '${this.#filename}'`, oldFd);
      this.#locks?.prepare(oldFd, next, handedOver);
      this.#copyLocks(newFd, next);
    } catch (error) {
      linux.close(newFd);
      if (oldFd >= 0) linux.close(oldFd);
      throw error;
    }
    const before = { writable: this.#fdWritable, maybeDirty: this.#maybeDirty };
    this.#replace(newFd);
    this.#fdWritable = writable;
    this.#maybeDirty ||= writable;
    return {
      commit: () => {
        this.#locks?.commit(this.#fd, next);
        // Whatever else still has the old file open must not keep its locks.
        this.#locks?.release(oldFd);
        linux.close(oldFd);
      },
      undo: () => {
        this.#replace(oldFd);
        this.#locks?.abort(this.#fd, next);
        this.#fdWritable = before.writable;
        this.#maybeDirty = before.maybeDirty;
      },
    };
  }

  #copyLocks(newFd: number, next: Permissions): void {
    try {
      this.#locks?.copy(newFd, next);
    } catch (error) {
      this.#locks?.abort(this.#fd, next);
      throw error;
    }
  }

  /** The number stays: operations that wait for their turn in the engine name it. */
  #replace(fd: number): void {
    const { linux } = this.#reactor;
    const result = linux.dup3(fd, this.#fd);
    assert(result === this.#fd, "dup3() of two open files works");
    linux.close(fd);
  }

  async truncate(bytes: number): Promise<void> {
    const { linux } = this.#reactor;
    if (this.driver === "host_device") {
      if (bytes > hostFileBytes(linux, this.#fd)) {
        throw new OutportError("unsupported", "Cannot grow device files");
      }
      return;
    }
    const args = [this.#fd, bytes];
    const result =
      bytes > LENGTH_MAX
        ? -EFBIG
        : await this.#reactor.op((engine, token) => engine.call(linux.sys.ftruncate, args, token));
    if (result < 0) {
      throw new OutportError("io", `Could not resize file: ${strerror(result)}`);
    }
    this.bytes = nodeBytes(bytes);
    // Beyond there are holes, should it grow again.
    this.#known.cut(bytes, Infinity);
  }

  async invalidate(): Promise<void> {
    const { "drop-cache": dropCache = true } = this.#context.options;
    if (dropCache === false || this.#context.cacheDirect) return;
    const { sys } = this.#reactor.linux;
    const args = [this.#fd, 0, 0, POSIX_FADV_DONTNEED];
    const result = await this.#reactor.op((engine, token) =>
      engine.call(sys.fadvise64, args, token),
    );
    if (result < 0) throw hostError("fadvise failed", result);
  }

  refreshLength(): void {
    this.bytes = nodeBytes(hostFileBytes(this.#reactor.linux, this.#fd));
    this.#known.cut(this.bytes, Infinity);
  }

  handOver(): FileHandover {
    return { fd: this.#fd };
  }

  directFile(through: BlockNode[]): DirectFile | null {
    const { cacheDirect, cacheNoFlush, detectZeroes } = this.#context;
    // Others would read and write through the page cache, and flush as they like.
    if (this.driver !== "file" || cacheDirect || cacheNoFlush) return null;
    if (detectZeroes !== "off" || this.#cacheError < 0) return null;
    through.push(this);
    return new HostDirectFile(this.#fd, {
      linux: this.#reactor.linux,
      filename: this.#filename,
      identity: identityOf(this.#reactor, this.#fd),
      locking: this.#locks !== null,
    });
  }

  describe(): NodeDescription {
    const status = this.#reactor.linux.fstat(this.#fd);
    return {
      exactFilename: this.#filename,
      actualBytes: typeof status === "number" ? 0 : status.blocks * STATX_BLOCK_BYTES,
      image: { "dirty-flag": false, "format-specific": { type: "file", data: {} } },
      limits: {
        "request-alignment": this.limits.requestAlignment,
        "min-mem-alignment": this.limits.memoryAlignment,
        ...this.#hostLimits,
      },
    };
  }

  describeStatistics(): Readonly<Record<string, number>> {
    const { ok, failed, bytesOk } = this.#discards;
    return { "discard-nb-ok": ok, "discard-nb-failed": failed, "discard-bytes-ok": bytesOk };
  }

  async close(): Promise<void> {
    // A transport may have the file open still, to send from it.
    this.#locks?.release(this.#fd);
    this.#reactor.linux.close(this.#fd);
    this.#fd = -1;
    this.#gateUse.release();
  }

  #alignDown(bytes: number): number {
    return bytes - (bytes % this.limits.requestAlignment);
  }

  #alignUp(bytes: number): number {
    return this.#alignDown(bytes + this.limits.requestAlignment - 1);
  }
}

/** Whether the file must be open for writing now. `used`: PERM_* bits. */
function wantsWritable({ readOnly, autoReadOnly }: OpenContext, used: number): boolean {
  return !readOnly && (!autoReadOnly || (used & PERMS_OF_WRITERS) !== 0);
}

/** The same for all open files of one host file, by whatever name. */
function identityOf({ linux }: Reactor, fd: number): string {
  const status = linux.fstat(fd);
  if (typeof status === "number") return `descriptor ${fd}`;
  return status.rdev === 0 ? `file ${status.dev} ${status.ino}` : `device ${status.rdev}`;
}
