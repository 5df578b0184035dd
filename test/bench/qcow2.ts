/**
 * qcow2 beside the original: what outport and QSD do over NBD in turn, several rounds, with images
 * in the page cache. Quote the ratios: the machine is never the same twice.
 *
 * OUTPORT_COMMAND names the program, as for the tests; QSD_COMMAND the other one, by default what
 * is found on PATH; BENCH_ROUNDS how many rounds.
 */

import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { run } from "../support/clients.ts";
import { MiB, patternImage, temporaryDirectory } from "../support/images.ts";
import { COMMAND, type Daemon, startProgram } from "../support/process.ts";

const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5);
const QSD = (process.env.QSD_COMMAND ?? "qemu-storage-daemon").split(" ");
const IMAGE_BYTES = 512 * MiB;
/** Of images that are written to from their start on: each round has a part of its own. */
const FRESH_BYTES = 256 * MiB;
const READ_SECONDS = 2;
const TICKS_PER_SECOND = 100;

type Kind = "raw" | "qcow2" | "overlay" | "fresh";

interface Subject {
  readonly name: string;
  readonly command: readonly string[];
  readonly kind: Kind;
  readonly aio?: string;
}

interface Workload {
  readonly name: string;
  readonly load: readonly string[];
  readonly kind: Kind;
  /** outport on raw takes part, too. */
  readonly besideRaw?: boolean;
}

const RANDOM = ["--bs=4k", "--iodepth=64"];
const WORKLOADS: readonly Workload[] = [
  { name: "4k random read", load: ["--rw=randread", ...RANDOM], kind: "qcow2", besideRaw: true },
  { name: "4k random read, overlay", load: ["--rw=randread", ...RANDOM], kind: "overlay" },
  { name: "4k random write, allocated", load: ["--rw=randwrite", ...RANDOM], kind: "qcow2" },
  { name: "64k write, new", load: ["--rw=write", "--bs=64k", "--iodepth=16"], kind: "fresh" },
  { name: "1m write, new", load: ["--rw=write", "--bs=1m", "--iodepth=8"], kind: "fresh" },
];

/** One round of one subject. */
interface Sample {
  /** Requests a second. */
  readonly rate: number;
  /** Of the server, in user and in system mode. */
  readonly userUs: number;
  readonly systemUs: number;
  readonly residentMiB: number;
}

class Server {
  readonly samples: Sample[] = [];
  readonly name: string;
  readonly #daemon: Daemon;
  readonly #socket: string;
  /** Read before each round. */
  readonly #image: string | null;

  constructor(name: string, daemon: Daemon, socket: string, image: string | null) {
    this.name = name;
    this.#daemon = daemon;
    this.#socket = socket;
    this.#image = image;
  }

  static async start(subject: Subject, directory: string): Promise<Server> {
    const base = `${directory}/${subject.name}`;
    const image = await makeImage(subject.kind, directory, base);
    const aio = subject.aio === undefined ? "" : `,aio=${subject.aio}`;
    const words = [
      ...subject.command,
      ...["--blockdev", `driver=file,node-name=file,filename=${image.top}${aio}`],
      ...["--blockdev", `driver=${image.format},node-name=disk,file=file`],
      ...["--nbd-server", `addr.type=unix,addr.path=${base}.sock`],
      ...["--export", "type=nbd,id=e0,node-name=disk,writable=on"],
      ...["--pidfile", `${base}.pid`],
    ];
    const daemon = startProgram(words);
    await daemon.ready(`${base}.pid`);
    return new Server(subject.name, daemon, `${base}.sock`, image.data);
  }

  async measure({ kind, load }: Workload, round: number): Promise<Sample> {
    if (this.#image !== null) warm(this.#image);
    const bytes = kind === "fresh" ? FRESH_BYTES : IMAGE_BYTES;
    const offset = kind === "fresh" ? round * FRESH_BYTES : 0;
    const length = kind === "fresh" ? [] : ["--time_based", `--runtime=${READ_SECONDS}`];
    const before = this.#cpuTicks();
    const printed = await run("fio", [
      ...["--name=bench", "--ioengine=nbd", "--thread", "--output-format=json", "--randrepeat=0"],
      ...[`--uri=nbd+unix:///disk?socket=${this.#socket}`, `--size=${bytes}`],
      ...[`--offset=${offset}`, ...load, ...length],
    ]);
    const after = this.#cpuTicks();
    const { jobs } = JSON.parse(printed.slice(printed.indexOf("{"))) as FioResult;
    const { total_ios: count, iops: rate } = kind === "fresh" ? jobs[0].write : doneOf(jobs[0]);
    const usOf = (ticks: number) => (ticks * 1e6) / TICKS_PER_SECOND / count;
    return {
      rate,
      userUs: usOf(after.user - before.user),
      systemUs: usOf(after.system - before.system),
      residentMiB: this.#daemon.residentKiB() / 1024,
    };
  }

  async stop(): Promise<void> {
    await this.#daemon.stop();
  }

  /** All of its threads. */
  #cpuTicks(): { user: number; system: number } {
    const stat = readFileSync(`/proc/${this.#daemon.pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return { user: Number(fields[11]), system: Number(fields[12]) };
  }
}

interface FioDone {
  readonly total_ios: number;
  readonly iops: number;
}

interface FioJob {
  readonly read: FioDone;
  readonly write: FioDone;
}

interface FioResult {
  readonly jobs: readonly [FioJob];
}

function doneOf({ read, write }: FioJob): FioDone {
  return read.total_ios > 0 ? read : write;
}

interface BenchImage {
  readonly top: string;
  readonly format: "raw" | "qcow2";
  /** Where the data lies that is read; null: there is none. */
  readonly data: string | null;
}

async function makeImage(kind: Kind, directory: string, base: string): Promise<BenchImage> {
  const qcow2 = `${base}.qcow2`;
  const raw = `${directory}/disk.raw`;
  if (kind === "raw") return { top: raw, format: "raw", data: raw };
  if (kind === "fresh") {
    const bytes = FRESH_BYTES * (ROUNDS + 1);
    await run("qemu-img", ["create", "-q", "-f", "qcow2", qcow2, String(bytes)]);
    return { top: qcow2, format: "qcow2", data: null };
  }
  await run("qemu-img", ["convert", "-U", "-f", "raw", "-O", "qcow2", raw, qcow2]);
  if (kind === "qcow2") return { top: qcow2, format: "qcow2", data: qcow2 };
  const top = `${base}-top.qcow2`;
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", qcow2, "-F", "qcow2", top]);
  return { top, format: "qcow2", data: qcow2 };
}

function warm(path: string): void {
  const fd = openSync(path, "r");
  const buffer = new Uint8Array(MiB);
  while (readSync(fd, buffer) > 0);
  closeSync(fd);
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? Number.NaN;
}

function show(workload: Workload, servers: readonly Server[]): void {
  const [ours] = servers;
  for (const { name, samples } of servers) {
    const middle = (of: (sample: Sample) => number) => median(samples.map(of));
    const user = middle(({ userUs }) => userUs);
    const system = middle(({ systemUs }) => systemUs);
    // Within a round, so that all meet the same machine.
    const against = (of: (sample: Sample) => number) =>
      median(samples.map((sample, round) => of(ours!.samples[round]!) / of(sample))).toFixed(2);
    const cells = [
      workload.name.padEnd(28),
      name.padEnd(14),
      `${middle(({ rate }) => rate).toFixed(0)}/s`.padStart(9),
      `${user.toFixed(1)} + ${system.toFixed(1)} us`.padStart(17),
      `${middle(({ residentMiB }) => residentMiB).toFixed(0)} MiB`.padStart(8),
      against(({ rate }) => rate).padStart(8),
      against(({ userUs, systemUs }) => userUs + systemUs).padStart(8),
    ];
    console.log(cells.join(" "));
  }
}

async function compare(workload: Workload): Promise<void> {
  await using directory = await temporaryDirectory();
  await patternImage(directory.file("disk.raw"), IMAGE_BYTES);
  const { kind } = workload;
  const subjects: Subject[] = [
    { name: "outport", command: COMMAND, kind },
    { name: "qsd", command: QSD, kind },
    { name: "qsd-uring", command: QSD, kind, aio: "io_uring" },
  ];
  if (workload.besideRaw) subjects.push({ name: "outport-raw", command: COMMAND, kind: "raw" });
  const servers: Server[] = [];
  try {
    for (const subject of subjects) servers.push(await Server.start(subject, directory.path));
    // The first round is for who compiles while it runs.
    for (let round = 0; round <= ROUNDS; round++) {
      for (let turn = 0; turn < servers.length; turn++) {
        const server = servers[(round + turn) % servers.length]!;
        const sample = await server.measure(workload, round);
        if (round > 0) server.samples.push(sample);
      }
    }
  } finally {
    for (const server of servers) await server.stop();
  }
  show(workload, servers);
}

/** Prints throughput, CPU per request, memory, and outport's rate and CPU divided by each one's. */
export async function compareQcow2(names: readonly string[] = []): Promise<void> {
  console.log(`${"".padEnd(58)} user + system resident     rate      CPU`);
  for (const workload of WORKLOADS) {
    if (names.length === 0 || names.includes(workload.name)) await compare(workload);
  }
}

if (import.meta.main) await compareQcow2(process.argv.slice(2));
