import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { F_UNLCK, F_WRLCK, O_RDONLY, O_RDWR } from "../../../src/abi/linux.ts";
import { canLock, ImageLocks } from "../../../src/block/locks.ts";
import {
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
} from "../../../src/block/node.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const directory = mkdtempSync(join(tmpdir(), "outport-locks-"));
const path = join(directory, "image");
const opened: number[] = [];

function openImage(flags = O_RDWR): number {
  const fd = linux.open(path, flags);
  expect(fd).toBeGreaterThan(0);
  opened.push(fd);
  return fd;
}

/** The bytes that someone holds, as another process sees them. */
function lockedBytes(): number[] {
  const fd = openImage();
  const bytes: number[] = [];
  for (let byte = 0; byte < 300; byte++) {
    if (linux.testLock(fd, F_WRLCK, byte, 1) !== F_UNLCK) bytes.push(byte);
  }
  return bytes;
}

beforeEach(() => {
  for (const fd of opened.splice(0)) linux.close(fd);
  writeFileSync(path, "");
});
afterAll(() => {
  for (const fd of opened.splice(0)) linux.close(fd);
  rmSync(directory, { recursive: true });
});

const reader = { used: PERM_CONSISTENT_READ, shared: PERM_ALL & ~PERM_RESIZE };
const writer = { used: PERM_CONSISTENT_READ | PERM_WRITE, shared: PERM_ALL & ~PERM_RESIZE };
const alone = { used: PERM_WRITE, shared: PERM_CONSISTENT_READ };

describe("ImageLocks", () => {
  test("holds a byte per permission used and one per permission kept", () => {
    const fd = openImage();
    const locks = new ImageLocks(linux);
    locks.prepare(fd, writer);
    locks.commit(fd, writer);
    expect(lockedBytes()).toEqual([100, 101, 203]);
    locks.prepare(fd, reader);
    locks.commit(fd, reader);
    expect(lockedBytes()).toEqual([100, 203]);
    locks.commit(fd, { used: 0, shared: PERM_ALL });
    expect(lockedBytes()).toEqual([]);
  });

  test("works on a file open for reading", () => {
    expect(canLock(linux, openImage(O_RDONLY))).toBe(true);
    const locks = new ImageLocks(linux);
    locks.prepare(openImage(O_RDONLY), reader);
    expect(lockedBytes()).toEqual([100, 203]);
  });

  test("lets two users live together when both share", () => {
    new ImageLocks(linux).prepare(openImage(), writer);
    new ImageLocks(linux).prepare(openImage(), writer);
    expect(lockedBytes()).toEqual([100, 101, 203]);
  });

  test("fails on what another keeps, and leaves its own locks as they were", () => {
    const first = new ImageLocks(linux);
    const firstFd = openImage();
    first.prepare(firstFd, alone);
    first.commit(firstFd, alone);
    const before = lockedBytes();

    const second = new ImageLocks(linux);
    const fd = openImage();
    second.prepare(fd, { used: PERM_CONSISTENT_READ, shared: PERM_ALL });
    second.commit(fd, { used: PERM_CONSISTENT_READ, shared: PERM_ALL });
    expect(() => second.prepare(fd, { ...writer, shared: PERM_ALL })).toThrow(
      /^Failed to get "write" lock$/,
    );
    expect(lockedBytes()).toEqual([100, ...before]);
  });

  test("fails to keep what another uses", () => {
    new ImageLocks(linux).prepare(openImage(), { used: PERM_WRITE, shared: PERM_ALL });
    const second = new ImageLocks(linux);
    const fd = openImage();
    expect(() => second.prepare(fd, { used: 0, shared: PERM_ALL & ~PERM_WRITE })).toThrow(
      /^Failed to get shared "write" lock$/,
    );
    expect(lockedBytes()).toEqual([101]);
  });

  test("copy() locks a second file of the same node", () => {
    const locks = new ImageLocks(linux);
    const fd = openImage();
    locks.prepare(fd, writer);
    const other = openImage();
    locks.copy(other, writer);
    linux.close(opened.splice(opened.indexOf(fd), 1)[0]!);
    expect(lockedBytes()).toEqual([100, 101, 203]);
  });
});
