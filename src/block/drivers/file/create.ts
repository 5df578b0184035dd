/**
 * New files, for blockdev-create. Thread: iothread; what may take long happens elsewhere or in
 * parts. Spec: qapi/block-core.json BlockdevCreateOptionsFile; QEMU block/file-posix.c
 */
import { O_CREAT, O_EXCL, O_RDWR } from "../../../abi/linux.ts";
import * as attributes from "../../../abi/linux-attributes.ts";
import type { Reactor } from "../../../io/reactor.ts";
import { preallocMode } from "../../../qapi/block.ts";
import { bool, doc, optional, size, str } from "../../../qapi/scalars.ts";
import { EDEADLK, EEXIST, EFBIG, EINVAL, EIO } from "../../../runtime/errno.ts";
import type { Linux } from "../../../runtime/linux.ts";
import { statPlace } from "../../../runtime/linux-mount.ts";
import { OutportError } from "../../../util/error.ts";
import { LENGTH_MAX } from "../../description.ts";
import type { CreateContext, ImageCreation } from "../../driver.ts";
import { canLock, ImageLocks } from "../../locks.ts";
import { PERM_ALL, PERM_RESIZE, PERM_WRITE } from "../../node.ts";
import { hostError } from "./host-file.ts";

const MODE = 0o644;
const EXTENT_SIZE_HINT = 1024 * 1024;
const EXTENT_SIZE_HINT_MAX = 0xffff_ffff;
/** Nobody can cancel what the host does at once. */
const ALLOCATE_BYTES_MAX = 1024 * 1024 * 1024;
const ZEROES_BYTES = 1024 * 1024;

interface FileCreateOptions {
  readonly filename: string;
  readonly size: number;
  readonly preallocation?: "off" | "metadata" | "falloc" | "full";
  readonly nocow?: boolean;
  readonly "extent-size-hint"?: number;
}

export const fileCreation: ImageCreation = {
  nodes: [],
  members: () => ({
    filename: doc(str, "Path of the file"),
    size: doc(size, "Length, bytes"),
    preallocation: optional(preallocMode, "off, falloc or full (default: off)"),
    nocow: optional(bool, "Turn off copy-on-write, on Btrfs (default: false)"),
    "extent-size-hint": optional(size, "Extents to ask for, on XFS; 0 for none (default: 1 MiB)"),
  }),
  create: createFile,
};

async function createFile(context: CreateContext): Promise<void> {
  const { linux } = context.reactor;
  const options = context.options as unknown as FileCreateOptions;
  const { filename } = options;
  if ((options["extent-size-hint"] ?? 0) > EXTENT_SIZE_HINT_MAX) {
    throw new OutportError("invalid", "Extent size hint is too large");
  }
  const place = statPlace(linux, filename);
  if (typeof place !== "number" && context.servedDevices.includes(place.dev)) {
    // QSD differs: it waits for itself, for ever.
    throw hostError(`Could not create '${filename}'`, -EDEADLK);
  }
  const { fd, isNew } = openNew(linux, filename);
  const locks = canLock(linux, fd) ? new ImageLocks(linux) : null;
  try {
    locks?.prepare(fd, { used: PERM_WRITE | PERM_RESIZE, shared: PERM_ALL & ~PERM_RESIZE });
    await fill(context, fd, options);
  } catch (error) {
    // QSD differs: it leaves an empty file behind.
    if (isNew && isAt(linux, fd, filename)) linux.unlink(filename);
    throw error;
  } finally {
    // With it go its locks: nobody else has this open file.
    linux.close(fd);
  }
}

function openNew(linux: Linux, filename: string): { fd: number; isNew: boolean } {
  const fd = linux.open(filename, O_RDWR | O_CREAT | O_EXCL, MODE);
  if (fd >= 0) return { fd, isNew: true };
  const again = fd === -EEXIST ? linux.open(filename, O_RDWR | O_CREAT, MODE) : fd;
  if (again < 0) throw hostError(`Could not create '${filename}'`, again);
  return { fd: again, isNew: false };
}

/** The file still has that name. */
function isAt(linux: Linux, fd: number, filename: string): boolean {
  const [file, named] = [linux.fstat(fd), linux.stat(filename)];
  if (typeof file === "number" || typeof named === "number") return false;
  return file.dev === named.dev && file.ino === named.ino;
}

async function fill(context: CreateContext, fd: number, options: FileCreateOptions): Promise<void> {
  const { reactor } = context;
  await truncate(reactor, fd, 0);
  await setAttributes(reactor, fd, options);
  const { size: bytes, preallocation = "off" } = options;
  if (preallocation === "metadata") {
    throw new OutportError("unsupported", `Unsupported preallocation mode: ${preallocation}`);
  }
  await truncate(reactor, fd, bytes);
  try {
    if (preallocation === "falloc") await allocate(context, fd, bytes);
    if (preallocation === "full") await writeZeroes(context, fd, bytes);
  } catch (error) {
    await truncate(reactor, fd, 0);
    throw error;
  }
}

async function truncate(reactor: Reactor, fd: number, bytes: number): Promise<void> {
  const { ftruncate } = reactor.linux.sys;
  const result =
    bytes > LENGTH_MAX
      ? -EFBIG
      : bytes < 0
        ? -EINVAL
        : await reactor.op((engine, token) => engine.call(ftruncate, [fd, bytes], token));
  if (result < 0) throw hostError("Could not resize file", result);
}

/** What the file system doesn't know is not worth an error. */
async function setAttributes(
  reactor: Reactor,
  fd: number,
  { nocow = false, "extent-size-hint": hint = EXTENT_SIZE_HINT }: FileCreateOptions,
): Promise<void> {
  const { linux, memory, buffers } = reactor;
  const at = await reactor.allocate(attributes.FSXATTR_SIZE);
  const view = new DataView(memory.u8.buffer, memory.u8.byteOffset + at, attributes.FSXATTR_SIZE);
  // SAFETY: the kernel reads and writes an int or a struct fsxattr, which the buffer holds.
  const address = memory.address + at;
  const change = (get: number, set: number, apply: () => void): void => {
    if (linux.ioctl(fd, get, address) < 0) return;
    apply();
    linux.ioctl(fd, set, address);
  };
  const setFlag = (offset: number, flag: number): void =>
    view.setUint32(offset, view.getUint32(offset, true) | flag, true);
  if (nocow) {
    const { FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL } = attributes;
    change(FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, () => setFlag(0, FS_NOCOW_FL));
  }
  if (hint > 0) {
    const { FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_XFLAG_EXTSIZE } = attributes;
    change(FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, () => {
      setFlag(attributes.FSXATTR_XFLAGS, FS_XFLAG_EXTSIZE);
      view.setUint32(attributes.FSXATTR_EXTSIZE, hint, true);
    });
  }
  buffers.free(at);
}

async function allocate(context: CreateContext, fd: number, bytes: number): Promise<void> {
  const { reactor, checkWanted } = context;
  const { fallocate } = reactor.linux.sys;
  for (let done = 0; done < bytes; ) {
    checkWanted();
    const part = Math.min(bytes - done, ALLOCATE_BYTES_MAX);
    const args = [fd, 0, done, part];
    const result = await reactor.op((engine, token) => engine.call(fallocate, args, token));
    if (result < 0) throw hostError("Could not preallocate new data", result);
    done += part;
  }
}

async function writeZeroes(context: CreateContext, fd: number, bytes: number): Promise<void> {
  const { reactor, checkWanted } = context;
  const { memory, buffers } = reactor;
  const at = await reactor.allocate(ZEROES_BYTES);
  memory.u8.fill(0, at, at + ZEROES_BYTES);
  try {
    for (let done = 0; done < bytes; ) {
      checkWanted();
      const part = Math.min(bytes - done, ZEROES_BYTES);
      const result = await reactor.op((engine, token) =>
        engine.write(fd, memory.address + at, part, done, 0, token),
      );
      if (result <= 0) throw hostError("Could not write zeros for preallocation", result || -EIO);
      done += result;
    }
  } finally {
    buffers.free(at);
  }
  const result = await reactor.op((engine, token) => engine.fsync(fd, false, token));
  if (result < 0) throw hostError("Could not flush file to disk", result);
}
