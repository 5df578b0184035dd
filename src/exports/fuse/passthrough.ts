/**
 * FUSE passthrough: where an export is a host file, byte for byte, the kernel reads and writes that
 * file itself, and only the rare requests come to us. Thread: iothread.
 * Spec: Linux Documentation/filesystems/fuse-passthrough.rst; fs/fuse/passthrough.c, iomode.c
 *
 * What the kernel does decides what may be opened so:
 * - It can't be told to stop, but for good, with the export: see Attributes.revoke(). As long as a
 *   program has such a file open, the node stays what it is (block/direct-access.ts); and the image
 *   stays locked, whatever becomes of us, as mappings stay.
 * - All who have the file open at one time have it open so, or none: others are refused with EIO.
 *   With FOPEN_DIRECT_IO on top reads and writes come to us, but shared mappings are the file's.
 * - Nobody keeps a write from going beyond the end of the disk: the host file grows then. So only
 *   those write so who could do as much to the host file without us, and who treat it as a disk:
 *   opened for reading and writing. A program that writes a stream until the disk is full hears
 *   from us where it ends. Who wrote beyond nevertheless hears of it from fsync() or close().
 */
import { FOPEN_DIRECT_IO, FOPEN_PARALLEL_DIRECT_WRITES } from "../../abi/fuse.ts";
import * as abi from "../../abi/fuse-passthrough.ts";
import {
  ARM64_O_DIRECT,
  O_ACCMODE,
  O_APPEND,
  O_DIRECT,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
} from "../../abi/linux.ts";
import {
  continueDirectAccess,
  type DirectAccess,
  openDirectAccess,
} from "../../block/direct-access.ts";
import { type BlockNode, PERM_ALL, PERM_CONSISTENT_READ, PERM_WRITE } from "../../block/node.ts";
import { Memory } from "../../io/memory.ts";
import { EACCES, ENOSPC, strerror } from "../../runtime/errno.ts";
import type { Linux } from "../../runtime/linux.ts";
import { getuid } from "../../runtime/linux-mount.ts";
import { assert } from "../../util/error.ts";
import type { Log } from "../../util/log.ts";
import type { InitExtras } from "./init.ts";
import type { StillOpen } from "./service.ts";

const MEMORY_BYTES = 4096;
const PLAIN_FLAGS = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
/** Overlay file systems may be in between. */
const STACK_DEPTH_MAX = 2;

export interface PassthroughParts {
  readonly linux: Linux;
  /** Of /dev/fuse. */
  readonly fd: number;
  readonly exportId: string;
  readonly node: BlockNode;
  readonly writable: boolean;
  readonly writethrough: boolean;
  readonly growable: boolean;
  readonly log: Log;
  /** Of another thread. */
  readonly state?: PassthroughState | undefined;
}

/** What an open() of a program asks. */
export interface OpenAsked {
  /** As open(2), in the host's own values. */
  readonly flags: number;
  readonly uid: number;
}

/** What it is told. */
export interface OpenAnswer {
  readonly handle: number;
  /** FOPEN_* */
  readonly openFlags: number;
  readonly backingId: number;
}

/** All reads and writes come to us. */
export const PLAIN_OPEN: OpenAnswer = { handle: 0, openFlags: PLAIN_FLAGS, backingId: 0 };

interface Handle {
  /** Past us, in one way or another. */
  readonly isDirect: boolean;
  readonly writes: boolean;
  /** It has been told that the disk ended. */
  hasHeard: boolean;
}

/** What it takes along to another thread. Structured-cloneable. */
export interface PassthroughState {
  readonly isPossible: boolean;
  /** By number. */
  readonly handles: ReadonlyMap<number, Handle>;
  readonly nextHandle: number;
  readonly hasOverrun: boolean;
  /** Programs may have it mapped. */
  readonly wasDirect: boolean;
  /** What the kernel calls the host file; 0: nothing. */
  readonly backingId: number;
}

/** One host file, known to the kernel. */
interface Backing {
  readonly id: number;
  readonly access: DirectAccess;
}

export class Passthrough {
  static readonly extras: InitExtras = {
    flags2: abi.FUSE_PASSTHROUGH_2,
    maxStackDepth: STACK_DEPTH_MAX,
  };
  #parts: PassthroughParts;
  /** The kernel can, and lets us. */
  #isPossible = false;
  #backing: Backing | null = null;
  #handles = new Map<number, Handle>();
  #nextHandle = 1;
  #directCount = 0;
  #wasDirect = false;
  #hasOverrun = false;

  constructor(parts: PassthroughParts) {
    const { state, node, writable } = parts;
    this.#parts = parts;
    if (state === undefined) return;
    this.#isPossible = state.isPossible;
    this.#handles = new Map(state.handles);
    this.#nextHandle = state.nextHandle;
    this.#hasOverrun = state.hasOverrun;
    for (const { isDirect } of this.#handles.values()) if (isDirect) this.#directCount++;
    this.#wasDirect = state.wasDirect;
    const access = state.wasDirect ? continueDirectAccess(node, writable) : null;
    const { backingId: id } = state;
    if (id === 0) {
      access?.close();
      return;
    }
    assert(access !== null, "a node stays what it is while others have it open");
    this.#backing = { id, access };
  }

  /** FUSE_INIT has agreed on `flags2`. */
  agree(flags2: number): void {
    this.#isPossible = (flags2 & abi.FUSE_PASSTHROUGH_2) !== 0;
  }

  /** Answers an open(), or -errno. */
  open({ flags, uid }: OpenAsked): OpenAnswer | number {
    const { writable } = this.#parts;
    const mode = flags & O_ACCMODE;
    const writes = mode !== O_RDONLY;
    const mayBeDirect = this.#mayBeDirect(flags, uid);
    // With any other handle there would be two kinds at a time.
    if (mayBeDirect && this.#handles.size === 0) this.#backing = this.#openBacking(flags);
    const backing = this.#backing;
    // From here on it is the backing file that is asked for single sectors.
    const isPast = mayBeDirect && (!this.#isODirect(flags) || backing?.access.file.takesSectors);
    // Its shared mappings would be writable.
    if (backing !== null && writes && !writable) return -EACCES;
    const handle = this.#nextHandle++;
    this.#handles.set(handle, { isDirect: backing !== null, writes, hasHeard: false });
    if (backing === null) return { ...PLAIN_OPEN, handle };
    this.#directCount++;
    const openFlags = abi.FOPEN_PASSTHROUGH | (isPast ? 0 : PLAIN_FLAGS);
    return { handle, openFlags, backingId: backing.id };
  }

  /** The last of those who share a handle has closed it, and reads and writes of it have ended. */
  release(handle: number): void {
    const known = this.#handles.get(handle);
    if (known === undefined) return;
    this.#look();
    this.#handles.delete(handle);
    if (known.isDirect && --this.#directCount === 0) this.#closeBacking();
  }

  /** For a flush of `handle`: -ENOSPC once when a write went beyond the end of the disk, or 0. */
  takeError(handle: number): number {
    const known = this.#handles.get(handle);
    if (known === undefined || !known.isDirect || !known.writes || known.hasHeard) return 0;
    known.hasHeard = this.#look();
    return known.hasHeard ? -ENOSPC : 0;
  }

  /** Nobody begins to go past us from now on. */
  shutdown(): StillOpen {
    this.#isPossible = false;
    if (this.#backing !== null) return "direct";
    const writers = [...this.#handles.values()].some(({ writes }) => writes);
    return writers ? "mappings" : "nothing";
  }

  /** Gives all of it away: nothing of this may be called afterwards. */
  handOver(): PassthroughState {
    const { access, id: backingId = 0 } = this.#backing ?? {};
    access?.close();
    return {
      isPossible: this.#isPossible,
      handles: this.#handles,
      nextHandle: this.#nextHandle,
      hasOverrun: this.#hasOverrun,
      wasDirect: this.#wasDirect,
      backingId,
    };
  }

  /** The session ends. What programs still have mapped is the kernel's business from here on. */
  close(): void {
    this.#handles.clear();
    this.#directCount = 0;
    this.#closeBacking();
  }

  #mayBeDirect(flags: number, uid: number): boolean {
    const { linux, writable, growable } = this.#parts;
    const mode = flags & O_ACCMODE;
    if (!this.#isPossible || (flags & O_TRUNC) !== 0) return false;
    if (mode === O_RDONLY) return true;
    if (mode !== O_RDWR || (flags & O_APPEND) !== 0 || !writable || growable) return false;
    return uid === 0 || uid === getuid(linux);
  }

  #isODirect(flags: number): boolean {
    return (flags & (this.#parts.linux.arch === "x64" ? O_DIRECT : ARM64_O_DIRECT)) !== 0;
  }

  /** For the first who opens the file. */
  #openBacking(flags: number): Backing | null {
    const { linux, fd, node, writable, writethrough } = this.#parts;
    if (writable && writethrough) return null;
    const access = openDirectAccess(node, writable);
    if (access === null) return null;
    if (this.#isODirect(flags) && !access.file.takesSectors) {
      access.close();
      return null;
    }
    const used = PERM_CONSISTENT_READ | (writable ? PERM_WRITE : 0);
    const fileFd = access.file.open({ used, shared: PERM_ALL });
    const id = fileFd < 0 ? fileFd : registerBacking(linux, fd, fileFd);
    // The kernel has its own hold of it from here on.
    if (fileFd >= 0) linux.close(fileFd);
    if (id > 0) {
      this.#wasDirect = true;
      return { id, access };
    }
    access.close();
    this.#isPossible = false;
    const { log, exportId } = this.#parts;
    log("info", `No FUSE passthrough: ${strerror(id)}`, { export: exportId });
    return null;
  }

  #closeBacking(): void {
    const { linux, fd } = this.#parts;
    if (this.#backing === null) return;
    const { id, access } = this.#backing;
    this.#backing = null;
    closeBacking(linux, fd, id);
    access.close();
  }

  /** Whether the host file is longer than the disk. */
  #look(): boolean {
    const { node, log, exportId } = this.#parts;
    if (this.#backing === null || !this.#backing.access.writes) return false;
    if (this.#backing.access.file.hostBytes <= node.bytes) return false;
    if (!this.#hasOverrun) {
      log("warn", "Something was written beyond the end of the disk: its file has grown", {
        export: exportId,
        node: node.nodeName,
      });
    }
    this.#hasOverrun = true;
    return true;
  }
}

/** Makes an open file known to the kernel. Returns a number for it, or -errno. */
function registerBacking(linux: Linux, fd: number, fileFd: number): number {
  const memory = new Memory(linux, MEMORY_BYTES);
  memory.view.setInt32(abi.FUSE_BACKING_MAP_FD, fileFd, true);
  const id = linux.ioctl(fd, abi.FUSE_DEV_IOC_BACKING_OPEN, memory.address);
  // SAFETY: the call is over.
  memory.unmap();
  return id;
}

/** The kernel keeps the file until the last program has closed it. */
function closeBacking(linux: Linux, fd: number, id: number): void {
  const memory = new Memory(linux, MEMORY_BYTES);
  memory.view.setUint32(0, id, true);
  linux.ioctl(fd, abi.FUSE_DEV_IOC_BACKING_CLOSE, memory.address);
  // SAFETY: the call is over.
  memory.unmap();
}
