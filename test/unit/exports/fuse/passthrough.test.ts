import { afterAll, afterEach, beforeEach, describe, expect, test } from "bun:test";
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FOPEN_DIRECT_IO, FOPEN_PARALLEL_DIRECT_WRITES } from "../../../../src/abi/fuse.ts";
import {
  FOPEN_PASSTHROUGH,
  FUSE_BACKING_MAP_FD,
  FUSE_DEV_IOC_BACKING_CLOSE,
  FUSE_DEV_IOC_BACKING_OPEN,
  FUSE_PASSTHROUGH_2,
} from "../../../../src/abi/fuse-passthrough.ts";
import {
  ARM64_O_DIRECT,
  O_ACCMODE,
  O_APPEND,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  O_DIRECT as X64_O_DIRECT,
} from "../../../../src/abi/linux.ts";
import { watchWrites } from "../../../../src/block/direct-access.ts";
import { file } from "../../../../src/block/drivers/file/index.ts";
import type { BlockNode } from "../../../../src/block/node.ts";
import { Passthrough, type PassthroughParts } from "../../../../src/exports/fuse/passthrough.ts";
import { EACCES, ENOSPC, EPERM } from "../../../../src/runtime/errno.ts";
import { Linux } from "../../../../src/runtime/linux.ts";
import { openContext } from "../../../support/block.ts";
import { driver } from "../../../support/driver.ts";
import { ENGINES, makeReactor, runOn } from "../../../support/reactor.ts";

const folder = mkdtempSync(join(tmpdir(), "outport-passthrough-"));
const path = join(folder, "disk");
const BYTES = 65_536;
const FUSE_FD = 9999;
const PLAIN = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
const DIRECT = FOPEN_PASSTHROUGH;
/** Past us for mappings only. */
const BOTH = DIRECT | PLAIN;
const SOMEBODY = 1000;
const O_DIRECT = driver.arch === "x64" ? X64_O_DIRECT : ARM64_O_DIRECT;

/** A kernel that knows backing files. */
class FakeLinux extends Linux {
  nextId = 5;
  readonly backings = new Set<number>();
  /** Of the files given to it. */
  readonly modes: number[] = [];

  override ioctl(fd: number, request: number, argument: number): number {
    if (fd !== FUSE_FD) return super.ioctl(fd, request, argument);
    const view = new DataView(this.ffi.view(argument, 16));
    if (request === FUSE_DEV_IOC_BACKING_OPEN) {
      if (this.nextId < 0) return this.nextId;
      const fileFd = view.getInt32(FUSE_BACKING_MAP_FD, true);
      this.modes.push(this.fcntl(fileFd, 3) & O_ACCMODE);
      this.backings.add(this.nextId);
      return this.nextId++;
    }
    expect(request).toBe(FUSE_DEV_IOC_BACKING_CLOSE);
    expect(this.backings.delete(view.getUint32(0, true))).toBe(true);
    return 0;
  }
}

const reactor = makeReactor(ENGINES[0]!);
let linux: FakeLinux;
let node: BlockNode;
let logged: string[];

beforeEach(async () => {
  linux = new FakeLinux(driver.ffi, driver.arch);
  logged = [];
  writeFileSync(path, new Uint8Array(BYTES));
  const context = openContext(reactor, { options: { filename: path } });
  node = await runOn(reactor, () => file.open(context));
});
afterEach(() => runOn(reactor, () => node.close()));
afterAll(() => {
  rmSync(folder, { recursive: true });
  reactor.engine.close();
  reactor.memory.unmap();
});

function make(some: Partial<PassthroughParts> = {}): Passthrough {
  const passthrough = new Passthrough({
    linux,
    fd: FUSE_FD,
    exportId: "e0",
    node,
    writable: true,
    writethrough: false,
    growable: false,
    log: (_level, message) => void logged.push(message),
    ...some,
  });
  passthrough.agree(FUSE_PASSTHROUGH_2);
  return passthrough;
}

function open(passthrough: Passthrough, flags: number, uid = 0) {
  const answer = passthrough.open({ flags, uid });
  if (typeof answer === "number") throw new Error(`open() said ${answer}`);
  return answer;
}

/** What the first who opens it so gets. */
function firstFlags(flags: number, some: Partial<PassthroughParts> = {}, uid = 0): number {
  const passthrough = make(some);
  const { openFlags } = open(passthrough, flags, uid);
  passthrough.close();
  return openFlags;
}

describe("Passthrough.open()", () => {
  test("is direct for who reads, and for who reads and writes", () => {
    expect(firstFlags(O_RDONLY)).toBe(DIRECT);
    expect(firstFlags(O_RDONLY, { growable: true })).toBe(DIRECT);
    expect(firstFlags(O_RDONLY, { writable: false }, SOMEBODY)).toBe(DIRECT);
    expect(firstFlags(O_RDWR)).toBe(DIRECT);
    expect(linux.modes).toEqual([O_RDWR, O_RDWR, O_RDONLY, O_RDWR]);
  });

  test("is not for who may go beyond the end, or must not", () => {
    for (const flags of [O_WRONLY, O_RDWR | O_APPEND, O_RDWR | O_TRUNC, O_RDONLY | O_TRUNC]) {
      expect(firstFlags(flags)).toBe(PLAIN);
    }
    expect(firstFlags(O_RDWR, {}, SOMEBODY)).toBe(PLAIN);
    expect(firstFlags(O_RDWR, { growable: true })).toBe(PLAIN);
    expect(firstFlags(O_RDWR, { writable: false })).toBe(PLAIN);
    expect(firstFlags(O_RDONLY, { writethrough: true })).toBe(PLAIN);
    expect(linux.modes).toEqual([]);
  });

  test("is not before the kernel has agreed", () => {
    const passthrough = make();
    passthrough.agree(0);
    expect(open(passthrough, O_RDWR).openFlags).toBe(PLAIN);
  });

  test("gives all who have the file open at one time the same backing file", () => {
    const passthrough = make();
    const handles = [O_RDONLY, O_RDWR, O_WRONLY, O_RDWR | O_APPEND].map((flags) =>
      open(passthrough, flags),
    );
    expect(handles.map(({ openFlags }) => openFlags)).toEqual([DIRECT, DIRECT, BOTH, BOTH]);
    expect(handles.map(({ backingId }) => backingId)).toEqual([5, 5, 5, 5]);
    expect(new Set(handles.map(({ handle }) => handle)).size).toBe(4);
    for (const { handle } of handles) {
      expect(linux.backings.size).toBe(1);
      passthrough.release(handle);
    }
    expect(linux.backings.size).toBe(0);
    expect(open(passthrough, O_RDWR).backingId).toBe(6);
    passthrough.close();
    expect(linux.backings.size).toBe(0);
  });

  test("gives nobody one while somebody has the file open without", () => {
    const passthrough = make();
    const first = open(passthrough, O_WRONLY);
    const second = open(passthrough, O_RDWR);
    expect([first, second].map(({ openFlags, backingId }) => [openFlags, backingId])).toEqual([
      [PLAIN, 0],
      [PLAIN, 0],
    ]);
    passthrough.release(first.handle);
    expect(open(passthrough, O_RDONLY).openFlags).toBe(PLAIN);
  });

  test("is for O_DIRECT only where single sectors can be read and written", () => {
    const fstat0 = reactor.linux.fstat.bind(reactor.linux);
    const flags = (alignment: number) => {
      reactor.linux.fstat = (fd) => {
        const status = fstat0(fd);
        if (typeof status === "number") return status;
        return { ...status, directMemoryAlignment: 4, directOffsetAlignment: alignment };
      };
      const first = firstFlags(O_RDWR | O_DIRECT);
      const passthrough = make();
      open(passthrough, O_RDWR);
      const second = open(passthrough, O_RDWR | O_DIRECT).openFlags;
      passthrough.close();
      return [first, second];
    };
    expect(flags(512)).toEqual([DIRECT, DIRECT]);
    expect(flags(4096)).toEqual([PLAIN, BOTH]);
    reactor.linux.fstat = fstat0;
  });

  test("lets nobody map a read-only export for writing", () => {
    const passthrough = make({ writable: false });
    open(passthrough, O_RDONLY);
    expect(passthrough.open({ flags: O_RDWR, uid: 0 })).toBe(-EACCES);
    expect(open(passthrough, O_RDONLY).openFlags).toBe(DIRECT);
    passthrough.close();
  });

  test("goes without when the kernel refuses, and says so once", () => {
    linux.nextId = -EPERM;
    const passthrough = make();
    for (let i = 0; i < 3; i++) {
      const { handle, openFlags } = open(passthrough, O_RDWR);
      expect(openFlags).toBe(PLAIN);
      passthrough.release(handle);
    }
    expect(logged).toEqual(["No FUSE passthrough: Operation not permitted"]);
    // Nothing keeps others from the node.
    watchWrites(node)();
  });

  test("goes without as long as somebody must see what is written", () => {
    const passthrough = make();
    const end = watchWrites(node);
    const { handle, openFlags } = open(passthrough, O_RDWR);
    expect(openFlags).toBe(PLAIN);
    end();
    passthrough.release(handle);
    expect(open(passthrough, O_RDWR).openFlags).toBe(DIRECT);
    expect(() => watchWrites(node)).toThrow("is in use by programs");
    passthrough.close();
    watchWrites(node)();
    expect(logged).toEqual([]);
  });
});

describe("Passthrough.handOver()", () => {
  const handOver = (passthrough: Passthrough) => structuredClone(passthrough.handOver());

  test("takes along who has the file open", () => {
    const first = make();
    const reader = open(first, O_RDONLY);
    const writer = open(first, O_RDWR);
    appendFileSync(path, "x");
    expect(first.takeError(writer.handle)).toBe(-ENOSPC);
    const state = handOver(first);
    watchWrites(node)();
    const second = make({ state });
    expect(() => watchWrites(node)).toThrow("is in use by programs");
    expect(second.takeError(writer.handle)).toBe(0);
    const third = open(second, O_RDWR);
    expect([third.backingId, third.openFlags]).toEqual([reader.backingId, DIRECT]);
    for (const { handle } of [reader, writer, third]) {
      expect(linux.backings.size).toBe(1);
      second.release(handle);
    }
    expect(linux.backings.size).toBe(0);
    watchWrites(node)();
  });

  test("takes along who has it open without", () => {
    const first = make();
    const { handle } = open(first, O_WRONLY);
    const second = make({ state: handOver(first) });
    expect(open(second, O_RDWR).openFlags).toBe(PLAIN);
    second.release(handle);
    expect(open(second, O_RDWR).openFlags).toBe(PLAIN);
  });

  test("goes on as it was when nobody has it open, and knows that it may be mapped", () => {
    const first = make();
    first.release(open(first, O_RDWR).handle);
    const mapped = linux.open(path, O_RDWR);
    const second = make({ state: handOver(first) });
    expect(() => watchWrites(node)).toThrow("is in use by programs");
    linux.close(mapped);
    watchWrites(node)();
    expect(open(second, O_RDWR).openFlags).toBe(DIRECT);
    second.close();
  });
});

describe("Passthrough.takeError()", () => {
  test("tells each who could have written beyond the end, once", () => {
    const passthrough = make();
    const [writer, reader, other] = [O_RDWR, O_RDONLY, O_RDWR].map(
      (flags) => open(passthrough, flags).handle,
    );
    const errors = () => [writer, reader, other].map((one) => passthrough.takeError(one!));
    expect(errors()).toEqual([0, 0, 0]);
    appendFileSync(path, "x");
    expect(errors()).toEqual([-ENOSPC, 0, -ENOSPC]);
    expect(errors()).toEqual([0, 0, 0]);
    expect(logged.length).toBe(1);
    passthrough.close();
  });

  test("knows nothing of handles that are not, or are no more", () => {
    const passthrough = make();
    const { handle } = open(passthrough, O_RDWR);
    appendFileSync(path, "x");
    passthrough.release(handle);
    passthrough.release(handle);
    expect([0, handle, 12_345].map((one) => passthrough.takeError(one))).toEqual([0, 0, 0]);
    expect(linux.backings.size).toBe(0);
  });
});
