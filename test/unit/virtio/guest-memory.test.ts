import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  F_GET_SEALS,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
} from "../../../src/abi/memfd.ts";
import { Memory } from "../../../src/io/memory.ts";
import { EBADF, EEXIST, EINVAL, ENOENT, ENOSPC } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { DirtyLog } from "../../../src/virtio/dirty-log.ts";
import { GuestMemory, type RegionOptions } from "../../../src/virtio/guest-memory.ts";
import { driver } from "../../support/driver.ts";
import { GuestRam } from "../../support/virtio-driver.ts";

const MiB = 1024 * 1024;
const GUEST = 0x4000_0000;
const USER = 0x7f00_0000_0000;

describe("GuestMemory", () => {
  const linux = new Linux(driver.ffi, driver.arch);
  let ram: GuestRam;
  let memory: GuestMemory;

  beforeEach(() => {
    ram = new GuestRam(linux, 4 * MiB);
    memory = new GuestMemory(linux);
  });
  afterEach(() => {
    memory.clear();
    expect(memory.mappedCount).toBe(0);
    ram.close();
  });

  test("add() refuses what is no region, and changes nothing", () => {
    const good = ram.region();
    const bad: Partial<RegionOptions>[] = [
      { bytes: 0 },
      { bytes: -4096 },
      { bytes: 4 * MiB + 1 },
      { fileOffset: 4096 },
      { fileOffset: -4096 },
      { guestAddress: 2 ** 53 - 4096 },
      { userAddress: 2 ** 53 },
      { guestAddress: 1.5 },
      { bytes: Number.NaN },
    ];
    for (const change of bad) expect(memory.add({ ...good, ...change })).toBe(-EINVAL);
    expect(memory.add({ ...good, fd: 9999 })).toBe(-EBADF);
    expect(memory.regionCount).toBe(0);
    expect(memory.add(good)).toBe(0);
    expect(memory.add(good)).toBe(-EEXIST);
    expect(memory.add({ ...ram.region(0, MiB), guestAddress: GUEST + 4 * MiB - 1 })).toBe(-EEXIST);
    expect(memory.regionCount).toBe(1);
  });

  test("has as many regions as there are slots", () => {
    for (let i = 0; i < 509; i++) expect(memory.add(ram.region(i * 4096, 4096))).toBe(0);
    expect(memory.add(ram.region(509 * 4096, 4096))).toBe(-ENOSPC);
    for (let i = 0; i < 509; i++) {
      ram.u8[i * 4096 + 7] = i & 0xff;
      expect(memory.find(GUEST + i * 4096 + 7, 1)).toBe(true);
      expect(memory.window.u8[memory.at]).toBe(i & 0xff);
    }
    expect(memory.find(GUEST + 509 * 4096, 1)).toBe(false);
  });

  test("find() stays inside one region; copyOut() crosses them", () => {
    memory.add(ram.region(0, MiB));
    memory.add(ram.region(MiB, MiB));
    ram.u8.set([1, 2, 3, 4], MiB - 2);
    expect(memory.find(GUEST + MiB - 2, 2)).toBe(true);
    expect(memory.find(GUEST + MiB - 2, 3)).toBe(false);
    const copy = new Uint8Array(4);
    expect(memory.copyOut(GUEST + MiB - 2, 4, copy)).toBe(true);
    expect(copy).toEqual(Uint8Array.of(1, 2, 3, 4));
    expect(memory.copyOut(GUEST + 2 * MiB - 2, 4, copy)).toBe(false);
    expect(memory.find(GUEST - 1, 1)).toBe(false);
  });

  test("maps a region that begins anywhere in its file", () => {
    memory.add({ ...ram.region(0, 100_000), fileOffset: 70_001 });
    ram.u8[70_001 + 5] = 42;
    expect(memory.find(GUEST + 5, 1)).toBe(true);
    expect(memory.window.u8[memory.at]).toBe(42);
    expect(memory.hostAddressOf(USER + 5, 1)).toBe(memory.hostAddressOf(USER, 1) + 5);
    expect(memory.hostAddressOf(USER + 99_999, 2)).toBe(-1);
  });

  test("remove() wants the same region again", () => {
    memory.add(ram.region());
    expect(memory.remove(GUEST, USER, MiB)).toBe(-ENOENT);
    expect(memory.remove(GUEST, USER + 1, 4 * MiB)).toBe(-ENOENT);
    expect(memory.remove(GUEST, USER, 4 * MiB)).toBe(0);
    expect(memory.regionAt(GUEST)).toBe(null);
    expect(memory.mappedCount).toBe(0);
  });

  test("keeps a removed region until the requests from before have ended", () => {
    memory.add(ram.region(0, MiB));
    memory.add(ram.region(MiB, MiB));
    const address = memory.hostAddressOf(USER, 1);
    const first = memory.enter();
    const second = memory.enter();
    memory.remove(GUEST, USER, MiB);
    const later = memory.enter();
    expect([memory.regionCount, memory.mappedCount]).toEqual([1, 2]);
    memory.zero(address, MiB);
    memory.leave(second);
    expect(memory.mappedCount).toBe(2);
    memory.leave(first);
    expect(memory.mappedCount).toBe(1);
    memory.leave(later);
  });

  test("keeps regions that go one after the other, however many", () => {
    const epochs: number[] = [];
    for (let i = 0; i < 200; i++) {
      expect(memory.add(ram.region(i * 4096, 4096))).toBe(0);
      epochs.push(memory.enter());
      expect(memory.remove(GUEST + i * 4096, USER + i * 4096, 4096)).toBe(0);
    }
    expect(memory.mappedCount).toBe(200);
    for (const epoch of epochs.reverse()) memory.leave(epoch);
    expect(memory.mappedCount).toBe(0);
  });

  test("replace() keeps what stays, and all when it fails", () => {
    const table = [ram.region(0, MiB), ram.region(MiB, MiB)];
    expect(memory.replace(table)).toBe(0);
    const address = memory.hostAddressOf(USER, 1);
    expect(memory.replace([...table, ram.region(2 * MiB, MiB)])).toBe(0);
    expect(memory.hostAddressOf(USER, 1)).toBe(address);
    expect(memory.replace([table[0]!, table[0]!])).toBe(-EEXIST);
    expect(memory.replace([ram.region(3 * MiB, 2 * MiB)])).toBe(-EINVAL);
    expect([memory.regionCount, memory.mappedCount]).toEqual([3, 3]);
    expect(memory.replace([])).toBe(0);
    expect(memory.mappedCount).toBe(0);
  });

  test("tells of a change before it unmaps", () => {
    memory.add(ram.region());
    const address = memory.hostAddressOf(USER, 1);
    let seen = 0;
    memory.onChange = () => {
      seen = new Uint8Array(linux.ffi.view(address, 1))[0]! + 1;
    };
    memory.clear();
    memory.onChange = () => {};
    expect(seen).toBe(1);
  });

  test("zero(), read() and write() go by host address", () => {
    memory.add(ram.region());
    const own = new Memory(linux, 65536);
    ram.u8.fill(7);
    const address = memory.hostAddressOf(USER + 100, 1);
    memory.read(address, 10, own, 5);
    expect(own.u8.slice(4, 16)).toEqual(Uint8Array.of(0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0));
    memory.zero(address, 3);
    own.u8.fill(9);
    memory.write(address + 5, 2, own, 0);
    expect(ram.u8.slice(99, 109)).toEqual(Uint8Array.of(7, 0, 0, 0, 7, 7, 9, 9, 7, 7));
    own.unmap();
  });

  test("looks at memory beyond 4 GiB", () => {
    const huge = new GuestRam(linux, 4096);
    linux.ftruncate(huge.fd, 6 * 1024 * MiB);
    const bytes = 5 * 1024 * MiB + 123;
    const guestAddress = 2 ** 40;
    expect(memory.add({ fd: huge.fd, fileOffset: 4096, guestAddress, userAddress: 0, bytes })).toBe(
      0,
    );
    for (const offset of [0, 2 ** 30 - 1, 2 ** 30, 2 ** 32 + 12_345, bytes - 4]) {
      expect(memory.find(guestAddress + offset, 4)).toBe(true);
      memory.window.view.setUint32(memory.at, offset >>> 0, true);
    }
    const copy = new Uint8Array(4);
    memory.copyOut(guestAddress + 2 ** 32 + 12_345, 4, copy);
    expect(new DataView(copy.buffer).getUint32(0, true)).toBe(12_345);
    memory.clear();
    huge.close();
  });

  test("seals the file against shrinking where it can", () => {
    memory.add(ram.region());
    expect(memory.isSealed).toBe(true);
    expect(linux.fcntl(ram.fd, F_GET_SEALS) & F_SEAL_SHRINK).toBe(F_SEAL_SHRINK);
    expect(linux.ftruncate(ram.fd, 0)).toBeLessThan(0);
    const unsealed = new GuestRam(linux, MiB, { guestAddress: 0, flags: 0 });
    expect(linux.fcntl(unsealed.fd, F_GET_SEALS)).toBe(F_SEAL_SEAL);
    memory.add(unsealed.region());
    expect(memory.isSealed).toBe(false);
    unsealed.close();
    expect(MFD_ALLOW_SEALING).toBe(2);
  });
});

describe("DirtyLog", () => {
  const linux = new Linux(driver.ffi, driver.arch);

  test("marks the pages written to, and none beyond it", () => {
    const file = new GuestRam(linux, 8192);
    const log = DirtyLog.map(linux, file.fd, 4096, 4);
    if (typeof log === "number") throw new Error(`map() said ${log}`);
    log.mark(0, 1);
    log.mark(4096 * 3 - 1, 2);
    log.mark(4096 * 9, 4096);
    log.mark(4096 * 31, 4096 * 100);
    log.mark(2 ** 52, 1);
    expect(file.u8.slice(4096, 4102)).toEqual(Uint8Array.of(0b1101, 0b10, 0, 0x80, 0, 0));
    log.unmap();
    expect(DirtyLog.map(linux, file.fd, 4096, 4097)).toBe(-EINVAL);
    expect(DirtyLog.map(linux, file.fd, 0, 0)).toBe(-EINVAL);
    file.close();
  });
});
