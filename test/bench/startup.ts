/**
 * How long the daemon takes to start, and what it holds when idle. Compares nothing by itself:
 * OUTPORT_COMMAND names the program, as for the tests.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { MiB, sparseImage, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { runDaemon, spawnDaemon } from "../support/process.ts";

const ROUNDS = 20;
const IDLE_MS = 2_000;

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? Number.NaN;
}

async function versionMs(): Promise<number> {
  const start = performance.now();
  const { exit } = await runDaemon(["--version"]);
  if (exit !== 0) throw new Error(`--version exited with ${exit}`);
  return performance.now() - start;
}

/** From exec to the first byte read through an export; then RSS after a while of nothing. */
async function readyMs(idle: boolean): Promise<{ ms: number; residentKiB: number }> {
  await using directory = await temporaryDirectory();
  await sparseImage(directory.file("disk.raw"), 64 * MiB);
  const path = directory.file("nbd.sock");
  const start = performance.now();
  const daemon = spawnDaemon([
    ...["--blockdev", `driver=file,node-name=file,filename=${directory.file("disk.raw")}`],
    ...["--blockdev", "driver=raw,node-name=disk,file=file"],
    ...["--nbd-server", `addr.type=unix,addr.path=${path}`],
    ...["--export", "type=nbd,id=e0,node-name=disk,writable=on"],
    ...["--pidfile", directory.file("pid")],
  ]);
  const client = await connectSoon(path);
  await client.read(0, 512);
  const ms = performance.now() - start;
  await daemon.ready(directory.file("pid"));
  if (idle) await sleep(IDLE_MS);
  const residentKiB = daemon.residentKiB();
  client.close();
  await daemon.stop();
  return { ms, residentKiB };
}

async function connectSoon(path: string): Promise<NbdClient> {
  for (;;) {
    try {
      return await NbdClient.open({ path }, { exportName: "disk" });
    } catch {
      await sleep(1);
    }
  }
}

/** Prints start-up times and idle memory. */
export async function measureStartup(): Promise<void> {
  const version: number[] = [];
  const ready: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    version.push(await versionMs());
    ready.push((await readyMs(false)).ms);
  }
  const { residentKiB } = await readyMs(true);
  console.log(`--version            ${median(version).toFixed(1)} ms`);
  console.log(`exec to first read   ${median(ready).toFixed(1)} ms`);
  console.log(`resident, one export ${(residentKiB / 1024).toFixed(1)} MiB`);
}

if (import.meta.main) await measureStartup();
