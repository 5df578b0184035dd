/**
 * Block status of backing chains beside qemu-storage-daemon's: the same images, the same requests
 * to both, and the same extents in both contexts. QSD_COMMAND names another one than the installed.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { cp } from "node:fs/promises";
import { requireClient, run } from "../support/clients.ts";
import { MiB, pattern, type TemporaryDirectory, temporaryDirectory } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { COMMAND, type Daemon, startProgram } from "../support/process.ts";
import { Qmp } from "../support/qmp.ts";
import { Random, randomSeed } from "../support/random.ts";
import { extentsOf } from "./qcow2-matrix.ts";

setDefaultTimeout(60_000);

const seed = randomSeed();
const theirs = (process.env.QSD_COMMAND ?? requireClient("qemu-storage-daemon")).split(" ");

/** One layer of a chain, from the bottom up. */
interface Layer {
  readonly driver: string;
  readonly bytes: number;
  /** Of qemu-img; DATA is the path of a data file. */
  readonly options?: string;
  /** Filters over it. */
  readonly filters?: number;
}

const qcow2 = (bytes: number, options = "cluster_size=65536", filters = 0): Layer => ({
  ...{ driver: "qcow2", bytes, options, filters },
});

const SHORT = 700 * 1024;
const LONG = 3 * MiB + 1536;

const chains: Readonly<Record<string, readonly Layer[]>> = {
  "clusters of many sizes over raw": [
    { driver: "raw", bytes: 2 * MiB },
    qcow2(2 * MiB, "cluster_size=512"),
    qcow2(LONG, "cluster_size=2M"),
    qcow2(2 * MiB, "cluster_size=4096"),
  ],
  "subclusters over a short image": [
    qcow2(SHORT, "extended_l2=on"),
    qcow2(2 * MiB, "extended_l2=on,cluster_size=16384"),
  ],
  "version 2 over a longer image": [qcow2(LONG), qcow2(2 * MiB, "compat=0.10"), qcow2(LONG)],
  "data files": [
    qcow2(LONG, "data_file=DATA,data_file_raw=on"),
    qcow2(2 * MiB, "data_file=DATA,extended_l2=on"),
  ],
  vmdk: [{ driver: "vmdk", bytes: 2 * MiB }, qcow2(2 * MiB), qcow2(LONG)],
  "stream-optimized vmdk": [
    { driver: "vmdk", bytes: 2 * MiB, options: "subformat=streamOptimized" },
    qcow2(LONG, "cluster_size=1M"),
  ],
  "vdi, under filters": [
    { driver: "vdi", bytes: SHORT },
    qcow2(2 * MiB, "cluster_size=16384", 1),
    qcow2(LONG, "cluster_size=16384", 2),
  ],
  vpc: [{ driver: "vpc", bytes: 2 * MiB, options: "force_size=on" }, qcow2(2 * MiB)],
};

interface Side {
  readonly daemon: Daemon;
  readonly qmp: Qmp;
  readonly folder: string;
  readonly socket: string;
}

let directory: TemporaryDirectory;
let sides: readonly Side[];

async function start(command: readonly string[], name: string): Promise<Side> {
  const folder = directory.file(name);
  const [socket, monitor] = [directory.file(`${name}.nbd`), directory.file(`${name}.qmp`)];
  const pidfile = directory.file(`${name}.pid`);
  const daemon = startProgram([
    ...[...command, "--nbd-server", `addr.type=unix,addr.path=${socket}`],
    ...["--chardev", `socket,id=qmp,path=${monitor},server=on,wait=off`, "--monitor", "qmp"],
    ...["--object", "throttle-group,id=group", "--pidfile", pidfile],
  ]);
  await daemon.ready(pidfile);
  return { daemon, folder, socket, qmp: await Qmp.connect(monitor) };
}

beforeAll(async () => {
  directory = await temporaryDirectory();
  sides = await Promise.all([start(COMMAND, "ours"), start(theirs, "theirs")]);
});

afterAll(async () => {
  for (const { daemon, qmp } of sides) {
    qmp.close();
    await daemon.stop();
  }
  await directory[Symbol.asyncDispose]();
});

/** Random commands of qemu-io, most of them writes. */
function commandsFor({ driver, bytes }: Layer, random: Random): string[] {
  return Array.from({ length: 14 }, () => {
    const unit = random.pick([512, 4096, 65536]);
    const at = Math.floor(random.below(bytes) / unit) * unit;
    const length = Math.min(bytes - at, (1 + random.below(24)) * unit);
    const kind = random.below(driver === "qcow2" ? 8 : 5);
    if (kind === 4) return `write -z ${at} ${length}`;
    if (kind === 5) return `write -z -u ${at} ${length}`;
    if (kind === 6) return `discard ${at} ${length}`;
    return `write -P ${1 + random.below(255)} ${at} ${length}`;
  }).flatMap((command) => ["-c", command]);
}

const imageName = (index: number): string => `layer${index}`;

/** Each layer with content of its own, in files of the folder. */
async function makeChain(layers: readonly Layer[], folder: string, random: Random): Promise<void> {
  for (const [index, layer] of layers.entries()) {
    const path = `${folder}/${imageName(index)}`;
    const { driver, bytes } = layer;
    const options = layer.options?.replace("DATA", `${path}.data`);
    const how = options === undefined ? [] : ["-o", options];
    const isOurs = driver === "qcow2";
    const target = isOurs ? path : `${path}.raw`;
    const format = isOurs ? "qcow2" : "raw";
    const below = layers[index - 1];
    // QSD takes no filter over an image that is named.
    const isNamed = below !== undefined && (below.filters ?? 0) === 0;
    const behind = isNamed ? ["-b", imageName(index - 1), "-F", below.driver] : [];
    const made = isOurs ? [...how, ...behind] : [];
    await run("qemu-img", ["create", "-qf", format, ...made, target, `${bytes}`]);
    await run("qemu-io", ["-f", format, "-d", "unmap", ...commandsFor(layer, random), target]);
    if (isOurs) continue;
    await run("qemu-img", ["convert", "-f", "raw", "-O", driver, ...how, target, path]);
  }
}

/** BlockdevOptions of the chain. */
function optionsOf(layers: readonly Layer[], folder: string): Record<string, unknown> {
  const top = layers.length - 1;
  return layers.reduce<Record<string, unknown>>((backing, layer, index) => {
    const { driver, filters = 0 } = layer;
    const own = index === top ? { discard: "unmap" } : { "read-only": true };
    const filename = `${folder}/${imageName(index)}`;
    const file = (name: string) => ({ driver: "file", filename: name, ...own });
    const hasDataFile = layer.options?.includes("DATA") === true;
    let node: Record<string, unknown> = {
      ...{ driver, file: file(filename), ...own },
      ...(index > 0 ? { backing } : {}),
      ...(hasDataFile ? { "data-file": file(`${filename}.data`) } : {}),
    };
    for (let i = 0; i < filters; i++) {
      node = { driver: "throttle", "throttle-group": "group", file: node, ...own };
    }
    return node;
  }, {});
}

async function open({ qmp, socket, folder }: Side, layers: readonly Layer[]): Promise<NbdClient> {
  await qmp.execute("blockdev-add", { ...optionsOf(layers, folder), "node-name": "top" });
  return exported({ qmp, socket });
}

async function exported({ qmp, socket }: Pick<Side, "qmp" | "socket">): Promise<NbdClient> {
  const options = { "node-name": "top", writable: true, "allocation-depth": true };
  await qmp.execute("block-export-add", { type: "nbd", id: "e", ...options });
  const contexts = ["base:allocation", "qemu:allocation-depth"];
  return NbdClient.open({ path: socket }, { exportName: "top", contexts });
}

async function unexport({ qmp }: Side, client: NbdClient): Promise<void> {
  client.close();
  await qmp.execute("block-export-del", { id: "e", mode: "hard" });
  await qmp.event("BLOCK_EXPORT_DELETED");
}

/** The same random request to both. */
async function request(clients: readonly NbdClient[], random: Random): Promise<void> {
  const { bytes } = clients[0]!.facts;
  const unit = random.pick([1, 512, 4096, 65536]);
  const at = Math.floor(random.below(bytes) / unit) * unit;
  const length = Math.min(bytes - at, (1 + random.below(12)) * Math.max(unit, 100));
  const kind = random.below(5);
  const data = pattern(length, 1 + random.below(1000));
  const flags = random.pick([0, 2]);
  for (const client of clients) {
    if (kind < 2) await client.write(at, data);
    else if (kind < 4) await client.writeZeroes(at, length, flags);
    else await client.trim(at, length);
  }
}

async function expectEqual(clients: readonly NbdClient[]): Promise<void> {
  const [ours, theirs] = await Promise.all(clients.map((client) => extentsOf(client)));
  expect(ours!.depth).toEqual(theirs!.depth);
  expect(ours!.base).toEqual(theirs!.base);
}

describe("block status beside qemu-storage-daemon's", () => {
  for (const [name, layers] of Object.entries(chains)) {
    test(name, async () => {
      const random = new Random(seed);
      const made = await temporaryDirectory();
      await makeChain(layers, made.path, random);
      for (const { folder } of sides) await cp(made.path, folder, { recursive: true });
      await made[Symbol.asyncDispose]();
      let clients = await Promise.all(sides.map((side) => open(side, layers)));
      await expectEqual(clients);
      for (let i = 0; i < 20; i++) await request(clients, random);
      await expectEqual(clients);
      // QSD tells no client of a new length, and aborts when a data file is to be shorter.
      const steps = name === "data files" ? [1, 5] : [-2, 1, 5];
      const size = clients[0]!.facts.bytes + random.pick(steps) * 65536;
      for (const [index, side] of sides.entries()) {
        await unexport(side, clients[index]!);
        await side.qmp.execute("block_resize", { "node-name": "top", size });
      }
      clients = await Promise.all(sides.map((side) => exported(side)));
      for (let i = 0; i < 8; i++) await request(clients, random);
      await expectEqual(clients);
      for (const [index, side] of sides.entries()) {
        await unexport(side, clients[index]!);
        await side.qmp.execute("blockdev-del", { "node-name": "top" });
      }
    });
  }
});
