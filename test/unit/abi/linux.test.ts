import { describe, expect, test } from "bun:test";
import * as linux from "../../../src/abi/linux.ts";
import * as attributes from "../../../src/abi/linux-attributes.ts";
import * as mount from "../../../src/abi/linux-mount.ts";
import * as socket from "../../../src/abi/linux-socket.ts";
import { SYSCALLS } from "../../../src/abi/syscalls.ts";
import headers from "./linux.json" with { type: "json" };
import syscalls from "./syscalls.json" with { type: "json" };

describe("abi", () => {
  test("linux*.ts have the values of the C headers", () => {
    const ours = Object.entries<unknown>({ ...linux, ...attributes, ...mount, ...socket }).filter(
      ([name, value]) => typeof value === "number" && !name.startsWith("ARM64_"),
    );
    expect(Object.fromEntries(ours)).toEqual(headers);
  });

  test("SYSCALLS has the numbers of the kernel's headers", () => {
    for (const arch of ["x64", "arm64"] as const) {
      const ours: Partial<Record<string, number>> = { ...SYSCALLS[arch] };
      // Newer than the headers that syscalls.json was made from; the same on all architectures.
      expect(ours.cachestat).toBe(451);
      delete ours.cachestat;
      expect(ours as object).toEqual(syscalls[arch]);
    }
  });

  test("EPOLL_EVENT is packed on x64 only", () => {
    expect(linux.EPOLL_EVENT).toEqual({ x64: { size: 12, data: 4 }, arm64: { size: 16, data: 8 } });
  });
});
