/** Dirty bitmaps beside those of qemu-storage-daemon: the same writes, the same bits. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { requireClient, run } from "../support/clients.ts";
import { KiB, MiB, patternImage, sparseImage, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { COMMAND, startProgram } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";
import { Random, randomSeed } from "../support/random.ts";
import { unixUri } from "./scene.ts";

setDefaultTimeout(180_000);

const BYTES = 8 * MiB + 3 * 512;
/** Where each format must be written alike: a file below qcow2 is the driver's own business. */
const NODES = { raw: ["disk", "disk-file", "filter"], qcow2: ["disk", "filter"] };
type Format = keyof typeof NODES;
const GRANULARITIES = [512, 4 * KiB, 64 * KiB, 2 ** 31];
const theirs = (process.env.QSD_COMMAND ?? requireClient("qemu-storage-daemon")).split(" ");

/** Starts the daemon over a new image, plays the script, and tells what there is to see. */
async function play(command: readonly string[], format: Format, seed: number): Promise<unknown[]> {
  await using directory = await temporaryDirectory();
  const file = (name: string) => join(directory.path, name);
  await makeImage(format, file);
  const options = (driver: string) => `driver=${driver},discard=unmap,node-name=`;
  const daemon = startProgram([
    ...command,
    ...["--blockdev", `${options("file")}disk-file,filename=${file("disk")}`],
    ...["--blockdev", `${options(format)}disk,file=disk-file`],
    ...["--blockdev", `${options("copy-on-read")}filter,file=disk`],
    ...["--nbd-server", `addr.type=unix,addr.path=${file("nbd.sock")}`],
    ...["--export", "type=nbd,id=e0,node-name=filter,name=top,writable=on"],
    ...["--chardev", `socket,id=qmp,path=${file("qmp.sock")},server=on,wait=off`],
    ...["--monitor", "chardev=qmp", "--pidfile", file("pid")],
  ]);
  try {
    await daemon.ready(file("pid"));
    const qmp = await Qmp.connect(file("qmp.sock"));
    const seen = await script(qmp, file("nbd.sock"), NODES[format], new Random(seed));
    await qmp.execute("quit");
    qmp.close();
    return seen;
  } finally {
    await daemon.stop();
  }
}

/** A part of the qcow2 image is its backing file's. */
async function makeImage(format: Format, file: (name: string) => string): Promise<void> {
  if (format === "raw") return sparseImage(file("disk"), BYTES);
  const backing = ["-b", file("backing"), "-F", "raw"];
  await patternImage(file("backing"), 6 * MiB);
  const how = ["create", "-q", "-f", "qcow2", ...backing];
  await run("qemu-img", [...how, file("disk"), String(BYTES)]);
}

async function script(
  qmp: Qmp,
  socket: string,
  names: readonly string[],
  random: Random,
): Promise<unknown[]> {
  const seen: unknown[] = [];
  const all = names.flatMap((node) =>
    GRANULARITIES.map((granularity) => ({ node, name: `g${granularity}`, granularity })),
  );
  for (const bitmap of all) await qmp.execute("block-dirty-bitmap-add", bitmap);
  const look = async (): Promise<void> => {
    for (const { node, name } of all) {
      seen.push(await qmp.execute("x-debug-block-dirty-bitmap-sha256", { node, name }));
    }
    type Info = { "node-name": string; "dirty-bitmaps"?: object };
    const nodes = await qmp.execute<Info[]>("query-named-block-nodes");
    for (const node of nodes.filter((one) => names.includes(one["node-name"]))) {
      seen.push([node["node-name"], node["dirty-bitmaps"]]);
    }
  };
  const client = await NbdClient.open({ path: socket }, { exportName: "top" });
  for (let round = 0; round < 6; round++) {
    for (let i = 0; i < 25; i++) await writeSomewhere(client, random);
    await look();
    await changeSomething(qmp, names, random);
  }
  await client.disconnect();
  await look();
  seen.push(...(await maps(qmp, socket)));
  return seen;
}

async function writeSomewhere(client: NbdClient, random: Random): Promise<void> {
  const offset = random.below(BYTES / 512) * 512;
  const room = (BYTES - offset) / 512;
  const bytes = 512 * (1 + random.below(Math.min(room, random.pick([1, 9, 300]))));
  const what = random.below(5);
  if (what === 0) await client.writeZeroes(offset, bytes);
  else if (what === 1) await client.writeZeroes(offset, bytes, 2);
  else if (what === 2) await client.read(offset, bytes);
  else await client.write(offset, random.bytes(bytes));
}

/** The same on both: a step of each kind, on random bitmaps. */
async function changeSomething(qmp: Qmp, names: readonly string[], random: Random): Promise<void> {
  const place = () => ({ node: random.pick(names), name: `g${random.pick(GRANULARITIES)}` });
  const { node, name: target } = place();
  await qmp.execute("block-dirty-bitmap-merge", { node, target, bitmaps: [place(), place()] });
  for (const what of ["clear", "disable", "enable", "disable", "enable", "clear"]) {
    if (random.chance(0.5)) await qmp.execute(`block-dirty-bitmap-${what}`, place());
  }
}

/** What clients are told of each bitmap. */
async function maps(qmp: Qmp, socket: string): Promise<unknown[]> {
  const deleted = qmp.event("BLOCK_EXPORT_DELETED");
  await qmp.execute("block-export-del", { id: "e0", mode: "hard" });
  await deleted;
  const names = GRANULARITIES.map((granularity) => `g${granularity}`);
  await qmp.execute("block-export-add", {
    ...{ type: "nbd", id: "maps", "node-name": "filter", name: "maps", writable: true },
    bitmaps: names,
  });
  const seen: unknown[] = [];
  for (const name of names) {
    const context = `--map=qemu:dirty-bitmap:${name}`;
    seen.push(await run("nbdinfo", [context, unixUri(socket, "maps")]));
  }
  const contexts = ["qemu:dirty-bitmap:g512", "base:allocation"];
  const client = await NbdClient.open({ path: socket }, { exportName: "maps", contexts });
  seen.push([...client.contexts]);
  for (const offset of [0, 512, 3 * MiB + 512]) {
    seen.push((await client.blockStatus(offset, BYTES - offset)).get(contexts[0]!));
  }
  await client.disconnect();
  return seen;
}

describe("after the same random writes and commands", () => {
  const seed = randomSeed();
  for (const format of ["raw", "qcow2"] as const) {
    test(`bits, counts and extents of ${format} are the same`, async () => {
      for (const each of [seed, seed + 1]) {
        expect(await play(COMMAND, format, each)).toEqual(await play(theirs, format, each));
      }
    });
  }
});
