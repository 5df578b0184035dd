/** A kernel that says anything to a FUSE session: any request, of any shape, at any moment. */
import { describe, expect, test } from "bun:test";
import * as fuse from "../../src/abi/fuse.ts";
import * as file from "../../src/abi/fuse-file.ts";
import { EIO, ENOSPC } from "../../src/runtime/errno.ts";
import { FakeNode } from "../support/fake-node.ts";
import { fallocateArgs, lseekArgs, readArgs, writeArgs } from "../support/fuse-kernel.ts";
import { FuseRig } from "../support/fuse-rig.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { ENGINES, type EngineName } from "../support/reactor.ts";

/** All answers that may come at once fit the socket. */
const DISK_BYTES = 16 * 1024;
const STEPS_MAX = 60;
const UNANSWERED = [fuse.FUSE_FORGET, fuse.FUSE_BATCH_FORGET, fuse.FUSE_NOTIFY_REPLY];
const OPCODES = Object.entries(fuse)
  .filter(([name]) => /^FUSE_[A-Z]+(_[A-Z]+)*$/.test(name) && !/NOTIFY|VERSION|ASYNC/.test(name))
  .map(([, value]) => value)
  .filter((value) => value <= 60);
const cases = fuzzCases(300);

/** Numbers at which lengths and offsets go wrong. */
function oddNumber(random: Random): number {
  const edges = [0, 1, 511, 4096, DISK_BYTES - 1, DISK_BYTES, DISK_BYTES + 1, 2 ** 31, 2 ** 32 - 1];
  const large = [2 ** 40, 2 ** 52, 2 ** 53 - 1, 2 ** 63, 2 ** 64 - 2048];
  return random.pick([random.below(DISK_BYTES), random.pick(edges), random.pick(large)]);
}

class Kernel {
  readonly rig: FuseRig;
  readonly random: Random;
  /** Still to be answered. */
  readonly waiting = new Set<bigint>();
  #isHeld = false;
  #isBroken = false;

  constructor(engine: EngineName, random: Random) {
    this.random = random;
    const isGrowable = random.chance(0.3);
    this.rig = new FuseRig(engine, {
      growable: isGrowable,
      allowOther: random.chance(0.5),
      writable: random.chance(0.8),
      isInitialised: random.chance(0.9),
      node: (reactor) => new FakeNode(reactor, DISK_BYTES),
      resize: async (bytes) => {
        if (bytes > 4 * DISK_BYTES) return -ENOSPC;
        await this.rig.resize(bytes);
        return 0;
      },
    });
  }

  async step(): Promise<void> {
    const { rig, random } = this;
    switch (random.below(12)) {
      case 0:
        rig.node.fails = random.chance(0.5) ? () => 0 : () => random.pick([0, -EIO, -ENOSPC]);
        return;
      case 1:
        this.#isHeld = !this.#isHeld;
        if (this.#isHeld) rig.node.hold();
        else rig.node.go();
        return;
      case 2:
        return rig.turns(random.below(4));
      case 3:
        return this.#pause();
      case 4:
        rig.session.attributesChanged();
        return;
      default:
        this.#send();
    }
  }

  /** All that was asked for is answered, or nothing will be any more. */
  async end(): Promise<void> {
    const { rig } = this;
    rig.node.go();
    for (let i = 0; i < 2000 && !this.#isDone(); i++) await rig.turn();
    expect(rig.ends.length).toBe(this.#isBroken ? 1 : 0);
    if (!this.#isBroken) {
      expect([...this.waiting].filter((unique) => !rig.replies.has(unique))).toEqual([]);
      rig.replies.clear();
      const probe = rig.send(fuse.FUSE_RELEASE, new Uint8Array(24));
      expect((await rig.reply(probe)).unique).toBe(probe);
    }
    expect(rig.isClean).toBe(true);
    await rig.end();
  }

  #isDone(): boolean {
    if (this.#isBroken) return this.rig.ends.length > 0 && this.rig.isClean;
    return [...this.waiting].every((unique) => this.rig.replies.has(unique));
  }

  async #pause(): Promise<void> {
    const { rig } = this;
    rig.node.go();
    this.#isHeld = false;
    let isPaused = false;
    rig.session.pause().then(() => {
      isPaused = true;
    });
    for (let i = 0; i < 1000 && !isPaused; i++) await rig.turn();
    expect(isPaused).toBe(true);
    rig.session.start();
  }

  #send(): void {
    const { rig, random } = this;
    if (this.waiting.size > 100) return;
    const opcode = random.chance(0.9) ? random.pick(OPCODES) : random.u32();
    let args = random.chance(0.5) ? this.#argsOf(opcode) : random.bytes(random.below(200));
    if (random.chance(0.2)) args = args.subarray(0, random.below(args.length + 1));
    if (random.chance(0.2) && args.length > 0) args[random.below(args.length)] = random.below(256);
    if (random.chance(0.005)) {
      // No request at all: that ends everything.
      this.#isBroken = true;
      if (random.chance(0.5)) rig.send(opcode, args, random.u32());
      else rig.sendRaw(random.bytes(1 + random.below(39)));
      return;
    }
    const unique = rig.send(opcode, args);
    const isAnswered = !UNANSWERED.includes(opcode) || rig.session.state.agreed === null;
    if (isAnswered) this.waiting.add(unique);
  }

  #argsOf(opcode: number): Uint8Array {
    const { random } = this;
    const offset = oddNumber(random);
    switch (opcode) {
      case fuse.FUSE_READ:
        return readArgs(offset, random.pick([random.below(100_000), oddNumber(random) >>> 0]));
      case fuse.FUSE_WRITE:
        return writeArgs(offset, random.bytes(random.below(random.pick([100, 5000, 50_000]))));
      case fuse.FUSE_FALLOCATE:
        return fallocateArgs(random.below(80), offset, oddNumber(random));
      case fuse.FUSE_LSEEK:
        return lseekArgs(offset, random.below(6));
      case fuse.FUSE_SETATTR:
        return random.bytes(file.FUSE_SETATTR_IN_SIZE);
      case fuse.FUSE_INIT:
        return random.bytes(fuse.FUSE_INIT_IN_SIZE);
      default:
        return random.bytes(random.below(120));
    }
  }
}

describe("fuzz", () => {
  for (const engine of ENGINES) {
    test(`a FUSE session on ${engine} answers whatever the kernel says`, async () => {
      const seed = randomSeed();
      for (let i = 0; i < cases; i++) {
        const kernel = new Kernel(engine, new Random(seed + i));
        const steps = kernel.random.below(STEPS_MAX);
        for (let step = 0; step < steps; step++) await kernel.step();
        await kernel.end();
      }
    }, 180_000);
  }
});
