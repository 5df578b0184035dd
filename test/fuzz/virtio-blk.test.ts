/**
 * The virtio block device with drivers of all kinds. Good ones check every byte against a model,
 * while queues stop and start and regions come and go; hostile ones write what they like over
 * rings, tables and headers at any time. Nothing may stay behind, and nothing outside the guest's
 * memory may change.
 */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { O_RDWR } from "../../src/abi/linux.ts";
import * as abi from "../../src/abi/virtio-blk.ts";
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_PACKED } from "../../src/abi/virtio-ring.ts";
import { BlockBackend } from "../../src/block/backend.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { GuestMemory } from "../../src/virtio/guest-memory.ts";
import { InflightArea } from "../../src/virtio/inflight.ts";
import { VirtioBlk } from "../../src/virtio/virtio-blk.ts";
import { FakeNode } from "../support/fake-node.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";
import {
  type DriverQueue,
  GuestRam,
  makeDriver,
  PackedDriver,
  type Piece,
  SplitDriver,
} from "../support/virtio-driver.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const DISK_BYTES = 512 * KiB;
const SECTORS = DISK_BYTES / 512;
const QUEUE = 0;

const seed = randomSeed();
const cases = fuzzCases(60);
setDefaultTimeout(60_000 + 200 * cases);
const folder = mkdtempSync(join(tmpdir(), "outport-fuzz-"));
afterAll(() => rmSync(folder, { recursive: true }));
let diskCount = 0;

interface Shape {
  readonly packed: boolean;
  readonly eventIdx: boolean;
  readonly size: number;
  /** On a host file, or on a node that is slow. */
  readonly mapped: boolean;
}

/** One device with its memory, over a disk of zeroes. */
class Rig {
  readonly reactor: Reactor;
  readonly ram: GuestRam;
  readonly memory: GuestMemory;
  readonly node: FakeNode;
  readonly backend: BlockBackend;
  readonly front: DriverQueue;
  readonly shape: Shape;
  device: VirtioBlk;
  area: InflightArea | null = null;
  broken = 0;
  #calls = 0;

  constructor(reactor: Reactor, shape: Shape, ramBytes: number) {
    this.reactor = reactor;
    this.shape = shape;
    this.ram = new GuestRam(reactor.linux, ramBytes);
    this.memory = new GuestMemory(reactor.linux);
    this.node = new FakeNode(reactor, DISK_BYTES);
    if (shape.mapped) {
      // Its own: a test that has run out of time may still be at work on another.
      const path = join(folder, `disk${diskCount++}`);
      writeFileSync(path, new Uint8Array(DISK_BYTES));
      this.node.fd = reactor.linux.open(path, O_RDWR);
      rmSync(path);
    }
    const options = { writable: true, writethrough: false };
    this.backend = new BlockBackend(reactor, this.node, options);
    this.device = this.makeDevice();
    this.front = makeDriver(this.ram, shape.packed, shape);
  }

  makeDevice(): VirtioBlk {
    const device = new VirtioBlk({
      reactor: this.reactor,
      backend: this.backend,
      memory: this.memory,
      queueCount: 1,
      blockBytes: 512,
      writable: true,
      serial: "fuzz",
      onCall: () => this.#calls++,
      onBroken: () => this.broken++,
    });
    let features = device.features;
    if (!this.shape.packed) features &= ~(1n << BigInt(VIRTIO_F_RING_PACKED));
    if (!this.shape.eventIdx) features &= ~(1n << BigInt(VIRTIO_F_EVENT_IDX));
    device.setFeatures(features);
    return device;
  }

  get firstBase(): number {
    return this.shape.packed ? 0x8000_8000 : 0;
  }

  start(base: number): number {
    const { size } = this.shape;
    const { addresses } = this.front;
    const inflight = this.area?.region(QUEUE, size) ?? null;
    return this.device.startQueue(QUEUE, { size, base, addresses, inflight });
  }

  openArea(): void {
    const shape = { queueCount: 1, queueSize: this.shape.size, packed: this.shape.packed };
    const fd = InflightArea.create(this.reactor.linux, shape);
    const area = InflightArea.open(this.reactor.linux, fd, shape, {
      offset: 0,
      bytes: InflightArea.bytes(shape),
    });
    this.reactor.linux.close(fd);
    if (typeof area === "number") throw new Error(`open() said ${area}`);
    this.area = area;
  }

  turns(ns: number): Promise<void> {
    return runOn(this.reactor, () => this.reactor.sleep(ns));
  }

  /** Nothing may be left of it. */
  async end(): Promise<void> {
    const { reactor, memory, backend, node, ram } = this;
    await runOn(reactor, () => this.device.stop());
    memory.clear();
    const left = [reactor.requests.inUse, reactor.buffers.bytesInUse, backend.inFlight];
    expect([...left, memory.mappedCount]).toEqual([0, 0, 0, 0]);
    expect(await runOn(reactor, () => backend.close())).toBe(0);
    if (node.fd >= 0) reactor.linux.close(node.fd);
    this.area?.unmap();
    ram.close();
  }
}

function randomShape(random: Random): Shape {
  const packed = random.chance(0.5);
  const size = packed ? 2 + random.below(60) : 2 ** (1 + random.below(6));
  return { packed, size, eventIdx: random.chance(0.5), mapped: random.chance(0.5) };
}

/** Cuts `piece` anywhere into at most `most` parts. */
function cut(random: Random, piece: Piece, most: number): Piece[] {
  const cuts = Array.from({ length: random.below(most) }, () => 1 + random.below(piece.bytes - 1));
  const ends = [...new Set([...cuts, piece.bytes])].sort((a, b) => a - b);
  return ends.map((end, i) => {
    const start = i === 0 ? 0 : ends[i - 1]!;
    return { at: piece.at + start, bytes: end - start, write: piece.write };
  });
}

interface Pending {
  readonly type: number;
  readonly at: number;
  readonly statusAt: number;
  readonly slot: number;
  readonly usedBytes: number;
  /** What a read must find; what is on the disk after a write or zeroes. */
  readonly expected: Uint8Array;
}

/** A driver that keeps to the rules. Each of its slots has a part of disk and memory. */
class GoodDriver {
  done = 0;
  #rig: Rig;
  #random: Random;
  #model = new Uint8Array(DISK_BYTES);
  #pending = new Map<number, Pending>();
  #freeSlots: number[];
  #slotBytes: number;
  #memoryAt: number[];

  constructor(rig: Rig, random: Random) {
    this.#rig = rig;
    this.#random = random;
    const slots = Math.min(rig.shape.size, 16);
    this.#freeSlots = Array.from({ length: slots }, (_, slot) => slot);
    this.#slotBytes = Math.floor(SECTORS / slots) * 512;
    // Header before, status behind.
    this.#memoryAt = this.#freeSlots.map(() => rig.ram.allocate(32 + this.#slotBytes));
  }

  get idle(): boolean {
    return this.#pending.size === 0;
  }

  add(): void {
    const random = this.#random;
    const slot = this.#freeSlots.at(-1);
    if (slot === undefined) return;
    const { ram, front, shape } = this.#rig;
    const { VIRTIO_BLK_T_IN: IN, VIRTIO_BLK_T_OUT: OUT, VIRTIO_BLK_T_WRITE_ZEROES: ZEROES } = abi;
    // The fake node zeroes what is not in its file.
    const type = random.pick(shape.mapped ? [IN, OUT] : [IN, IN, OUT, OUT, ZEROES]);
    const sectors = 1 + random.below(this.#slotBytes / 512);
    const first = random.below(this.#slotBytes / 512 - sectors + 1);
    const offset = slot * this.#slotBytes + first * 512;
    const bytes = sectors * 512;
    const at = this.#memoryAt[slot]!;
    ram.u8.fill(0xee, at, at + 32 + bytes);
    ram.view.setUint32(at, type, true);
    ram.setU64(at + 8, type === ZEROES ? 0 : offset / 512);
    const after = new Uint8Array(bytes);
    if (type === OUT) after.set(random.bytes(64).subarray(0, bytes));
    if (type === IN) after.set(this.#model.subarray(offset, offset + bytes));
    if (type === OUT) ram.u8.set(after, at + 16);
    if (type === ZEROES) {
      ram.setU64(at + 16, offset / 512);
      ram.view.setUint32(at + 24, sectors, true);
      ram.view.setUint32(at + 28, random.below(2), true);
    }
    const outBytes = type === IN ? 16 : type === OUT ? 16 + bytes : 32;
    const inBytes = type === IN ? bytes + 1 : 1;
    const parts = 1 + random.below(4);
    const pieces = [
      ...cut(random, { at, bytes: outBytes, write: false }, parts),
      ...(inBytes === 1
        ? [{ at: at + outBytes, bytes: 1, write: true }]
        : cut(random, { at: at + outBytes, bytes: inBytes, write: true }, parts)),
    ];
    const id = front.add(pieces, random.chance(0.5) || pieces.length > shape.size);
    if (id < 0) return;
    this.#freeSlots.pop();
    if (type !== IN) this.#model.set(after, offset);
    const statusAt = at + outBytes + inBytes - 1;
    this.#pending.set(id, { type, at, statusAt, slot, usedBytes: inBytes, expected: after });
  }

  collect(): void {
    const { ram, front } = this.#rig;
    for (const { id, bytes } of front.collect()) {
      const pending = this.#pending.get(id);
      if (pending === undefined) throw new Error(`nobody asked for ${id}`);
      this.#pending.delete(id);
      this.#freeSlots.unshift(pending.slot);
      expect([bytes, ram.u8[pending.statusAt]]).toEqual([pending.usedBytes, 0]);
      if (pending.type === abi.VIRTIO_BLK_T_IN) {
        const found = ram.u8.subarray(pending.at + 16, pending.at + 16 + pending.expected.length);
        expect(found.every((value, i) => value === pending.expected[i])).toBe(true);
      }
      this.done++;
    }
  }
}

/** The memory of a rig as regions, cut where `random` says; the same memory each time. */
function regions(rig: Rig, random: Random, bytes: number) {
  const cuts = Array.from({ length: random.below(4) }, () => random.below(bytes / 4096) * 4096);
  const starts = [...new Set([0, ...cuts])].sort((a, b) => a - b);
  return starts.map((start, i) => rig.ram.region(start, (starts[i + 1] ?? bytes) - start));
}

async function goodCase(reactor: Reactor, random: Random): Promise<number> {
  const ramBytes = 4 * MiB;
  const rig = new Rig(reactor, randomShape(random), ramBytes);
  // Rings lie in one region; what is cut lies behind them.
  const ringBytes = MiB;
  const table = () => [
    rig.ram.region(0, ringBytes),
    ...regions(rig, random, ramBytes).flatMap((one) => {
      const start = Math.max(one.fileOffset, ringBytes);
      const end = one.fileOffset + one.bytes;
      return start < end ? [rig.ram.region(start, end - start)] : [];
    }),
  ];
  expect(rig.memory.replace(table())).toBe(0);
  rig.ram.allocate(ringBytes / 2);
  const driver = new GoodDriver(rig, random);
  if (random.chance(0.5)) rig.openArea();
  expect(rig.start(rig.firstBase)).toBe(0);
  for (let step = 0; step < 120; step++) {
    const chance = random.below(100);
    if (chance < 55) driver.add();
    else if (chance < 75) rig.device.processQueue(QUEUE);
    else if (chance < 90) await rig.turns(random.below(200_000));
    else if (chance < 93) rig.front.wantCall(random.chance(0.5));
    else if (chance < 96) expect(rig.memory.replace(table())).toBe(0);
    else {
      const base = await runOn(reactor, () => rig.device.stopQueue(QUEUE));
      expect(rig.start(base)).toBe(0);
    }
    driver.collect();
  }
  for (let waits = 0; !driver.idle && waits < 2000; waits++) {
    rig.device.processQueue(QUEUE);
    await rig.turns(100_000);
    driver.collect();
  }
  expect([driver.idle, rig.broken]).toEqual([true, 0]);
  await rig.end();
  return driver.done;
}

/** Offsets and lengths that matter to the device. */
function targets(front: DriverQueue, size: number): readonly [at: number, bytes: number][] {
  if (front instanceof SplitDriver) {
    return [
      [front.desc, size * 16],
      [front.avail, 6 + size * 2],
      [front.used, 6 + size * 8],
    ];
  }
  if (!(front instanceof PackedDriver)) throw new Error("a third kind of queue");
  return [
    [front.desc, size * 16],
    [front.driverEvent, 4],
    [front.deviceEvent, 4],
  ];
}

async function hostileCase(reactor: Reactor, random: Random): Promise<boolean> {
  const shape = randomShape(random);
  const rig = new Rig(reactor, shape, 3 * MiB);
  const { ram, front } = rig;
  // The last part is the test's own.
  const guestBytes = 2 * MiB;
  ram.u8.fill(0xa5, guestBytes);
  const table = [ram.region(0, MiB), ram.region(MiB, MiB)];
  expect(rig.memory.replace(table)).toBe(0);
  if (random.chance(0.5)) rig.openArea();
  const region = rig.area?.region(QUEUE, shape.size) ?? null;
  expect(rig.start(rig.firstBase)).toBe(0);
  const buffer = ram.allocate(64 * KiB);
  const places = [...targets(front, shape.size), [buffer, 64 * KiB] as [number, number]];
  const addressWords = [0, ram.guestAddress, ram.guestAddress + guestBytes - 8, 0xffff_fff0];
  const scribble = () => {
    const [start, bytes] = random.pick(places);
    const at = start + random.below(bytes);
    const kind = random.below(4);
    if (kind === 0) ram.u8[at] = random.below(256);
    else if (kind === 1) ram.u16[at >>> 1] = random.pick([0, 1, 2, 4, 5, 6, 0x8080, shape.size]);
    else if (kind === 2) ram.u32[at >>> 2] = random.pick(addressWords);
    else ram.u32[at >>> 2] = random.u32();
  };
  for (let step = 0; step < 80; step++) {
    const chance = random.below(100);
    if (chance < 35) {
      const type = random.pick([0, 1, 4, 8, 11, 13, 14, random.u32()]);
      const header = buffer + random.below(64) * 16;
      ram.view.setUint32(header, type, true);
      ram.setU64(header + 8, random.below(SECTORS * 2));
      const out = cut(random, { at: header, bytes: 16 + random.below(3) * 512, write: false }, 3);
      const into = { at: buffer + 8192, bytes: 2 + random.below(5000), write: true };
      front.add([...out, ...cut(random, into, 3)], random.chance(0.5));
    } else if (chance < 65) scribble();
    else if (chance < 85) rig.device.processQueue(QUEUE);
    else if (chance < 95) await rig.turns(random.below(50_000));
    else if (chance < 97 && region !== null) {
      new Uint8Array(region)[random.below(region.byteLength)] = random.below(256);
    } else if (chance < 98) expect(rig.memory.replace(table)).toBe(0);
    else {
      await runOn(reactor, () => rig.device.stopQueue(QUEUE));
      rig.start(random.u32());
    }
  }
  const wasBroken = rig.broken > 0;
  expect(ram.u8.subarray(guestBytes).every((value) => value === 0xa5)).toBe(true);
  await rig.end();
  return wasBroken;
}

for (const engine of ["io_uring", "epoll"] as const) {
  describe(`VirtioBlk on ${engine}`, () => {
    test("serves good drivers, whatever changes under them", async () => {
      const reactor = makeReactor(engine);
      let done = 0;
      for (let i = 0; i < cases; i++) done += await goodCase(reactor, new Random(seed + i));
      expect(done).toBeGreaterThan(cases * 10);
      reactor.engine.close();
      reactor.memory.unmap();
    });

    test("survives hostile drivers", async () => {
      const reactor = makeReactor(engine);
      let broken = 0;
      for (let i = 0; i < cases; i++) {
        if (await hostileCase(reactor, new Random(seed + i))) broken++;
      }
      // Some went so far as to break the queue, some got through.
      expect(broken).toBeGreaterThan(0);
      reactor.engine.close();
      reactor.memory.unmap();
    });
  });
}
