import { expect, test } from "bun:test";
import { Memory } from "../../../src/io/memory.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

test("Memory keeps zero(), copy() and release() inside itself", () => {
  const memory = new Memory(new Linux(driver.ffi, driver.arch), 16384);
  const { address } = memory;
  memory.u8.fill(7);
  memory.zero(address + 100, 10);
  expect([memory.u8[99], memory.u8[100], memory.u8[109], memory.u8[110]]).toEqual([7, 0, 0, 7]);
  memory.copy(address + 98, address + 100, 5);
  expect([...memory.u8.subarray(97, 104)]).toEqual([7, 0, 0, 0, 0, 0, 0]);
  memory.setU64(8, 2 ** 40 + 3);
  expect(memory.view.getBigUint64(8, true)).toBe(2n ** 40n + 3n);
  for (const bad of [() => memory.zero(address - 1, 1), () => memory.zero(address + 16384, 1)]) {
    expect(bad).toThrow("inside the mapping");
  }
  expect(() => memory.copy(address, address + 16380, 5)).toThrow("inside the mapping");
  expect(() => memory.release(12288, 8192)).toThrow("inside the mapping");
  memory.release(0, 4096);
  expect([memory.u8[0], memory.u8[4096]]).toEqual([0, 7]);
  memory.unmap();
});

test("Memory.iovBytes() adds up the lengths of vectors inside, and of no others", () => {
  const memory = new Memory(new Linux(driver.ffi, driver.arch), 4096);
  for (let i = 0; i < 3; i++) memory.setU64(4096 - 48 + i * 16 + 8, 1000 << i);
  const iov = memory.address + 4096 - 48;
  expect(memory.iovBytes(iov, 3)).toBe(7000);
  expect(memory.iovBytes(iov + 16, 2)).toBe(6000);
  expect(memory.iovBytes(iov, 4)).toBe(0);
  expect(memory.iovBytes(memory.address - 16, 1)).toBe(0);
  memory.unmap();
});
