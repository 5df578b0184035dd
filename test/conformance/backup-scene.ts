/**
 * What a backup tool has to do with: a daemon with a qcow2 disk that a guest writes to over NBD,
 * a model of what is on it, and the way in which oVirt and virtnbdbackup pull dirty ranges.
 */
import { copyFile, readFile, rm } from "node:fs/promises";
import { attempt, nbdsh, requireClient, run } from "../support/clients.ts";
import { MiB, type TemporaryDirectory, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type RunningDaemon, startDaemon } from "../support/process.ts";
import type { Random } from "../support/random.ts";
import { unixUri } from "./scene.ts";

export const DISK_BYTES = 16 * MiB;
const NODE = "disk";

export interface BitmapInfo {
  readonly name: string;
  readonly count: number;
  readonly granularity: number;
  readonly recording: boolean;
  readonly busy: boolean;
  readonly persistent: boolean;
  readonly inconsistent?: boolean;
}

/** An action of a transaction on the bitmaps of the disk. */
export const act = (type: string, data: object) => ({
  type: `block-dirty-bitmap-${type}`,
  data: { node: NODE, ...data },
});

export class BackupScene implements AsyncDisposable {
  readonly folder: TemporaryDirectory;
  /** What the guest has written. */
  readonly model: Buffer = Buffer.alloc(DISK_BYTES);
  readonly disk: string;
  #running: RunningDaemon | null = null;

  private constructor(folder: TemporaryDirectory) {
    this.folder = folder;
    this.disk = folder.file("disk.qcow2");
  }

  /** `options`: of qemu-img create. */
  static async make(options: readonly string[] = []): Promise<BackupScene> {
    const scene = new BackupScene(await temporaryDirectory());
    const how = ["create", "-q", "-f", "qcow2", ...options];
    await run("qemu-img", [...how, scene.disk, String(DISK_BYTES)]);
    await scene.start();
    return scene;
  }

  async start(): Promise<void> {
    this.#running = await startDaemon(this.folder.path, [
      ...["--blockdev", `driver=file,node-name=${NODE}-file,filename=${this.disk}`],
      ...["--blockdev", `driver=qcow2,node-name=${NODE},file=${NODE}-file`],
      ...["--nbd-server", `addr.type=unix,addr.path=${this.#socket}`],
      ...["--export", `type=nbd,id=guest,node-name=${NODE},name=guest,writable=on`],
    ]);
  }

  async stop(): Promise<void> {
    await this.#running?.[Symbol.asyncDispose]();
    this.#running = null;
  }

  /** As a power cut to the daemon. */
  async kill(): Promise<void> {
    const { daemon, qmp, pidfile } = this.#running!;
    qmp.close();
    daemon.kill();
    await daemon.exited;
    await rm(pidfile);
    this.#running = null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await this.folder[Symbol.asyncDispose]();
  }

  execute<Result = unknown>(command: string, args: object = {}): Promise<Result> {
    return this.#running!.qmp.execute<Result>(command, { ...args });
  }

  transaction(...actions: readonly object[]): Promise<unknown> {
    return this.execute("transaction", { actions });
  }

  async bitmaps(): Promise<BitmapInfo[]> {
    type Info = { "node-name": string; "dirty-bitmaps"?: BitmapInfo[] };
    const nodes = await this.execute<Info[]>("query-named-block-nodes");
    return nodes.find((node) => node["node-name"] === NODE)!["dirty-bitmaps"] ?? [];
  }

  /** The guest works for a while. */
  async guestWrites(random: Random, count: number): Promise<void> {
    const client = await NbdClient.open({ path: this.#socket }, { exportName: "guest" });
    for (let i = 0; i < count; i++) {
      const offset = random.below(DISK_BYTES / 512) * 512;
      const most = Math.min(random.pick([512, 4096, 200_000]), DISK_BYTES - offset);
      const bytes = 512 * Math.ceil(most / 512);
      const what = random.below(6);
      if (what === 0) {
        await client.writeZeroes(offset, bytes);
        this.model.fill(0, offset, offset + bytes);
      } else {
        const content = Buffer.alloc(bytes, random.bytes(64));
        await client.write(offset, content);
        content.copy(this.model, offset);
      }
    }
    await client.flush();
    await client.disconnect();
  }

  /** Runs `pull` while a read-only export "backup" shows the disk, with a bitmap. */
  async exported<Result>(
    bitmap: string | null,
    pull: (uri: string) => Promise<Result>,
  ): Promise<Result> {
    const more = bitmap === null ? {} : { bitmaps: [bitmap] };
    const options = { type: "nbd", id: "backup", name: "backup", "node-name": NODE, ...more };
    await this.execute("block-export-add", options);
    try {
      return await pull(unixUri(this.#socket, "backup"));
    } finally {
      const gone = this.#running!.qmp.event("BLOCK_EXPORT_DELETED", ({ id }) => id === "backup");
      await this.execute("block-export-del", { id: "backup", mode: "hard" });
      await gone;
    }
  }

  /** A copy of all that is on the disk, raw. */
  async pullAll(path: string): Promise<void> {
    await this.exported(null, (uri) => run("nbdcopy", [uri, path]));
  }

  /**
   * What `bitmap` marks, into a raw backup or the uppermost image of a chain. Returns how many
   * bytes that were.
   */
  pullDirty(bitmap: string, path: string, format: "raw" | "qcow2"): Promise<number> {
    return this.exported(bitmap, (uri) => nbdsh<number>(pullScript(uri, bitmap, path, format)));
  }

  get #socket(): string {
    return this.folder.file("nbd.sock");
  }
}

/** Asks for the dirty ranges, reads them, and writes them to where they are in the backup. */
function pullScript(uri: string, bitmap: string, path: string, format: "raw" | "qcow2"): string {
  const server = [requireClient("qemu-nbd"), "--format", format, path];
  return `
context = ${JSON.stringify(`qemu:dirty-bitmap:${bitmap}`)}
h.add_meta_context(context)
h.connect_uri(${JSON.stringify(uri)})
assert h.can_meta_context(context)
target = nbd.NBD()
target.connect_systemd_socket_activation(${JSON.stringify(server)})
dirty = []
at = 0
def extent(found, offset, entries, error):
    global at
    for length, flags in zip(entries[::2], entries[1::2]):
        if found == context and flags & 1:
            dirty.append((offset, length))
        offset += length
    at = offset
while at < h.get_size():
    h.block_status(h.get_size() - at, at, extent)
for offset, length in dirty:
    for start in range(offset, offset + length, 1 << 20):
        part = min(1 << 20, offset + length - start)
        target.pwrite(h.pread(part, start), start)
target.flush()
target.shutdown()
h.shutdown()
show(sum(length for _, length in dirty))
`;
}

/** An image that a backup's increment goes into. */
export async function makeIncrement(path: string, backing: string, format: string): Promise<void> {
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, path]);
}

/** Restores a backup to a new disk, and returns what is on it. */
export async function restored(path: string, format: "raw" | "qcow2"): Promise<Buffer> {
  const target = `${path}.restored`;
  if (format === "raw") await copyFile(path, target);
  else await run("qemu-img", ["convert", "-f", format, "-O", "raw", path, target]);
  return readFile(target);
}

/** Empty, or what `qemu-img check` has against an image. */
export async function complaints(path: string): Promise<string> {
  const { code, stdout, stderr } = await attempt("qemu-img", ["check", "-f", "qcow2", path]);
  return code === 0 ? "" : `${stdout}${stderr}`;
}
