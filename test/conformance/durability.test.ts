/**
 * What must be on stable storage is: a loop device counts the flushes that reach it, so that the
 * difference between a stored and a cached write can be seen without cutting the power.
 */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { NBD_CMD_FLAG_FUA } from "../../src/abi/nbd.ts";
import {
  loopDevice,
  MiB,
  pattern,
  patternImage,
  readAt,
  temporaryDirectory,
} from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type RunningDaemon, startDaemon } from "../support/process.ts";

setDefaultTimeout(180_000);

/** The 16th number of Documentation/block/stat.rst: flush requests completed. */
function flushCount(device: string): number {
  const numbers = readFileSync(`/sys/block/${basename(device)}/stat`, "utf8")
    .trim()
    .split(/\s+/);
  return Number(numbers[15]);
}

interface Counted extends AsyncDisposable, RunningDaemon {
  readonly client: NbdClient;
  readonly backing: string;
  /** Flushes that reach the device while `action` runs. */
  flushesOf(action: () => Promise<unknown>): Promise<number>;
}

async function serveCounted(node = "", nbd = ""): Promise<Counted> {
  await using made = new AsyncDisposableStack();
  const directory = made.use(await temporaryDirectory());
  const backing = directory.file("backing.raw");
  await patternImage(backing, 4 * MiB);
  const loop = made.use(await loopDevice(backing));
  const socket = directory.file("nbd.sock");
  const blockdev = `driver=host_device,node-name=disk,filename=${loop.device},discard=unmap`;
  const running = made.use(
    await startDaemon(directory.path, [
      ...["--blockdev", `${blockdev}${node}`],
      ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
      ...["--export", `type=nbd,id=e0,node-name=disk,writable=on${nbd}`],
    ]),
  );
  const client = await NbdClient.open({ path: socket }, { exportName: "disk" });
  const all = made.move();
  return {
    ...running,
    backing,
    client,
    flushesOf: async (action) => {
      const before = flushCount(loop.device);
      await action();
      return flushCount(loop.device) - before;
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

const DATA = pattern(4096);

for (const cache of ["", ",cache.direct=on"]) {
  describe(`a device with ${cache === "" ? "the page cache" : "cache.direct=on"}`, () => {
    test("is flushed for FUA and for flush, and not for other requests", async () => {
      await using disk = await serveCounted(cache);
      const { client, flushesOf } = disk;
      expect(await flushesOf(() => client.write(0, DATA))).toBe(0);
      expect(await flushesOf(() => client.flush())).toBeGreaterThan(0);
      expect(await flushesOf(() => client.writeFua(8192, DATA))).toBeGreaterThan(0);
      const zero = () => client.writeZeroes(65_536, 65_536, NBD_CMD_FLAG_FUA);
      expect(await flushesOf(zero)).toBeGreaterThan(0);
      const trim = () => client.trim(MiB, 65_536, NBD_CMD_FLAG_FUA);
      expect(await flushesOf(trim)).toBeGreaterThan(0);
      const stored = await readAt(disk.backing, 8192, DATA.length);
      expect(stored.equals(DATA)).toBe(true);
    });

    test("is flushed for every change when the export has writethrough=on", async () => {
      await using disk = await serveCounted(cache, ",writethrough=on");
      const { client, flushesOf } = disk;
      expect(await flushesOf(() => client.write(0, DATA))).toBeGreaterThan(0);
      expect(await flushesOf(() => client.writeZeroes(65_536, 65_536))).toBeGreaterThan(0);
      expect(await flushesOf(() => client.read(0, 4096))).toBe(0);
    });

    test("is never flushed with cache.no-flush=on", async () => {
      await using disk = await serveCounted(`${cache},cache.no-flush=on`);
      const { client, flushesOf } = disk;
      const change = async () => {
        await client.write(0, DATA);
        await client.flush();
      };
      expect(await flushesOf(change)).toBe(0);
    });

    test("is flushed when its node goes, and when the daemon ends", async () => {
      await using disk = await serveCounted(cache);
      const { client, flushesOf, qmp } = disk;
      await client.write(0, DATA);
      const remove = async () => {
        await client.disconnect();
        await qmp.execute("block-export-del", { id: "e0", mode: "hard" });
        await qmp.event("BLOCK_EXPORT_DELETED");
        await qmp.execute("blockdev-del", { "node-name": "disk" });
      };
      expect(await flushesOf(remove)).toBeGreaterThan(0);

      await using other = await serveCounted(cache);
      await other.client.write(0, DATA);
      expect(await other.flushesOf(() => other.daemon.stop())).toBeGreaterThan(0);
    });
  });
}
