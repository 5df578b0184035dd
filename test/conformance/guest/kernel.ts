/**
 * The kernel of the guest: Debian's packaged cloud kernel, downloaded and unpacked into a cache
 * and never installed.
 */

import { execFile } from "node:child_process";
import { existsSync, globSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { sleep } from "../../support/process.ts";

const CACHE = resolve(import.meta.dirname, "../../../node_modules/.cache/outport-test-kernel");
const META_PACKAGE = "linux-image-cloud-amd64";
const execute = promisify(execFile);

export interface Kernel {
  readonly image: string;
  /** In the order in which they must be loaded. */
  readonly modules: readonly string[];
}

const MODULES = [
  "virtio/virtio_ring",
  "virtio/virtio",
  "virtio/virtio_pci_modern_dev",
  "virtio/virtio_pci_legacy_dev",
  "virtio/virtio_pci",
  "block/virtio_blk",
];

/** The kernel's files; downloads the package the first time. Throws when that is impossible. */
export async function guestKernel(): Promise<Kernel> {
  if (!existsSync(CACHE)) await download();
  const [image] = globSync(`${CACHE}/boot/vmlinuz-*`);
  const [drivers] = globSync(`${CACHE}/{usr/,}lib/modules/*/kernel/drivers`);
  if (image === undefined || drivers === undefined) {
    throw new Error(`'${CACHE}' does not hold a kernel: delete it, and the next run gets another`);
  }
  return { image, modules: MODULES.map((name) => moduleFile(join(drivers, name))) };
}

function moduleFile(path: string): string {
  const [found] = globSync(`${path}.ko*`);
  if (found === undefined) throw new Error(`the kernel package has no '${path}.ko'`);
  return found;
}

async function download(): Promise<void> {
  await mkdir(resolve(CACHE, ".."), { recursive: true });
  const directory = await mkdtemp(`${CACHE}-`);
  try {
    const packageFile = await downloadPatiently(directory);
    const files = join(directory, "files");
    await execute("dpkg-deb", ["--extract", packageFile, files]);
    await rename(files, CACHE);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

const ATTEMPTS = 4;
const PAUSE_MS = 10_000;
const RETRIES = ["-qq", "-o", "Acquire::Retries=3"];

async function downloadPatiently(directory: string): Promise<string> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await downloadPackage(directory);
    } catch (error) {
      if (attempt === ATTEMPTS) throw error;
      // What the package lists name may be gone by now, or the network away for a while.
      if (attempt > 1) await sleep(PAUSE_MS);
      await execute("apt-get", [...RETRIES, "update"]).catch(() => {});
    }
  }
}

/** Returns the path of the downloaded package. */
async function downloadPackage(directory: string): Promise<string> {
  const { stdout } = await execute("apt-cache", ["depends", "--important", META_PACKAGE]);
  const name = /Depends: (linux-image-\S+-cloud-\S+)/.exec(stdout)?.[1];
  if (name === undefined) throw new Error(`'${META_PACKAGE}' names no kernel: ${stdout}`);
  await execute("apt-get", [...RETRIES, "download", name], { cwd: directory });
  const [file] = globSync(join(directory, "*.deb"));
  if (file === undefined) throw new Error(`apt-get did not download '${name}'`);
  return file;
}
