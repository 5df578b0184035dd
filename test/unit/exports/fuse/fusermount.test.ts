/** The program is played by a function that sends a descriptor as it does. */
import { describe, expect, test } from "bun:test";
import { AF_UNIX, SOCK_STREAM } from "../../../../src/abi/linux-socket.ts";
import {
  fusermount,
  fusermountUnmount,
  receiveFd,
} from "../../../../src/exports/fuse/fusermount.ts";
import type { RunOptions } from "../../../../src/runtime/driver.ts";
import { ENOTCONN } from "../../../../src/runtime/errno.ts";
import { Linux } from "../../../../src/runtime/linux.ts";
import { driver } from "../../../support/driver.ts";
import { sendFd } from "../../../support/pass-fd.ts";

const linux = new Linux(driver.ffi, driver.arch);

/** Runs nothing: remembers what was asked, and answers as told. */
function fake(answer: (options: RunOptions) => { code: number | null; stderr: string }) {
  const asked: (readonly string[])[] = [];
  return {
    asked,
    run: async (program: string, args: readonly string[], options: RunOptions = {}) => {
      asked.push([program, ...args]);
      return answer(options);
    },
  };
}

const isOpen = (fd: number) => linux.fcntl(fd, 1) >= 0;

describe("fusermount()", () => {
  test("gets the descriptor that the program sends", async () => {
    const eventFd = linux.eventfd(7);
    const process = fake(({ fd, env }) => {
      expect(env).toEqual({ _FUSE_COMMFD: "3" });
      sendFd(linux, fd!, eventFd);
      return { code: 0, stderr: "" };
    });
    const fd = await fusermount(linux, process, "/p q", ["ro", "nodev"]);
    expect(process.asked).toEqual([["fusermount3", "-o", "ro,nodev", "--", "/p q"]]);
    if (typeof fd !== "number") throw new Error("no descriptor");
    expect(linux.drainEventfd(fd)).toBe(7);
    // Close-on-exec.
    expect(linux.fcntl(fd, 1)).toBe(1);
    linux.close(fd);
    linux.close(eventFd);
  });

  test("returns what the program says when it fails, and keeps nothing", async () => {
    const eventFd = linux.eventfd();
    let theirs = -1;
    const process = fake(({ fd }) => {
      theirs = fd!;
      sendFd(linux, fd!, eventFd);
      return { code: 1, stderr: "no\n" };
    });
    expect(await fusermount(linux, process, "/p", [])).toEqual({ stderr: "no\n" });
    expect(isOpen(theirs)).toBe(false);
    const silent = fake(() => ({ code: 0, stderr: "odd\n" }));
    expect(await fusermount(linux, silent, "/p", [])).toEqual({ stderr: "odd\n" });
    linux.close(eventFd);
  });
});

describe("fusermountUnmount()", () => {
  test("unmounts lazily", async () => {
    const good = fake(() => ({ code: 0, stderr: "" }));
    expect(await fusermountUnmount(good, "/p")).toBe(undefined);
    expect(good.asked).toEqual([["fusermount3", "-u", "-q", "-z", "--", "/p"]]);
    const bad = fake(() => ({ code: 1, stderr: "no" }));
    expect(await fusermountUnmount(bad, "/p")).toEqual({ stderr: "no" });
  });
});

describe("receiveFd()", () => {
  test("is content with a socket that has none", () => {
    const pair = linux.socketpair(AF_UNIX, SOCK_STREAM);
    if (typeof pair === "number") throw new Error("no socket");
    expect(receiveFd(linux, pair[0])).toBe(-ENOTCONN);
    linux.signalEventfd(pair[1]);
    expect(receiveFd(linux, pair[0])).toBe(-ENOTCONN);
    linux.close(pair[1]);
    linux.close(pair[0]);
  });
});
