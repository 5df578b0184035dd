/**
 * A regular host file for direct access by others. Thread: iothread.
 * Spec: fcntl(2) "Leases"
 */
import { F_SETLEASE, F_SETSIG, SIGURG } from "../../../abi/file-lease.ts";
import { F_UNLCK, F_WRLCK, SEEK_END } from "../../../abi/linux.ts";
import { EACCES } from "../../../runtime/errno.ts";
import type { Linux } from "../../../runtime/linux.ts";
import { SECTOR_BYTES } from "../../description.ts";
import type { DirectFile } from "../../direct-access.ts";
import type { Permissions } from "../../driver.ts";
import { ImageLocks } from "../../locks.ts";
import { PERM_WRITE } from "../../node.ts";
import { reopenHostFile } from "./host-file.ts";

export interface HostDirectFileParts {
  readonly linux: Linux;
  readonly filename: string;
  readonly identity: string;
  readonly locking: boolean;
}

export class HostDirectFile implements DirectFile {
  readonly identity: string;
  #fd: number;
  #parts: HostDirectFileParts;

  /** `fd`: the node's, as long as the node is open. */
  constructor(fd: number, parts: HostDirectFileParts) {
    this.#fd = fd;
    this.#parts = parts;
    this.identity = parts.identity;
  }

  get hostBytes(): number {
    return this.#parts.linux.lseek(this.#fd, 0, SEEK_END);
  }

  get takesSectors(): boolean {
    const status = this.#parts.linux.fstat(this.#fd);
    if (typeof status === "number") return false;
    const { directMemoryAlignment, directOffsetAlignment } = status;
    const alignment = Math.max(directMemoryAlignment, directOffsetAlignment);
    return alignment > 0 && alignment <= SECTOR_BYTES;
  }

  open(permissions: Permissions): number {
    const { linux, filename, locking } = this.#parts;
    const mode = { writable: (permissions.used & PERM_WRITE) !== 0, direct: false };
    let fd = -EACCES;
    try {
      ({ fd } = reopenHostFile(linux, this.#fd, filename, mode));
      // Of its own: the node's locks go with the node, these with the last who has the file open.
      if (locking) new ImageLocks(linux).copy(fd, permissions);
    } catch {
      if (fd >= 0) linux.close(fd);
      return -EACCES;
    }
    return fd;
  }

  isOnlyOurs(): boolean {
    const { linux } = this.#parts;
    // The signal of somebody who opens it right now must not end us, as the usual one would.
    linux.fcntl(this.#fd, F_SETSIG, SIGURG);
    if (linux.fcntl(this.#fd, F_SETLEASE, F_WRLCK) < 0) return false;
    linux.fcntl(this.#fd, F_SETLEASE, F_UNLCK);
    return true;
  }
}
