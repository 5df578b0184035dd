/**
 * A real guest on vhost-user-blk: Linux in QEMU makes a file system on the disk, uses it, trims
 * it, has its disk unplugged, resized and reset, and goes on when outport is killed amid writes.
 * Afterwards the image is checked from outside.
 */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { rmSync } from "node:fs";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { attempt, run } from "../support/clients.ts";
import {
  allocatedBytes,
  assertFileIs,
  MiB,
  patternImage,
  sparseImage,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../support/images.ts";
import { type RunningDaemon, sleep, startDaemon } from "../support/process.ts";
import type { Qmp } from "../support/qmp.ts";
import { Random, randomSeed } from "../support/random.ts";
import { type GuestDisk, Machine } from "./guest/machine.ts";

setDefaultTimeout(600_000);

const DISK_BYTES = 256 * MiB;
const LARGER_BYTES = 320 * MiB;
const SECTOR_BYTES = 512;

interface DiskOptions {
  readonly queues?: number;
  /** More properties of the guest's device. */
  readonly properties?: string;
  readonly readOnly?: boolean;
  /** Writes per second, so that some are always under way. */
  readonly writesPerSecond?: number;
}

interface Disk extends GuestDisk {
  readonly name: string;
  readonly image: string;
  /** Makes outport export it. */
  readonly args: readonly string[];
}

async function makeDisk(
  directory: TemporaryDirectory,
  name: string,
  options: DiskOptions = {},
): Promise<Disk> {
  const { queues = 1, properties, readOnly = false, writesPerSecond } = options;
  const image = directory.file(`${name}.raw`);
  const socket = directory.file(`${name}.sock`);
  await sparseImage(image, DISK_BYTES);
  const access = readOnly ? "read-only=on" : "discard=unmap";
  const layer =
    writesPerSecond === undefined ? "driver=raw" : `driver=throttle,throttle-group=${name}-limit`;
  const limit = `throttle-group,id=${name}-limit,x-iops-write=${writesPerSecond}`;
  const writable = readOnly ? "off" : "on";
  const args = [
    ...(writesPerSecond === undefined ? [] : ["--object", limit]),
    ...["--blockdev", `driver=file,node-name=${name}-file,filename=${image},${access}`],
    ...["--blockdev", `${layer},node-name=${name},file=${name}-file,${access}`],
    "--export",
    `type=vhost-user-blk,id=${name},node-name=${name},writable=${writable},` +
      `num-queues=${queues},addr.type=unix,addr.path=${socket}`,
  ];
  return { name, image, socket, queues, args, ...(properties === undefined ? {} : { properties }) };
}

/** The image holds a clean file system; returns the hash of each file in its top directory. */
async function filesOf(image: string, directory: TemporaryDirectory): Promise<Map<string, string>> {
  await run("e2fsck", ["-f", "-n", image]);
  const target = directory.file("dump");
  await mkdir(target);
  await run("debugfs", ["-R", `rdump / ${target}`, image]);
  const hashes = new Map<string, string>();
  for (const entry of await readdir(target, { withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const content = await readFile(join(target, entry.name));
    hashes.set(entry.name, createHash("sha256").update(content).digest("hex"));
  }
  return hashes;
}

/** What sha256sum printed, by file name. */
function hashesIn(text: string): Map<string, string> {
  const lines = text.matchAll(/^([0-9a-f]{64}) {2}(\S+)$/gm);
  return new Map([...lines].map(([, hash, name]) => [name as string, hash as string]));
}

const TOOLS = ["mke2fs", "e2fsck", "resize2fs", "fstrim"] as const;
const MOUNT = "mount -t ext4 /dev/vda /mnt && cd /mnt";
const LEAVE = "cd / && umount /mnt";
const DROP_CACHES = "echo 3 >/proc/sys/vm/drop_caches";
const MEMORY_KIB = "$(awk '/MemTotal/{print $2}' /proc/meminfo)";
const CHECK = "sha256sum -c SUMS";

/** Makes the file system and four files written at the same time, and checks both. */
async function makeFileSystem(machine: Machine): Promise<void> {
  await machine.run(`/tools/mke2fs -q -t ext4 /dev/vda && ${MOUNT}`);
  const write = "dd if=/dev/urandom of=file$n bs=1M count=4 conv=fsync 2>/dev/null";
  await machine.run(`for n in 1 2 3 4; do ${write} & done; wait; cp -a /bin /modules .`);
  await machine.run(`sha256sum file? >SUMS && ${LEAVE} && /tools/e2fsck -f -n /dev/vda`);
  await machine.run(DROP_CACHES);
  await machine.run(`${MOUNT} && ${CHECK}`);
}

/** What the guest trims is no longer allocated in the image. */
async function trim(machine: Machine, image: string): Promise<void> {
  await machine.run("rm file1 file2 && sed -i '/file[12]/d' SUMS && sync");
  const before = await allocatedBytes(image);
  await machine.run("/tools/fstrim /mnt");
  expect(await allocatedBytes(image)).toBeLessThan(before - 7 * MiB);
  await machine.run(`${CHECK} && ${LEAVE} && /tools/e2fsck -f -n /dev/vda`);
}

/** The disk is taken away, idle and in use, and comes back, with another number of queues too. */
async function plug(machine: Machine, queues: number): Promise<void> {
  for (const busy of [false, true]) {
    if (busy) {
      const read = "dd if=/dev/vda of=/dev/null bs=256k iflag=direct";
      machine.begin(`echo BEGUN; while ${read}; do :; done; true`);
      await machine.printed("BEGUN");
      await sleep(100);
    }
    await machine.unplug(0);
    if (busy) expect(await machine.finish()).toMatch(/dd: .*\/dev\/vda/);
    await machine.eventually("[ ! -e /sys/block/vda ]");
    await machine.plug(0, busy ? queues : 1);
    await machine.eventually("[ -e /dev/vda ]");
    await machine.run(`${MOUNT} && ${CHECK} && ${LEAVE}`);
  }
}

/** The disk grows while the guest writes to it. */
async function grow(machine: Machine, qmp: Qmp): Promise<void> {
  await machine.run(MOUNT);
  machine.begin("dd if=/dev/urandom of=file5 bs=64k count=256 conv=fsync");
  await qmp.execute("block_resize", { "node-name": "disk", size: LARGER_BYTES });
  await machine.finish();
  const sectors = LARGER_BYTES / SECTOR_BYTES;
  await machine.eventually(`[ $(cat /sys/block/vda/size) = ${sectors} ]`);
  await machine.run("/tools/resize2fs /dev/vda && sha256sum file5 >>SUMS && sync");
}

/** Memory comes while requests are under way, serves them, and goes again. */
async function changeMemory(machine: Machine): Promise<void> {
  const before = Number(await machine.run(`echo ${MEMORY_KIB}`));
  machine.begin("for n in 1 2 3 4; do dd if=/dev/vda of=/dev/null bs=256k iflag=direct; done");
  const memory = { "qom-type": "memory-backend-memfd", id: "more", size: 128 * MiB, share: true };
  await machine.qmp.execute("object-add", memory);
  await machine.qmp.execute("device_add", { driver: "pc-dimm", id: "dimm", memdev: "more" });
  await machine.finish();
  await machine.eventually(`[ ${MEMORY_KIB} -gt ${before + 100_000} ]`);
  await machine.run(`${DROP_CACHES}; ${CHECK}`);
  await machine.qmp.execute("device_del", { id: "dimm" });
  await machine.qmp.event("DEVICE_DELETED", (data) => data.device === "dimm");
  await machine.run(`${DROP_CACHES}; ${CHECK}`);
}

/** The guest is reset amid writes, and boots again. */
async function reset(machine: Machine): Promise<void> {
  machine.begin("dd if=/dev/urandom of=unfinished bs=64k count=4000 conv=fsync");
  await sleep(300);
  await machine.qmp.execute("system_reset");
  await machine.booted();
  await machine.run(`${MOUNT} && ${CHECK}`);
  expect(await machine.run("cat /sys/block/vda/size")).toBe(`${LARGER_BYTES / SECTOR_BYTES}`);
  await machine.run(`sha256sum file? >SUMS && ${LEAVE}`);
}

const KILLS = 5;
const RECEIPTS = 60;
/** fio checks what it has written by the same options in the guest, and afterwards outside. */
const BLOCK_LOAD = [
  ...["--name=blocks", "--rw=randwrite", "--bsrange=4k-64k", "--size=96m", "--randseed=1"],
  ...["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"],
];

/** The line by which the guest says that file number `index` is stored has this in it. */
function receiptOf(index: number): string {
  return `  file${Math.min(index, RECEIPTS - 1)}\n`;
}

/** Random writes to vdb, many at a time, while files are stored and acknowledged on vda. */
function writeWithReceipts(): string {
  const load = "--filename=/dev/vdb --direct=1 --ioengine=libaio --iodepth=32 --fsync=100";
  const write = "dd if=/dev/urandom of=file$n bs=64k count=$((n % 16 + 1)) conv=fsync 2>/dev/null";
  return [
    `/tools/fio ${load} ${BLOCK_LOAD.join(" ")} >/tmp/fio 2>&1 & fio=$!`,
    `for n in $(seq 0 ${RECEIPTS - 1}); do ${write} && sha256sum file$n; done`,
    "wait $fio || { cat /tmp/fio; false; }",
  ].join("; ");
}

/** outport, ended by a signal and started again with the same options. */
class Restartable implements AsyncDisposable {
  #running: RunningDaemon;
  readonly #directory: TemporaryDirectory;
  readonly #args: readonly string[];

  constructor(directory: TemporaryDirectory, running: RunningDaemon, args: readonly string[]) {
    this.#directory = directory;
    this.#running = running;
    this.#args = args;
  }

  get daemon() {
    return this.#running.daemon;
  }

  get qmp() {
    return this.#running.qmp;
  }

  async restart(signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    this.daemon.expectedExit = signal === "SIGKILL" ? signal : 0;
    this.daemon.signal(signal);
    await this.#running[Symbol.asyncDispose]();
    rmSync(this.#running.pidfile, { force: true }); // A killed one leaves it.
    this.#running = await startDaemon(this.#directory.path, this.#args);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve(this.#running[Symbol.asyncDispose]());
  }
}

/** A disk that must not change cannot be changed, and is read right. */
async function readOnly(machine: Machine, content: Uint8Array): Promise<void> {
  const hash = createHash("sha256").update(content).digest("hex");
  expect(await machine.run("cat /sys/block/vdb/ro && sha256sum </dev/vdb")).toBe(`1\n${hash}  -`);
  await machine.run("! dd if=/dev/zero of=/dev/vdb bs=4k count=1");
}

describe("a Linux guest", () => {
  const CONFIGURATIONS = [
    ["one queue, split", { queues: 1 }],
    ["four queues, packed", { queues: 4, properties: "packed=on" }],
  ] as const;

  for (const [title, options] of CONFIGURATIONS) {
    test(`keeps its files through all that happens to a disk: ${title}`, async () => {
      await using directory = await temporaryDirectory();
      const disk = await makeDisk(directory, "disk", options);
      const fixed = await makeDisk(directory, "fixed", { readOnly: true });
      const content = await patternImage(fixed.image, 4 * MiB);
      await using outport = await startDaemon(directory.path, [...disk.args, ...fixed.args]);
      await using machine = await Machine.boot(directory.path, {
        tools: TOOLS,
        disks: [disk, fixed],
        backEnd: () => outport.qmp,
      });
      await readOnly(machine, content);
      await makeFileSystem(machine);
      await trim(machine, disk.image);
      await plug(machine, disk.queues);
      await grow(machine, outport.qmp);
      await changeMemory(machine);
      await reset(machine);
      const hashes = hashesIn(await machine.run(`${MOUNT} && cat SUMS && ${LEAVE}`));
      machine.powerOff();
      await outport.daemon.stop();
      const found = await filesOf(disk.image, directory);
      expect([...hashes.keys()]).toEqual(["file3", "file4", "file5"]);
      for (const [name, hash] of hashes) expect(found.get(name)).toBe(hash);
      await assertFileIs(fixed.image, content);
    });
  }

  test("goes on, and keeps what was acknowledged, when outport is killed amid writes", async () => {
    await using directory = await temporaryDirectory();
    const limit = { writesPerSecond: 250 };
    const packed = { ...limit, queues: 4, properties: "packed=on" };
    const files = await makeDisk(directory, "files", packed);
    const blocks = await makeDisk(directory, "blocks", limit);
    const args = [...files.args, ...blocks.args];
    await using outport = new Restartable(directory, await startDaemon(directory.path, args), args);
    await using machine = await Machine.boot(directory.path, {
      tools: ["mke2fs", "fio"],
      disks: [files, blocks],
      backEnd: () => outport.qmp,
    });
    await machine.run(`/tools/mke2fs -q -t ext4 -E lazy_itable_init=1 /dev/vda && ${MOUNT}`);
    machine.begin(writeWithReceipts());
    const random = new Random(randomSeed());
    let acknowledged = 0;
    for (let kill = 0; kill < KILLS; kill++) {
      await machine.printed(receiptOf(acknowledged + random.below(4)));
      await sleep(random.below(100));
      acknowledged = hashesIn(machine.output).size;
      expect(machine.busy).toBe(true);
      await outport.restart(kill === KILLS - 1 ? "SIGTERM" : "SIGKILL");
    }
    const hashes = hashesIn(await machine.finish());
    machine.begin("dd if=/dev/urandom of=unfinished bs=64k");
    await sleep(300);
    machine.powerOff();
    await outport.daemon.stop();
    expect(hashes.size).toBe(RECEIPTS);
    await run("fio", [`--filename=${blocks.image}`, "--verify_only", ...BLOCK_LOAD]);
    await attempt("e2fsck", ["-f", "-p", files.image]); // The journal of the guest that is gone.
    const found = await filesOf(files.image, directory);
    for (const [name, hash] of hashes) expect(found.get(name)).toBe(hash);
  });
});
