import { describe, expect, test } from "bun:test";
import { Zeroing } from "../../../../../src/block/drivers/file/zeroing.ts";
import { REQ_MAY_UNMAP, REQ_NO_FALLBACK } from "../../../../../src/block/node.ts";
import type { IoEngine } from "../../../../../src/io/engine.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import {
  EBUSY,
  EINVAL,
  EIO,
  ENODEV,
  ENOSPC,
  ENOSYS,
  ENOTSUP,
  ENOTTY,
} from "../../../../../src/runtime/errno.ts";

const FD = 5;
const [ALLOCATE, PUNCH, ZERO_RANGE, ZERO_KEEP] = [0, 3, 0x10, 0x11];
const MODES = new Map([
  [ALLOCATE, "allocate"],
  [PUNCH, "punch"],
  [ZERO_RANGE, "zero"],
  [ZERO_KEEP, "zero-keep"],
]);

/** A host that answers as told, with success to what it was not told about, and keeps a log. */
function makeHost(answers: Record<string, number>, fileBytes = 1_000_000) {
  const log: string[] = [];
  let result = 0;
  const engine = {
    fallocate(fd: number, mode: number) {
      expect(fd).toBe(FD);
      const name = MODES.get(mode)!;
      log.push(name);
      result = answers[name] ?? 0;
    },
    call(_number: number, args: readonly number[]) {
      expect(args[0]).toBe(FD);
      log.push("discard-ioctl");
      result = answers["discard-ioctl"] ?? 0;
    },
  };
  const reactor = {
    linux: { lseek: () => fileBytes, sys: { ioctl: 16 } },
    memory: { address: 4096, setU64: () => {} },
    buffers: { free: () => {} },
    allocate: async () => 0,
    op: async (start: (engine: IoEngine, token: number) => void) => {
      start(engine as unknown as IoEngine, 0);
      return result;
    },
  } as unknown as Reactor;
  return { log, reactor };
}

const makeFile = (reactor: Reactor) => new Zeroing(reactor, FD, 0);
const makeDevice = (reactor: Reactor) => new Zeroing(reactor, FD, 512);

describe("Zeroing.writeZeroes() of a file", () => {
  test("zeroes the range in one call", async () => {
    const { log, reactor } = makeHost({});
    expect(await makeFile(reactor).writeZeroes(0, 512, 0)).toBe(0);
    expect(log).toEqual(["zero"]);
  });

  test("punches first where it may unmap", async () => {
    const { log, reactor } = makeHost({});
    expect(await makeFile(reactor).writeZeroes(0, 512, REQ_MAY_UNMAP)).toBe(0);
    expect(log).toEqual(["punch"]);
  });

  test("keeps blocks where punching is refused", async () => {
    for (const refusal of [ENOTSUP, EINVAL, EBUSY, ENODEV]) {
      const { log, reactor } = makeHost({ punch: -refusal });
      expect(await makeFile(reactor).writeZeroes(0, 512, REQ_MAY_UNMAP)).toBe(0);
      expect(log).toEqual(["punch", "zero"]);
    }
  });

  test("punches and allocates where zeroing is refused, and remembers", async () => {
    for (const refusal of [ENOTSUP, ENOSYS, ENODEV, ENOTTY]) {
      const { log, reactor } = makeHost({ zero: -refusal });
      const zeroing = makeFile(reactor);
      expect(await zeroing.writeZeroes(0, 512, 0)).toBe(0);
      expect(await zeroing.writeZeroes(0, 512, 0)).toBe(0);
      expect(log).toEqual(["zero", "punch", "allocate", "punch", "allocate"]);
    }
  });

  test("does not remember that one range was refused", async () => {
    const { log, reactor } = makeHost({ zero: -EINVAL });
    const zeroing = makeFile(reactor);
    await zeroing.writeZeroes(0, 511, 0);
    await zeroing.writeZeroes(0, 511, 0);
    expect(log).toEqual(["zero", "punch", "allocate", "zero", "punch", "allocate"]);
  });

  test("asks for data where the host can do nothing", async () => {
    const { log, reactor } = makeHost({ zero: -ENOTSUP, punch: -ENOTSUP, allocate: -ENOTSUP });
    const zeroing = makeFile(reactor);
    expect(await zeroing.writeZeroes(0, 512, 0)).toBe(-ENOTSUP);
    expect(await zeroing.writeZeroes(0, 512, 0)).toBe(-ENOTSUP);
    expect(log).toEqual(["zero", "punch"]);
  });

  test("extends the file by allocating", async () => {
    const { log, reactor } = makeHost({ zero: -ENOTSUP, punch: -ENOTSUP }, 512);
    expect(await makeFile(reactor).writeZeroes(512, 512, 0)).toBe(0);
    expect(log).toEqual(["zero", "punch", "allocate"]);
  });

  test("hands real errors on", async () => {
    for (const errno of [EIO, ENOSPC]) {
      const host = makeHost({ zero: -errno, punch: -errno });
      expect(await makeFile(host.reactor).writeZeroes(0, 512, 0)).toBe(-errno);
      expect(await makeFile(host.reactor).writeZeroes(0, 512, REQ_MAY_UNMAP)).toBe(-errno);
      expect(host.log).toEqual(["zero", "punch"]);
    }
  });
});

describe("Zeroing.writeZeroes() of a device", () => {
  test("zeroes whole blocks without a file's length", async () => {
    const { log, reactor } = makeHost({});
    const zeroing = makeDevice(reactor);
    expect(await zeroing.writeZeroes(512, 1024, 0)).toBe(0);
    expect(await zeroing.writeZeroes(512, 1000, 0)).toBe(-ENOTSUP);
    expect(await zeroing.writeZeroes(100, 512, 0)).toBe(-ENOTSUP);
    expect(log).toEqual(["zero-keep"]);
  });

  test("promises no speed but by unmapping", async () => {
    const { log, reactor } = makeHost({});
    const zeroing = makeDevice(reactor);
    expect(await zeroing.writeZeroes(0, 512, REQ_NO_FALLBACK)).toBe(-ENOTSUP);
    expect(await zeroing.writeZeroes(0, 512, REQ_NO_FALLBACK | REQ_MAY_UNMAP)).toBe(0);
    expect(log).toEqual(["punch"]);
  });
});

describe("Zeroing.discard()", () => {
  test("punches files, and remembers a refusal", async () => {
    const { log, reactor } = makeHost({ punch: -ENODEV });
    const zeroing = makeFile(reactor);
    expect(await zeroing.discard(0, 512)).toBe(-ENOTSUP);
    expect(await zeroing.discard(0, 512)).toBe(-ENOTSUP);
    expect(log).toEqual(["punch"]);
  });

  test("asks devices by ioctl, and remembers a refusal", async () => {
    const { log, reactor } = makeHost({ "discard-ioctl": -ENOTSUP });
    const zeroing = makeDevice(reactor);
    expect(await zeroing.discard(0, 512)).toBe(-ENOTSUP);
    expect(await zeroing.discard(0, 512)).toBe(-ENOTSUP);
    expect(log).toEqual(["discard-ioctl"]);
  });
});
