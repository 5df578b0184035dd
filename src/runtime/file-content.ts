/**
 * Reads small files of the control plane whole. Thread: main.
 * Spec: GLib gio g_file_get_contents(), whose words QSD repeats
 */
import {
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  O_NONBLOCK,
  O_RDONLY,
  POLLIN,
  PROT_READ,
  PROT_WRITE,
  S_IFMT,
  S_IFREG,
} from "../abi/linux.ts";
import { OutportError } from "../util/error.ts";
import { EAGAIN, EINTR, ETIMEDOUT, strerror } from "./errno.ts";
import type { Linux } from "./linux.ts";

/** What is larger is no file for people to write. */
export const CONTENT_BYTES_MAX = 1024 * 1024;
/** How long the writer of a pipe may take. QSD differs: it waits without end. */
const WAIT_MS_MAX = 10_000;
const CHUNK_BYTES = 64 * 1024;

/** The caller owns the bytes. Throws an OutportError. */
export function readFileContent(linux: Linux, path: string): Uint8Array<ArrayBuffer> {
  // A pipe without a writer would else keep open() from returning.
  const fd = linux.open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) throw failure(`Failed to open file “${path}”`, fd);
  const flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const address = linux.mmap(0, CHUNK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
  try {
    if (address < 0) throw failure(`Could not allocate memory to read file “${path}”`, address);
    return readAll(linux, fd, address, path);
  } finally {
    // The kernel clears the page before anybody else gets it.
    if (address > 0) linux.munmap(address, CHUNK_BYTES);
    linux.close(fd);
  }
}

function readAll(linux: Linux, fd: number, address: number, path: string): Uint8Array<ArrayBuffer> {
  // SAFETY: the caller unmaps the chunk after this function, which keeps no view of it.
  const chunk = new Uint8Array(linux.ffi.view(address, CHUNK_BYTES));
  const status = linux.fstat(fd);
  const regular = typeof status !== "number" && (status.mode & S_IFMT) === S_IFREG;
  const reading = regular && status.bytes > 0 ? "Failed to read from file" : "Error reading file";
  let content = new Uint8Array(0);
  for (;;) {
    if (!regular && linux.poll(fd, POLLIN, WAIT_MS_MAX) === 0) {
      throw failure(`${reading} “${path}”`, ETIMEDOUT);
    }
    const count = linux.read(fd, address, CHUNK_BYTES);
    if (count === 0) return content;
    if (count === -EINTR || count === -EAGAIN) continue;
    if (count < 0) throw failure(`${reading} “${path}”`, count);
    if (content.length + count > CONTENT_BYTES_MAX) {
      content.fill(0);
      throw new OutportError("limit", `File “${path}” is too large`);
    }
    const longer = new Uint8Array(content.length + count);
    longer.set(content);
    longer.set(chunk.subarray(0, count), content.length);
    content.fill(0);
    content = longer;
  }
}

function failure(doing: string, errno: number): OutportError {
  return new OutportError("io", `${doing}: ${strerror(errno)}`);
}
