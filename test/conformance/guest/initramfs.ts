/**
 * The guest's whole user space: busybox, some of this machine's own programs with the libraries
 * that they need, and an init that runs each line of the serial line.
 * Spec: Linux Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
 */

import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { promisify } from "node:util";
import { requireClient } from "../../support/clients.ts";

const execute = promisify(execFile);

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
/** A program of this machine that the guest gets, in /tools: busybox prefers its own elsewhere. */
export type Tool = "blkdiscard" | "e2fsck" | "fio" | "fstrim" | "mke2fs" | "resize2fs";

/** What the shell prints when it takes commands. */
export const GUEST_READY = "GUEST-READY";

/** The kernel keeps quiet on the serial line, so that what the shell prints stays whole. */
const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /sbin
/bin/busybox --install -s /sbin
export PATH=/bin:/sbin
mount -t proc p /proc
mount -t sysfs s /sys
mount -t devtmpfs d /dev
mount -t tmpfs t /tmp
for module in /modules/*; do insmod $module; done
dmesg -n 1
stty -echo
echo ${GUEST_READY}
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r line; do eval "$line"; done
`;

/** An archive that grows entry by entry. */
class CpioArchive {
  readonly #parts: Buffer[] = [];
  #inode = 0;

  add(name: string, mode: number, data: Buffer = Buffer.alloc(0)): void {
    const NLINK = 1;
    this.#inode++;
    const numbers = [
      this.#inode,
      mode,
      0,
      0,
      NLINK,
      0,
      data.length,
      0,
      0,
      0,
      0,
      name.length + 1,
      0,
    ];
    const header = `070701${numbers.map((each) => each.toString(16).padStart(8, "0")).join("")}`;
    this.#push(Buffer.from(`${header}${name}\0`));
    this.#push(data);
  }

  finish(): Buffer {
    this.add("TRAILER!!!", 0);
    return Buffer.concat(this.#parts);
  }

  #push(data: Buffer): void {
    this.#parts.push(data, Buffer.alloc(-data.length & 3));
  }
}

/** The shared libraries and the loader that the program names; none for a static one. */
async function librariesOf(program: string): Promise<string[]> {
  const said = await execute("ldd", [program]).catch((error: { stderr: string }) => ({
    stdout: error.stderr, // "not a dynamic executable"
  }));
  return said.stdout.split(/\s+/).filter((word) => word.startsWith("/") && !word.endsWith(":"));
}

function parentsOf(path: string): string[] {
  const parent = dirname(path);
  return parent === "." ? [] : [...parentsOf(parent), parent];
}

/** Writes the archive to `path`, uncompressed: unpacking would cost more than reading. */
export async function writeInitramfs(
  path: string,
  modules: readonly string[],
  tools: readonly Tool[],
): Promise<void> {
  const sources = new Map<string, string>();
  sources.set("bin/busybox", requireClient("busybox"));
  for (const tool of tools) sources.set(`tools/${tool}`, requireClient(tool));
  for (const program of [...sources.values()]) {
    for (const library of await librariesOf(program)) sources.set(library.slice(1), library);
  }
  modules.forEach((module, index) => {
    sources.set(`modules/${index}-${basename(module)}`, module);
  });
  const archive = new CpioArchive();
  const directories = new Set([...sources.keys()].flatMap(parentsOf));
  for (const directory of directories) archive.add(directory, S_IFDIR | 0o755);
  archive.add("init", S_IFREG | 0o755, Buffer.from(INIT));
  for (const [name, source] of sources) {
    archive.add(name, S_IFREG | 0o755, await readFile(source));
  }
  await writeFile(path, archive.finish());
}
