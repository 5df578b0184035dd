/** Disk images for tests: temporary directories, patterns, sparse files, small file systems. */

import { mkdtemp, open, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "./clients.ts";

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;

/** A directory that `await using` removes. */
export interface TemporaryDirectory extends AsyncDisposable {
  readonly path: string;
  file(name: string): string;
}

export async function temporaryDirectory(): Promise<TemporaryDirectory> {
  const path = await mkdtemp(join(tmpdir(), "outport-test-"));
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}

/** Bytes that tell where they belong: no two 512-byte sectors of one seed are equal. */
export function pattern(bytes: number, seed = 1): Buffer {
  const words = new Uint32Array(Math.ceil(bytes / 4));
  let state = (seed * 0x9e3779b9) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13; // xorshift32
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return Buffer.from(words.buffer, 0, bytes);
}

/** An image full of `pattern(bytes, seed)`; returns its bytes. */
export async function patternImage(path: string, bytes: number, seed = 1): Promise<Buffer> {
  const content = pattern(bytes, seed);
  await writeFile(path, content);
  return content;
}

/** An image without a single allocated block. */
export async function sparseImage(path: string, bytes: number): Promise<void> {
  await writeFile(path, "");
  await truncate(path, bytes);
}

/** Writes `content` at `offset` of an image that exists. */
export async function writeAt(path: string, offset: number, content: Uint8Array): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.write(content, 0, content.length, offset);
  } finally {
    await file.close();
  }
}

/** Bytes [offset, offset + bytes) of a file, read from outside the daemon. */
export async function readAt(path: string, offset: number, bytes: number): Promise<Buffer> {
  const file = await open(path, "r");
  try {
    const target = Buffer.alloc(bytes);
    const { bytesRead } = await file.read(target, 0, bytes, offset);
    return target.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

/** The bytes for which the file system has allocated blocks. */
export async function allocatedBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * 512;
}

/** Throws with the first differing offset: a failing comparison of megabytes must stay readable. */
export function assertSameBytes(actual: Uint8Array, expected: Uint8Array, what = "data"): void {
  if (actual.length !== expected.length) {
    throw new Error(`${what}: ${actual.length} bytes instead of ${expected.length}`);
  }
  if (Buffer.compare(actual, expected) === 0) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  throw new Error(`${what} differs at offset ${at}: ${actual[at]} instead of ${expected[at]}`);
}

/** The whole file is `expected`. */
export async function assertFileIs(path: string, expected: Uint8Array): Promise<void> {
  assertSameBytes(await readFile(path), expected, path);
}

/** A loop device over `path`, detached by `await using`. Needs root. */
export async function loopDevice(path: string): Promise<AsyncDisposable & { device: string }> {
  const device = (await run("losetup", ["--find", "--show", path])).trim();
  return {
    device,
    [Symbol.asyncDispose]: async () => {
      await run("losetup", ["--detach", device]);
    },
  };
}

/** A tmpfs of `bytes` at `path`, unmounted by `await using`. Needs root. */
export async function smallFileSystem(path: string, bytes: number): Promise<AsyncDisposable> {
  await run("mount", ["-t", "tmpfs", "-o", `size=${bytes}`, "outport-test", path]);
  return {
    [Symbol.asyncDispose]: async () => {
      await run("umount", ["--lazy", path]); // A failing test may still use it.
    },
  };
}
