/**
 * Crash tests of a format driver: a guest works on a simulated disk until the power fails; then the
 * image must be sound and hold every flushed byte. A run is a seed: thousands of them are cheap.
 */
import { BlockBackend } from "../../src/block/backend.ts";
import {
  type BlockNode,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_FUA,
  REQ_MAY_UNMAP,
} from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { EIO } from "../../src/runtime/errno.ts";
import { driver } from "../support/driver.ts";
import { Random } from "../support/random.ts";
import { SECTOR_BYTES, SimDisk } from "./disk.ts";
import { SimDiskNode } from "./disk-node.ts";
import { checkSector, fillSector, GuestModel, ZERO_VERSION } from "./guest-model.ts";
import { releaseSimFds } from "./sim-engine.ts";

/** Of the guest; large clusters take several. */
const REQUEST_SECTORS_MAX = 1024;
/** The driver has failed to go on when nothing happens for so many turns. */
const IDLE_TURNS_MAX = 20_000;

/** What is tested. */
export interface PowerCutSubject {
  /** The image before the first run. */
  readonly image: Uint8Array;
  /** Guest's bytes. */
  readonly bytes: number;
  /** Version of a sector in the beginning: see fillSector(). Missing: zeroes. */
  readonly initial?: (sector: number) => number;
  /** Requests are mostly about this large, and often aligned to it. */
  readonly clusterBytes: number;
  /** Opens the driver over the disk; may repair the image first. */
  open(reactor: Reactor, disk: BlockNode): Promise<BlockNode>;
  /**
   * Of an image after a cut, before anybody repairs it: empty, or what is wrong with it. `clean`:
   * the driver has closed it, and it was never cut.
   */
  check(image: Uint8Array, clean: boolean): string;
  /**
   * Now and then while the guest works, with nothing in flight: what else happens to the image.
   * Returns what is wrong unless the power has failed meanwhile, or nothing.
   */
  interrupt?(node: BlockNode, random: Random, model: GuestModel): Promise<string>;
  /** What the guest's disk holds, by someone else than the driver. */
  read?(image: Uint8Array): Uint8Array;
}

export interface PowerCutOptions {
  /** Requests of the guest until its disk is closed, if no cut comes first. Default: 60. */
  readonly requestsMax?: number;
  /** Requests at a time, at most. Default: 6. */
  readonly depthMax?: number;
  /** Cuts in a row, each going on from what the last one left. Default: 3. */
  readonly cuts?: number;
  /** Of the guest's disk, where all requests go. Default: all of it. */
  readonly regionBytes?: number;
  /** Of the disk. Default: 1. */
  readonly requestAlignment?: number;
  /** Operations of the disk that fail with EIO, of 1. Default: 0. */
  readonly failures?: number;
}

/** Throws with the seed and what is wrong. */
export async function runPowerCuts(
  reactor: Reactor,
  subject: PowerCutSubject,
  seed: number,
  options: PowerCutOptions = {},
): Promise<void> {
  const run = new Run(reactor, subject, new Random(seed), options);
  try {
    await run.all();
  } catch (cause) {
    const text = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`seed ${seed}: ${text}`, { cause });
  }
}

/** Seeds from `first` on. Throws at the first that fails. */
export async function runManyPowerCuts(
  reactor: Reactor,
  subject: PowerCutSubject,
  first: number,
  count: number,
  options: PowerCutOptions = {},
): Promise<void> {
  for (let seed = first; seed < first + count; seed++) {
    await runPowerCuts(reactor, subject, seed, options);
  }
}

class Run {
  #reactor: Reactor;
  #subject: PowerCutSubject;
  #random: Random;
  #options: PowerCutOptions;
  #model: GuestModel;
  #image: Uint8Array;
  #wasCut = false;

  constructor(
    reactor: Reactor,
    subject: PowerCutSubject,
    random: Random,
    options: PowerCutOptions,
  ) {
    this.#reactor = reactor;
    this.#subject = subject;
    this.#random = random;
    this.#options = options;
    this.#image = subject.image;
    const initial = subject.initial ?? (() => ZERO_VERSION);
    this.#model = new GuestModel(Math.floor(subject.bytes / SECTOR_BYTES), initial);
  }

  async all(): Promise<void> {
    for (let cut = 0; cut < (this.#options.cuts ?? 3); cut++) {
      const session = this.#session();
      const { image, isCut } = await session.run(this.#model, this.#options);
      this.#image = image;
      this.#wasCut ||= isCut;
      this.#checkImage(isCut ? "after the cut" : "after closing", isCut ? "durable" : "now");
      await this.#reopen();
    }
  }

  #session(): Session {
    const { requestAlignment = 1 } = this.#options;
    const disk = new SimDisk(this.#random, this.#image);
    const isMapped = this.#random.chance(0.5);
    releaseSimFds(this.#reactor);
    const node = new SimDiskNode(this.#reactor, disk, { requestAlignment, isMapped });
    return new Session(this.#reactor, this.#subject, this.#random, node);
  }

  #checkImage(when: string, allowed: "now" | "durable"): void {
    const faulty = (this.#options.failures ?? 0) > 0;
    const wrong = this.#subject.check(this.#image, !this.#wasCut && !faulty);
    if (wrong !== "") throw new Error(`${when}: ${wrong}`);
    const content = this.#subject.read?.(this.#image);
    if (content === undefined) return;
    for (let i = 0; i < this.#model.sectorCount; i++) {
      const bytes = content.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
      const text = this.#model.check(i, bytes, allowed);
      if (text !== "") throw new Error(`${when}, by the reader: ${text}`);
    }
  }

  /** The driver finds what there may be, and leaves the image sound: it is the next one's. */
  async #reopen(): Promise<void> {
    const session = this.#session();
    const allowed = this.#wasCut ? "durable" : "now";
    this.#image = await session.readAll((sector, bytes) => {
      const text = this.#model.check(sector, bytes, allowed);
      if (text !== "") throw new Error(`opened again: ${text}`);
      this.#model.settle(sector, bytes);
    }, this.#model.sectorCount);
    this.#checkImage("opened again and closed", "now");
  }
}

/** One driver on one disk. */
class Session {
  #reactor: Reactor;
  #subject: PowerCutSubject;
  #random: Random;
  #node: SimDiskNode;
  #disk: SimDisk;
  #stopped = false;
  #problem = "";
  #interrupted: Promise<void> = Promise.resolve();

  constructor(reactor: Reactor, subject: PowerCutSubject, random: Random, node: SimDiskNode) {
    this.#reactor = reactor;
    this.#subject = subject;
    this.#random = random;
    this.#node = node;
    this.#disk = node.disk;
  }

  /** Until the power fails or the guest has done enough. */
  async run(
    model: GuestModel,
    options: PowerCutOptions,
  ): Promise<{ image: Uint8Array; isCut: boolean }> {
    const random = this.#random;
    const disk = this.#disk;
    const { requestsMax = 60 } = options;
    const requests = 1 + random.below(requestsMax);
    const cutAt = random.chance(0.2) ? Infinity : random.below(requests * 4);
    let image: Uint8Array | null = null;
    const work = async (): Promise<void> => {
      try {
        await this.#serve(model, requests, options);
      } catch (error) {
        // A driver may be opening or closing the image when the power fails.
        if (image === null) throw error;
      }
    };
    await this.#drive(work, () => {
      if (image !== null || disk.completedCount < cutAt) return;
      this.#stopped = true;
      image = disk.cut();
    });
    if (this.#problem !== "") throw new Error(this.#problem);
    return { image: image ?? disk.content(), isCut: image !== null };
  }

  async #serve(model: GuestModel, requests: number, options: PowerCutOptions): Promise<void> {
    const random = this.#random;
    const disk = this.#disk;
    const { depthMax = 6, failures = 0 } = options;
    const node = await this.#subject.open(this.#reactor, this.#node);
    const backend = new BlockBackend(this.#reactor, node, { writable: true, writethrough: false });
    if (failures > 0) disk.fails = () => (random.chance(failures) ? -EIO : 0);
    let left = requests;
    const one = async (): Promise<void> => {
      while (left-- > 0 && !this.#stopped) {
        await this.#request(backend, model, options);
        if (this.#subject.interrupt !== undefined && random.chance(0.1)) {
          await this.#interrupt(backend, node, model);
        }
      }
    };
    await Promise.all(Array.from({ length: 1 + random.below(depthMax) }, one));
    disk.fails = () => 0;
    await backend.close();
    await node.close();
  }

  async #interrupt(backend: BlockBackend, node: BlockNode, model: GuestModel): Promise<void> {
    const before = this.#interrupted;
    const all = before.then(async () => {
      await backend.drain();
      if (!this.#stopped) {
        const wrong = await this.#subject.interrupt!(node, this.#random, model);
        if (!this.#stopped) this.#problem ||= wrong;
      }
      backend.resume();
    });
    this.#interrupted = all;
    await all;
  }

  /** Every sector through the driver, which then closes the image. Returns that. */
  async readAll(
    onSector: (sector: number, bytes: Uint8Array) => void,
    sectorCount: number,
  ): Promise<Uint8Array> {
    const reactor = this.#reactor;
    await this.#drive(
      async () => {
        const node = await this.#subject.open(reactor, this.#node);
        const backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
        const partSectors = 128;
        for (let first = 0; first < sectorCount; first += partSectors) {
          const count = Math.min(partSectors, sectorCount - first);
          const result = await this.#withBuffer(count, (address, u8) => {
            const offset = first * SECTOR_BYTES;
            const bytes = count * SECTOR_BYTES;
            return backend.request(OP_READ, offset, bytes, address, 0).then((error) => {
              if (error !== 0) return error;
              for (let i = 0; i < count; i++) onSector(first + i, sectorOf(u8, i));
              return 0;
            });
          });
          if (result !== 0) throw new Error(`opened again: reading said ${result}`);
        }
        await backend.close();
        await node.close();
      },
      () => {},
    );
    return this.#disk.content();
  }

  /** Turns the reactor and the disk until `work` has ended. */
  async #drive(work: () => Promise<void>, onStep: () => void): Promise<void> {
    let ended = false;
    const end = (): void => {
      ended = true;
    };
    const promise = work();
    promise.then(end, end);
    for (let idle = 0; ; idle++) {
      await driver.runMicrotasks();
      if (ended) return promise;
      if (this.#disk.inFlight > 0 && this.#random.chance(0.8)) {
        this.#disk.step();
        idle = 0;
      }
      onStep();
      if (idle > IDLE_TURNS_MAX) throw new Error("nothing happens any more");
      this.#reactor.turn(idle > 100 ? 100_000 : 0);
    }
  }

  async #request(
    backend: BlockBackend,
    model: GuestModel,
    options: PowerCutOptions,
  ): Promise<void> {
    const random = this.#random;
    const [first, count] = this.#range(model.sectorCount, options);
    const dice = random.below(100);
    if (dice < 12) {
      const point = model.flushBegins();
      if ((await backend.request(OP_FLUSH, 0, 0, 0, 0)) === 0) model.flushEnds(point);
    } else if (dice < 24) {
      await this.#read(backend, model, first, count);
    } else if (model.isBusy(first, count)) {
      await this.#reactor.op((engine, token) => engine.post(token, 0));
    } else if (dice < 34) {
      await this.#change(backend, model, OP_WRITE_ZEROES, first, count);
    } else if (dice < 44) {
      await this.#change(backend, model, OP_DISCARD, first, count);
    } else {
      await this.#change(backend, model, OP_WRITE, first, count);
    }
  }

  /** Sectors of one request. */
  #range(sectorCount: number, { regionBytes = Infinity }: PowerCutOptions): [number, number] {
    const random = this.#random;
    const clusterSectors = Math.max(1, this.#subject.clusterBytes / SECTOR_BYTES);
    const limit = Math.min(sectorCount, regionBytes / SECTOR_BYTES);
    let count = 1 + random.below(clusterSectors * random.pick([1, 1, 2, 5]));
    let first = random.below(limit);
    if (random.chance(0.4)) {
      first -= first % clusterSectors;
      count = clusterSectors * (1 + random.below(3));
    }
    return [first, Math.min(count, limit - first, REQUEST_SECTORS_MAX)];
  }

  async #change(
    backend: BlockBackend,
    model: GuestModel,
    op: Op,
    first: number,
    count: number,
  ): Promise<void> {
    const random = this.#random;
    const version = op === OP_WRITE ? model.newVersion() : ZERO_VERSION;
    const fua = op === OP_WRITE && random.chance(0.1) ? REQ_FUA : 0;
    const flags = op === OP_WRITE_ZEROES && random.chance(0.5) ? REQ_MAY_UNMAP : fua;
    const [offset, bytes] = [first * SECTOR_BYTES, count * SECTOR_BYTES];
    model.changeBegins(first, count, version);
    const result = await this.#withBuffer(count, (address, u8) => {
      for (let i = 0; i < count; i++) fillSector(sectorOf(u8, i), first + i, version);
      return backend.request(op, offset, bytes, address, flags);
    });
    model.changeEnds(first, count, version, result === 0 && op !== OP_DISCARD);
    if (fua !== 0 && result === 0) model.madeDurable(first, count);
  }

  async #read(
    backend: BlockBackend,
    model: GuestModel,
    first: number,
    count: number,
  ): Promise<void> {
    await this.#withBuffer(count, async (address, u8) => {
      const [offset, bytes] = [first * SECTOR_BYTES, count * SECTOR_BYTES];
      const allowed = model.readBegins(first, count);
      const result = await backend.request(OP_READ, offset, bytes, address, 0);
      for (let i = 0; i < count && result === 0; i++) {
        const text = checkSector(first + i, sectorOf(u8, i), allowed(i));
        if (text !== "") this.#problem ||= `a guest's read: ${text}`;
      }
      return result;
    });
  }

  async #withBuffer(
    sectors: number,
    use: (address: number, u8: Uint8Array) => Promise<number>,
  ): Promise<number> {
    const { memory, buffers } = this.#reactor;
    const at = await this.#reactor.allocate(sectors * SECTOR_BYTES);
    const u8 = memory.u8.subarray(at, at + sectors * SECTOR_BYTES);
    try {
      return await use(memory.address + at, u8);
    } finally {
      buffers.free(at);
    }
  }
}

function sectorOf(u8: Uint8Array, index: number): Uint8Array {
  return u8.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES);
}
