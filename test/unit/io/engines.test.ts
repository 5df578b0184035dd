import { describe, expect, test } from "bun:test";
import { BufferPool } from "../../../src/io/buffers.ts";
import { createEngine } from "../../../src/io/engines.ts";
import { Memory } from "../../../src/io/memory.ts";
import { EPERM } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

function choose(forced: "io_uring" | "epoll" | undefined, uringResult?: number): [string, boolean] {
  const linux = new Linux(driver.ffi, driver.arch);
  if (uringResult !== undefined) linux.ioUringSetup = () => uringResult;
  const { engine, reason } = createEngine(forced, {
    linux,
    memory: new Memory(linux, BufferPool.reservedBytes(8 * 1024 * 1024)),
    handlers: [],
    offload: () => {
      throw new Error("nothing needs threads");
    },
    nowNs: driver.clock.nowNs,
  });
  engine.close();
  return [engine.name, reason !== null];
}

describe("createEngine()", () => {
  test("takes io_uring", () => {
    expect(choose(undefined)).toEqual(["io_uring", false]);
  });

  test("takes epoll where io_uring is forbidden, and says why", () => {
    expect(choose(undefined, -EPERM)).toEqual(["epoll", true]);
  });

  test("keeps to the one that is forced", () => {
    expect(choose("epoll")).toEqual(["epoll", false]);
    expect(choose("io_uring")).toEqual(["io_uring", false]);
    expect(() => choose("io_uring", -EPERM)).toThrow();
  });
});
