import { afterAll, describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { F_GETFL, O_ACCMODE, O_DIRECT, O_RDWR } from "../../../../../src/abi/linux.ts";
import {
  type FileDriver,
  hostFileBytes,
  openHostFile,
  reopenHostFile,
} from "../../../../../src/block/drivers/file/host-file.ts";
import { Linux } from "../../../../../src/runtime/linux.ts";
import { type PlaceStatus, statPlace } from "../../../../../src/runtime/linux-mount.ts";
import { driver } from "../../../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const directory = mkdtempSync(join(tmpdir(), "outport-file-"));
const at = (name: string) => join(directory, name);
afterAll(() => rmSync(directory, { recursive: true }));

writeFileSync(at("image"), "x".repeat(1000));
mkdirSync(at("dir"));
execFileSync("mkfifo", [at("fifo")]);

function open(kind: FileDriver, path: string, writable = true, direct = false) {
  return openHostFile(linux, kind, path, { writable, direct });
}

describe("openHostFile()", () => {
  test("opens a regular file in the mode asked for", () => {
    for (const writable of [false, true]) {
      const { fd, status } = open("file", at("image"), writable, true);
      expect(status.bytes).toBe(1000);
      expect(hostFileBytes(linux, fd)).toBe(1000);
      const flags = linux.fcntl(fd, F_GETFL);
      expect((flags & O_ACCMODE) === O_RDWR).toBe(writable);
      expect(flags & O_DIRECT).toBe(O_DIRECT);
      linux.close(fd);
    }
  });

  test("says what is wrong with a path, in QSD's words", () => {
    const cases: [FileDriver, string, string][] = [
      ["file", at("missing"), `Could not open '${at("missing")}': No such file or directory`],
      ["file", at("image/x"), `Could not open '${at("image/x")}': Not a directory`],
      ["file", at("dir"), `Could not open '${at("dir")}': Is a directory`],
      ["file", at("fifo"), `'file' driver requires '${at("fifo")}' to be a regular file`],
      ["file", "/dev/null", "'file' driver requires '/dev/null' to be a regular file"],
      [
        "host_device",
        at("image"),
        `'host_device' driver requires '${at("image")}' to be either a character or block device`,
      ],
      ["file", "x".repeat(5000), `Could not open '${"x".repeat(5000)}': File name too long`],
    ];
    for (const [kind, path, message] of cases) expect(() => open(kind, path)).toThrow(message);
  });

  test("does not wait for the other side of a FIFO", () => {
    expect(() => open("file", at("fifo"), false)).toThrow("to be a regular file");
  });

  test("takes a character device as host_device", () => {
    const { fd } = open("host_device", "/dev/null");
    expect(hostFileBytes(linux, fd)).toBe(0);
    linux.close(fd);
  });
});

describe("reopenHostFile()", () => {
  test("opens the same file, though its name leads elsewhere", () => {
    writeFileSync(at("moved"), "old");
    const { fd } = open("file", at("moved"), false);
    renameSync(at("moved"), at("moved.old"));
    writeFileSync(at("moved"), "another one");
    const again = reopenHostFile(linux, fd, at("moved"), { writable: true, direct: false });
    expect(hostFileBytes(linux, again.fd)).toBe(3);
    linux.close(fd);
    linux.close(again.fd);
  });
});

describe("openHostFile() of a file that this process serves", () => {
  test("does not wait for itself", () => {
    const { dev } = statPlace(linux, at("image")) as PlaceStatus;
    const open = (served: number[]) =>
      openHostFile(linux, "file", at("image"), { writable: false, direct: false, served });
    expect(() => open([dev])).toThrow(`Could not open '${at("image")}': Resource deadlock avoided`);
    linux.close(open([dev + 1]).fd);
  });
});
