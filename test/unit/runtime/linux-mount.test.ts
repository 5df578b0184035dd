import { describe, expect, test } from "bun:test";
import { statSync } from "node:fs";
import { O_PATH } from "../../../src/abi/linux-mount.ts";
import { EBADF, EINVAL, ENAMETOOLONG, ENOENT } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import {
  fdPath,
  getgid,
  getuid,
  identifyMount,
  listMounts,
  mountCall,
  statPlace,
  unmountNow,
} from "../../../src/runtime/linux-mount.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);

describe("identifyMount()", () => {
  test("tells the mount of a place, as the kernel lists it", () => {
    const fd = linux.open("/proc/self", O_PATH);
    const found = identifyMount(linux, fd);
    linux.close(fd);
    if (typeof found === "number") throw new Error("not identified");
    const { dev } = statSync("/proc/self");
    expect(found.dev).toBe(dev);
    const mount = listMounts(linux).find(({ id }) => id === found.mountId);
    expect([mount?.path, mount?.type, mount?.dev]).toEqual(["/proc", "proc", dev]);
  });

  test("fails for what is not open", () => {
    expect(identifyMount(linux, 99_999)).toBe(-EBADF);
  });
});

describe("statPlace()", () => {
  test("tells type, numbers and mount of what is at a path", () => {
    const { dev, ino, mode } = statSync("/proc/self/mountinfo");
    const found = statPlace(linux, "/proc/self/mountinfo");
    expect(found).toMatchObject({ dev, mode });
    expect(typeof found === "object" && found.ino > 0 && ino > 0).toBe(true);
    const device = statPlace(linux, "/dev/null");
    expect(typeof device === "object" && device.mode & 0o170000).toBe(0o020000);
  });

  test("fails as the kernel does", () => {
    expect(statPlace(linux, "")).toBe(-ENOENT);
    expect(statPlace(linux, "/nowhere")).toBe(-ENOENT);
    expect(statPlace(linux, "/proc\0")).toBe(-EINVAL);
    expect(statPlace(linux, "x".repeat(4096))).toBe(-ENAMETOOLONG);
    expect(statPlace(linux, "x".repeat(4095))).toBe(-ENAMETOOLONG);
  });
});

describe("linux-mount", () => {
  test("knows who runs it", () => {
    expect([getuid(linux), getgid(linux)]).toEqual([process.getuid!(), process.getgid!()]);
  });

  test("fdPath() leads to the file of a descriptor", () => {
    const fd = linux.open("/proc/self/mountinfo", O_PATH);
    const again = linux.open(fdPath(fd), 0);
    expect(again).toBeGreaterThanOrEqual(0);
    linux.close(again);
    linux.close(fd);
  });

  test("unmountNow() returns the kernel's refusal", () => {
    expect(unmountNow(linux, "/nowhere/at/all", 0)).toBe(-ENOENT);
  });

  test("mountCall() has the arguments in the kernel's order", () => {
    const mount = { source: "/dev/fuse", target: "/t", type: "fuse", flags: 6, data: "fd=3" };
    expect(mountCall(linux, mount)).toEqual({
      number: linux.sys.mount,
      args: ["/dev/fuse", "/t", "fuse", 6, "fd=3"],
    });
  });
});
