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

  test("cached data is read on the own thread", () => {
    const fd = rig.file();
    // Not through the engine: a write that the host slows down would go to another thread.
    expect(rig.linux.pwrite(fd, rig.memory.address, MIB, 0)).toBe(MIB);
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

  test("a read that does not end holds up no other, cached or not", () => {
    const { engine, memory, linux } = rig;
    const fd = rig.file();
    rig.fill(0, 4 * MIB);
    expect(write(fd, 4 * MIB, 0)).toBe(4 * MIB);
    expect(linux.fsync(fd)).toBe(0);
    const pipe = linux.pipe();
    if (typeof pipe === "number") throw new Error("no pipe");
    rig.own(pipe.readFd);
    rig.own(pipe.writeFd);
    // From its own position, as a pipe wants it: a file whose data are long in coming.
    const vector = 40 * MIB;
    memory.setU64(vector, memory.address + 41 * MIB);
    memory.setU64(vector + 8, 4096);
    const slow = rig.start((token) =>
      engine.readv(pipe.readFd, memory.address + vector, 1, -1, token),
    );
    const [a, b] = rig.sockets();
    for (let round = 0; round < 20; round++) {
      expect(linux.ffi.syscall(linux.sys.fadvise64, fd, 0, 0, FADV_DONTNEED)).toBe(0);
      const cold = (round * 7919 * 4096) % (4 * MIB - 65_536);
      const reads = [0, 1, 2].map((each) =>
        rig.start((token) => {
          const target = memory.address + 8 * MIB + each * 65_536;
          engine.read(fd, target, 4096, (cold + each * MIB) % (4 * MIB), token);
        }),
      );
      const got = rig.start((token) => engine.recv(b, memory.address + 50 * MIB, 100, token));
      expect(rig.run((token) => engine.send(a, memory.address, 100, 0, token))).toBe(100);
      expect(rig.finish(got)).toBe(100);
      for (const slot of reads) expect(rig.finish(slot)).toBe(4096);
    }
    expect(rig.poolsMade).toBe(1);
    expect(rig.results.has(slow)).toBe(false);
    expect(linux.write(pipe.writeFd, memory.address, 7)).toBe(7);
    expect(rig.finish(slow)).toBe(7);
  });
});
