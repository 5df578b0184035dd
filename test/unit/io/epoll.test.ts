/** The epoll engine keeps the promises of an engine, and what is its own. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { O_CREAT, O_DIRECT, O_DSYNC, O_RDWR } from "../../../src/abi/linux.ts";
import { createEpollEngine } from "../../../src/io/epoll.ts";
import { EINVAL } from "../../../src/runtime/errno.ts";
import { Rig } from "./engine-rig.ts";
import { addEngineTests } from "./engine-suite.ts";

const MIB = 1024 * 1024;
const FADV_DONTNEED = 4;

addEngineTests("createEpollEngine()", createEpollEngine);

describe("createEpollEngine(), where it works", () => {
  let rig: Rig;
  beforeEach(() => {
    rig = new Rig(createEpollEngine);
  });
  afterEach(() => rig.end());

  const write = (fd: number, bytes: number, offset: number) =>
    rig.run((token) => rig.engine.write(fd, rig.memory.address, bytes, offset, 0, token));
  const read = (fd: number, at: number, bytes: number) =>
    rig.run((token) => rig.engine.read(fd, rig.memory.address + at, bytes, 0, token));

  test("cached data needs no other thread", () => {
    const fd = rig.file();
    rig.fill(0, MIB);
    for (let round = 0; round < 600; round++) expect(write(fd, 4096, 4096 * round)).toBe(4096);
    for (let round = 0; round < 600; round++) expect(read(fd, MIB, 4096)).toBe(4096);
    expect(rig.poolsMade).toBe(0);
  });

  test("direct and synchronous writes go to other threads", () => {
    for (const flags of [O_DIRECT, O_DSYNC]) {
      const pools = rig.poolsMade;
      const fd = rig.linux.open(rig.path(`file${flags}`), O_RDWR | O_CREAT | flags, 0o600);
      // The file system may not have direct I/O.
      if (fd === -EINVAL) continue;
      rig.own(fd);
      rig.fill(0, MIB);
      expect(write(fd, MIB, 0)).toBe(MIB);
      expect(read(fd, MIB, MIB)).toBe(MIB);
      expect(rig.mismatch(MIB, MIB)).toBe(-1);
      expect(rig.poolsMade).toBe(Math.max(1, pools));
    }
  });

  test("data that is not cached arrives", () => {
    const { linux } = rig;
    const fd = rig.file();
    rig.fill(0, 4 * MIB);
    expect(write(fd, 4 * MIB, 0)).toBe(4 * MIB);
    expect(linux.fsync(fd)).toBe(0);
    expect(linux.ffi.syscall(linux.sys.fadvise64, fd, 0, 0, FADV_DONTNEED)).toBe(0);
    let done = 0;
    while (done < 4 * MIB) {
      const target = rig.memory.address + 4 * MIB + done;
      const count = rig.run((token) => {
        rig.engine.read(fd, target, 4 * MIB - done, done, token);
      });
      expect(count).toBeGreaterThan(0);
      done += count;
    }
    expect(rig.mismatch(4 * MIB, 4 * MIB)).toBe(-1);
  });
});
