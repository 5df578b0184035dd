/** Engines under injected faults: system calls that fail, are interrupted, or do less. Seeded. */
import { afterEach, describe, expect, test } from "bun:test";
import { RWF_DSYNC } from "../../../src/abi/linux.ts";
import { EAGAIN, EINTR, EIO, ENOSPC } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";
import { Random, randomSeed } from "../../support/random.ts";
import { type MakeEngine, Rig } from "./engine-rig.ts";

const BLOCK_BYTES = 16_384;
const BLOCKS = 32;
const STEPS_PER_BLOCK = 60;
const STREAM_BYTES = 64 * 1024;
/** Where a block's writes come from and its reads go to, side by side. */
const WORK_AT = 8 * 1024 * 1024;
const STREAM_AT = 32 * 1024 * 1024;

/** Calls of this thread fail or fall short; those of offload threads don't. */
class FaultyLinux extends Linux {
  /** Of the errors that a caller must be told of, by errno. */
  readonly injected = new Map<number, number>();

  constructor(random: Random) {
    const real = driver.ffi;
    const { sys } = new Linux(real, driver.arch);
    const tell = (error: number) => {
      this.injected.set(error, (this.injected.get(error) ?? 0) + 1);
      return -error;
    };
    /** Calls the real one with the first struct iovec at `iov` alone, and shortened. */
    const shortened = (iov: number, call: (iovCount: number) => number) => {
      const words = new Uint32Array(real.view(iov, 16));
      const bytes = words[2]!;
      words[2] = 1 + random.below(bytes);
      const result = call(1);
      words[2] = bytes;
      return result;
    };
    const syscall: typeof real.syscall = (number, a = 0, b = 0, c = 0, d = 0, e = 0, f = 0) => {
      const call = (count = c) => real.syscall(number, a, b, count, d, e, f);
      if (random.below(4) !== 0) return call();
      switch (number) {
        case sys.recvfrom:
        case sys.sendto:
          if (random.below(2) === 0) return -random.pick([EINTR, EAGAIN]);
          return real.syscall(number, a, b, 1 + random.below(c), d, e, f);
        case sys.preadv2:
        case sys.pwritev2:
          if (random.below(4) === 0) {
            // What fails for several at once is tried for each.
            if (c > 1) return -EIO;
            return tell(number === sys.preadv2 ? EIO : ENOSPC);
          }
          return random.below(2) === 0 ? -random.pick([EINTR, EAGAIN]) : shortened(b, call);
        case sys.epoll_pwait:
        case sys.epoll_pwait2:
          return -EINTR;
        case sys.io_uring_enter:
          return -random.pick([EINTR, EAGAIN]);
        default:
          return call();
      }
    };
    super({ ...real, syscall }, driver.arch);
  }
}

/** One block of a file, written and read at random, against a copy of what it should hold. */
class BlockWorker {
  readonly errors: number[] = [];
  #rig: Rig;
  #fd: number;
  #index: number;
  #random: Random;
  #model = new Uint8Array(BLOCK_BYTES);
  #steps = 0;

  constructor(rig: Rig, fd: number, index: number, random: Random) {
    this.#rig = rig;
    this.#fd = fd;
    this.#index = index;
    this.#random = random;
    this.#go(true, 0, BLOCK_BYTES);
  }

  /** Writes or reads [at, at + bytes) of the block, then goes on with something else. */
  #go(isWrite: boolean, at: number, bytes: number): void {
    const { engine, memory } = this.#rig;
    const place = WORK_AT + this.#index * BLOCK_BYTES + at;
    const offset = this.#index * BLOCK_BYTES + at;
    if (isWrite) {
      for (let i = 0; i < bytes; i++) {
        this.#model[at + i] = this.#random.below(256);
        memory.u8[place + i] = this.#model[at + i]!;
      }
    } else memory.u8.fill(0, place, place + bytes);
    const flags = isWrite && this.#random.below(8) === 0 ? RWF_DSYNC : 0;
    const submit = (done: number) => {
      const address = memory.address + place + done;
      const slot = this.#rig.start((token) => {
        if (isWrite) engine.write(this.#fd, address, bytes - done, offset + done, flags, token);
        else engine.read(this.#fd, address, bytes - done, offset + done, token);
      });
      waiting.set(slot, (result) => {
        const transient = result === -EINTR || result === -EAGAIN;
        if (result < 0 && !transient) this.errors.push(-result);
        const total = done + Math.max(0, result);
        if (total < bytes) submit(total);
        else this.#next(isWrite, at, bytes);
      });
    };
    submit(0);
  }

  #next(wasWrite: boolean, at: number, bytes: number): void {
    if (!wasWrite) {
      const place = WORK_AT + this.#index * BLOCK_BYTES + at;
      const got = this.#rig.memory.u8.subarray(place, place + bytes);
      expect(Buffer.compare(got, this.#model.subarray(at, at + bytes))).toBe(0);
    }
    if (++this.#steps >= STEPS_PER_BLOCK) return;
    const unit = this.#random.below(2) === 0 ? 4096 : 1;
    const start = this.#random.below(BLOCK_BYTES / unit) * unit;
    const length = unit * (1 + this.#random.below((BLOCK_BYTES - start) / unit));
    this.#go(this.#random.below(2) === 0, start, length);
  }
}

const waiting = new Map<number, (result: number) => void>();

/** Moves a stream from `a` to `b` in pieces. */
function startStream(rig: Rig, [a, b]: readonly [number, number]): void {
  const { engine, memory } = rig;
  const target = STREAM_AT + STREAM_BYTES;
  rig.fill(STREAM_AT, STREAM_BYTES);
  const move = (done: number, submit: (done: number, token: number) => void) => {
    if (done === STREAM_BYTES) return;
    const slot = rig.start((token) => submit(done, token));
    waiting.set(slot, (result) => {
      if (result < 0) expect([EINTR, EAGAIN]).toContain(-result);
      move(done + Math.max(0, result), submit);
    });
  };
  move(0, (done, token) => {
    engine.send(a, memory.address + STREAM_AT + done, STREAM_BYTES - done, 0, token);
  });
  move(0, (done, token) => {
    engine.recv(b, memory.address + target + done, STREAM_BYTES - done, token);
  });
}

export function addFaultTests(makeEngine: MakeEngine): void {
  describe("under injected faults", () => {
    let rig: Rig | undefined;
    afterEach(() => {
      rig?.end();
      waiting.clear();
    });

    test("nothing is lost, doubled or made up", () => {
      const random = new Random(randomSeed());
      const linux = new FaultyLinux(random);
      rig = new Rig(makeEngine, linux);
      const fd = rig.file();
      rig.onCompletion = (slot, result) => {
        const continuation = waiting.get(slot)!;
        waiting.delete(slot);
        continuation(result);
      };
      startStream(rig, rig.sockets());
      const workers: BlockWorker[] = [];
      for (let i = 0; i < BLOCKS; i++) workers.push(new BlockWorker(rig, fd, i, random));
      const untilNs = rig.nowNs() + 30_000_000_000;
      while (waiting.size > 0 && rig.nowNs() < untilNs) rig.engine.wait(1_000_000_000);
      expect(waiting.size).toBe(0);
      expect(rig.mismatch(STREAM_AT + STREAM_BYTES, STREAM_BYTES)).toBe(-1);
      // Each error that was injected was told, once; and no other.
      const told = new Map<number, number>();
      for (const error of workers.flatMap((worker) => worker.errors)) {
        told.set(error, (told.get(error) ?? 0) + 1);
      }
      expect([...told].sort()).toEqual([...linux.injected].sort());
      rig.settle();
      expect(rig.engine.inFlight).toBe(0);
    }, 40_000);
  });
}
