/**
 * Image locks: what a node's users do with a host file and what they keep others from, as locks
 * of the open file description that all QEMU tools understand. Thread: iothread.
 * Spec: QEMU docs/system/images.rst "Disk image file locking", block/file-posix.c
 */
import { F_RDLCK, F_UNLCK, F_WRLCK } from "../abi/linux.ts";
import { EACCES, EAGAIN, strerror } from "../runtime/errno.ts";
import type { Linux } from "../runtime/linux.ts";
import { OutportError } from "../util/error.ts";
import type { Permissions } from "./driver.ts";
import { PERM_ALL } from "./node.ts";
import { permissionNames } from "./permissions.ts";

/** The byte at base + bit number, locked shared: the permission is in use. */
const USED_BASE = 100;
/** The same: the permission is kept from others. */
const UNSHARED_BASE = 200;
const PERM_COUNT = 4;

/** Whether the host and the file's file system know these locks at all. */
export function canLock(linux: Linux, fd: number): boolean {
  return linux.testLock(fd, F_WRLCK, USED_BASE, 1) >= 0;
}

/** The locks on the file of one node. Synchronous: nobody gets between prepare() and commit(). */
export class ImageLocks {
  #linux: Linux;
  #used = 0;
  #unshared = 0;

  constructor(linux: Linux) {
    this.#linux = linux;
  }

  /**
   * Takes on `fd` what `next` needs beside what is held, and checks that nobody else stands
   * against it. Throws OutportError, all as before then. `handedOver`: nobody can, because another
   * open file of this process holds the same.
   */
  prepare(fd: number, next: Permissions, handedOver = false): void {
    const used = next.used & ~this.#used;
    const unshared = unsharedOf(next) & ~this.#unshared;
    if (used === 0 && unshared === 0) return;
    try {
      this.#lock(fd, used, unshared);
      if (!handedOver) this.#check(fd, next);
    } catch (error) {
      this.abort(fd, next);
      throw error;
    }
  }

  /** Takes all of `next` on another file description, to which the node is about to switch. */
  copy(fd: number, next: Permissions): void {
    this.#lock(fd, next.used, unsharedOf(next));
  }

  /** Drops what prepare(next) took. */
  abort(fd: number, next: Permissions): void {
    this.#unlock(fd, next.used & ~this.#used, unsharedOf(next) & ~this.#unshared);
  }

  /** Drops what was held and `next` doesn't need. */
  commit(fd: number, next: Permissions): void {
    this.#unlock(fd, this.#used & ~next.used, this.#unshared & next.shared);
    this.#used = next.used;
    this.#unshared = unsharedOf(next);
  }

  /** Drops everything on a file description that the node no longer uses. */
  release(fd: number): void {
    this.#unlock(fd, PERM_ALL, PERM_ALL);
  }

  #lock(fd: number, used: number, unshared: number): void {
    for (const byte of bytesOf(used, unshared)) {
      const result = this.#linux.setLock(fd, F_RDLCK, byte, 1);
      if (result < 0) throw lockError(`Failed to lock byte ${byte}`, result);
    }
  }

  /** A failure would leave too much locked, never too little. */
  #unlock(fd: number, used: number, unshared: number): void {
    for (const byte of bytesOf(used, unshared)) this.#linux.setLock(fd, F_UNLCK, byte, 1);
  }

  #check(fd: number, next: Permissions): void {
    const unshared = unsharedOf(next);
    for (let i = 0; i < PERM_COUNT; i++) {
      const bit = 1 << i;
      if ((next.used & bit) !== 0) {
        this.#probe(fd, UNSHARED_BASE + i, `Failed to get "${permissionNames(bit)}" lock`);
      }
    }
    for (let i = 0; i < PERM_COUNT; i++) {
      const bit = 1 << i;
      if ((unshared & bit) !== 0) {
        this.#probe(fd, USED_BASE + i, `Failed to get shared "${permissionNames(bit)}" lock`);
      }
    }
  }

  #probe(fd: number, byte: number, message: string): void {
    const result = this.#linux.testLock(fd, F_WRLCK, byte, 1);
    if (result !== F_UNLCK) throw lockError(message, result < 0 ? result : -EAGAIN);
  }
}

function unsharedOf(permissions: Permissions): number {
  return PERM_ALL & ~permissions.shared;
}

function bytesOf(used: number, unshared: number): number[] {
  const bytes: number[] = [];
  for (let i = 0; i < PERM_COUNT; i++) if ((used & (1 << i)) !== 0) bytes.push(USED_BASE + i);
  for (let i = 0; i < PERM_COUNT; i++)
    if ((unshared & (1 << i)) !== 0) bytes.push(UNSHARED_BASE + i);
  return bytes;
}

function lockError(message: string, result: number): OutportError {
  const common = result === -EAGAIN || result === -EACCES;
  return new OutportError("in-use", common ? message : `${message}: ${strerror(result)}`);
}
