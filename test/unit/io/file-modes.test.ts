/** FileModes against a host and a clock that a test moves by hand. */
import { beforeEach, describe, expect, test } from "bun:test";
import { O_DIRECT, O_DSYNC, O_RDWR, RWF_NOWAIT } from "../../../src/abi/linux.ts";
import { FileModes, OFFLOAD } from "../../../src/io/file-modes.ts";
import type { Memory } from "../../../src/io/memory.ts";
import type { Linux } from "../../../src/runtime/linux.ts";

const TMPFS_MAGIC = 0x0102_1994;
const EXT4_MAGIC = 0xef53;
const FD = 3;
const MS = 1_000_000;

describe("FileModes", () => {
  let flags: number;
  let fileSystem: number;
  let nowNs: number;
  let modes: FileModes;

  beforeEach(() => {
    flags = O_RDWR;
    fileSystem = EXT4_MAGIC;
    nowNs = 1_000_000 * MS;
    const view = new DataView(new ArrayBuffer(128));
    const syscall = () => {
      view.setUint32(0, fileSystem, true);
      return 0;
    };
    const linux = { sys: {}, ffi: { syscall }, fcntl: () => flags } as unknown as Linux;
    modes = new FileModes(linux, { address: 0, view } as unknown as Memory, 0, () => nowNs);
  });

  /** A page written that takes so long; whether it was done on this thread. */
  const write = (takesNs: number) => {
    if (modes.writeFlags(FD, 4096, 4096) === OFFLOAD) return false;
    nowNs += takesNs;
    modes.writeEnded();
    return true;
  };

  test("buffered files are tried with the host's promise, others never", () => {
    expect(modes.readFlags(FD)).toBe(RWF_NOWAIT);
    expect(modes.writeFlags(FD, 0, 4096)).toBe(RWF_NOWAIT);
    flags = O_RDWR | O_DIRECT;
    expect(modes.readFlags(FD + 1)).toBe(OFFLOAD);
    expect(modes.writeFlags(FD + 1, 0, 4096)).toBe(OFFLOAD);
    flags = O_RDWR | O_DSYNC;
    expect(modes.readFlags(FD + 2)).toBe(RWF_NOWAIT);
    expect(modes.writeFlags(FD + 2, 0, 4096)).toBe(OFFLOAD);
  });

  test("reads keep the host's promise once one has, until it is asked anew", () => {
    expect(modes.readsNowait(FD)).toBe(false);
    modes.nowaitReadEnded(FD);
    for (let i = 0; i < 100; i++) expect(modes.readsNowait(FD)).toBe(true);
    for (let i = 0; i < 200; i++) modes.readsNowait(FD);
    expect(modes.readsNowait(FD)).toBe(false);
  });

  test("without the promise, reads leave, and whole pages are written", () => {
    modes.refuseNowaitRead(FD);
    modes.refuseNowaitWrite(FD);
    expect(modes.readFlags(FD)).toBe(OFFLOAD);
    expect(modes.writeFlags(FD, 8192, 4096)).toBe(0);
    expect(modes.writeFlags(FD, 8192, 1)).toBe(OFFLOAD);
    expect(modes.writeFlags(FD, 512, 4096)).toBe(OFFLOAD);
    expect(modes.writeFlags(FD, 8192, 0)).toBe(OFFLOAD);
  });

  test("a file system in memory needs no promise", () => {
    fileSystem = TMPFS_MAGIC;
    modes.refuseNowaitRead(FD);
    modes.refuseNowaitWrite(FD);
    expect(modes.readFlags(FD)).toBe(0);
    expect(modes.writeFlags(FD, 1, 1)).toBe(0);
  });

  test("after a slow write, others leave for nineteen times as long", () => {
    modes.refuseNowaitWrite(FD);
    for (let i = 0; i < 100; i++) expect(write(1 * MS)).toBe(true);
    expect(write(50 * MS)).toBe(true);
    nowNs += 949 * MS;
    expect(write(0)).toBe(false);
    nowNs += 2 * MS;
    expect(write(3 * MS)).toBe(true);
    nowNs += 99 * MS;
    expect(write(0)).toBe(false);
    nowNs += 2 * MS;
    expect(write(0)).toBe(true);
  });

  test("what is known of a descriptor is asked anew after a while", () => {
    expect(modes.readFlags(FD)).toBe(RWF_NOWAIT);
    flags = O_RDWR | O_DIRECT;
    for (let i = 0; i < 300; i++) modes.readFlags(FD);
    expect(modes.readFlags(FD)).toBe(OFFLOAD);
  });
});
