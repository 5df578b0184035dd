/** The io_uring engine keeps the promises of an engine, and makes few system calls. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { O_RDONLY, RWF_DSYNC } from "../../../src/abi/linux.ts";
import { createUringEngine } from "../../../src/io/uring.ts";
import { EBADF, EFAULT } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";
import { Rig } from "./engine-rig.ts";
import { addEngineTests } from "./engine-suite.ts";

addEngineTests("createUringEngine()", createUringEngine);

const PAGE = 4096;
const PAGES = 100;

/** Counts system calls by number. */
class CountingLinux extends Linux {
  readonly calls: Map<number, number>;

  constructor() {
    const real = driver.ffi;
    const calls = new Map<number, number>();
    const syscall: typeof real.syscall = (number, ...args) => {
      calls.set(number, (calls.get(number) ?? 0) + 1);
      return real.syscall(number, ...args);
    };
    super({ ...real, syscall }, driver.arch);
    this.calls = calls;
  }
}

describe("createUringEngine(), adjacent ranges", () => {
  let linux: CountingLinux;
  let rig: Rig;
  let fd: number;
  beforeEach(() => {
    linux = new CountingLinux();
    rig = new Rig(createUringEngine, linux);
    fd = rig.file();
    rig.fill(0, PAGES * PAGE);
  });
  afterEach(() => {
    rig.settle();
    const { inFlight } = rig.engine;
    rig.end();
    expect(inFlight).toBe(0);
  });

  const TARGET = PAGES * PAGE;

  /** Starts a transfer for each page, in this order, and returns their results. */
  function transfer(pages: readonly number[], isWrite: boolean, flags = 0, file = fd): number[] {
    const { engine, memory } = rig;
    const slots = pages.map((page) =>
      rig.start((token) => {
        const at = page * PAGE;
        if (isWrite) engine.write(file, memory.address + at, PAGE, at, flags, token);
        else engine.read(file, memory.address + TARGET + at, PAGE, at, token);
      }),
    );
    return slots.map((slot) => rig.finish(slot));
  }

  const upTo = (count: number) => Array.from({ length: count }, (_, page) => page);
  const full = (count: number) => new Array<number>(count).fill(PAGE);

  test("are written together, in few calls, and read together", () => {
    const { sys } = linux;
    expect(transfer([0], true)).toEqual([PAGE]);
    linux.calls.clear();
    expect(transfer(upTo(PAGES), true)).toEqual(full(PAGES));
    expect(linux.calls.get(sys.pwritev2) ?? 0).toBeLessThan(5);
    expect(linux.calls.get(sys.pwrite64) ?? 0).toBe(0);
    expect(transfer(upTo(PAGES), false)).toEqual(full(PAGES));
    expect(rig.mismatch(TARGET, PAGES * PAGE)).toBe(-1);
  });

  test("and others in any order all get their own data", () => {
    const order = [5, 6, 7, 3, 4, 5, 5, 6, 0, 1, 99, 98, 97, 50];
    expect(transfer(upTo(PAGES), true, RWF_DSYNC)).toEqual(full(PAGES));
    for (let round = 0; round < 2; round++) {
      rig.memory.u8.fill(0, TARGET, TARGET + PAGES * PAGE);
      expect(transfer(order, false)).toEqual(full(order.length));
      for (const page of order) {
        expect(rig.mismatch(TARGET + page * PAGE, PAGE, page * PAGE)).toBe(-1);
      }
    }
    expect(transfer(order, true)).toEqual(full(order.length));
    expect(transfer(upTo(PAGES), false)).toEqual(full(PAGES));
    expect(rig.mismatch(TARGET, PAGES * PAGE)).toBe(-1);
  });

  test("are each told where the file ends", () => {
    expect(transfer(upTo(3), true)).toEqual(full(3));
    linux.ftruncate(fd, 2 * PAGE + 100);
    for (let round = 0; round < 2; round++) {
      expect(transfer(upTo(6), false)).toEqual([PAGE, PAGE, 100, 0, 0, 0]);
      expect(transfer([4, 5], false)).toEqual([0, 0]);
    }
  });

  test("are each told of an error", () => {
    transfer([0], true);
    const readOnly = rig.own(linux.open(`/proc/self/fd/${fd}`, O_RDONLY));
    for (const flags of [0, RWF_DSYNC]) {
      expect(transfer(upTo(3), true, flags, readOnly)).toEqual([-EBADF, -EBADF, -EBADF]);
    }
  });

  test("are all told of an error of a synchronous write, which comes but once", () => {
    const { engine, memory } = rig;
    const write = (flags: number) =>
      [0, memory.address].map((address, page) =>
        rig.start((token) => engine.write(fd, address, PAGE, page * PAGE, flags, token)),
      );
    expect(write(0).map((slot) => rig.finish(slot))).toEqual([-EFAULT, PAGE]);
    expect(write(RWF_DSYNC).map((slot) => rig.finish(slot))).toEqual([-EFAULT, -EFAULT]);
  });

  test("of many files in flight at once need not all become runs", () => {
    const { engine, memory } = rig;
    const files = upTo(200).map(() => rig.file());
    for (const write of [true, false]) {
      const slots = files.flatMap((file, index) =>
        [0, 1].map((half) =>
          rig.start((token) => {
            const at = index * 128 + half * 64;
            const offset = half * 64;
            if (write) engine.write(file, memory.address + at, 64, offset, RWF_DSYNC, token);
            else engine.read(file, memory.address + TARGET + at, 64, offset, token);
          }),
        ),
      );
      expect(slots.map((slot) => rig.finish(slot))).toEqual(slots.map(() => 64));
    }
    expect(rig.mismatch(TARGET, files.length * 128)).toBe(-1);
  });
});
