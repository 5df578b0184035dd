/** readFileContent() on files of every kind. Words are those of GLib. */
import { describe, expect, test } from "bun:test";
import { execFileSync, spawn } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { CONTENT_BYTES_MAX, readFileContent } from "../../../src/runtime/file-content.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";
import { pattern, temporaryDirectory } from "../../support/images.ts";

const linux = new Linux(driver.ffi, driver.arch);
const read = (path: string) => Buffer.from(readFileContent(linux, path));

describe("readFileContent()", () => {
  test("reads files of all lengths", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("content");
    for (const bytes of [0, 1, 65_536, 200_001, CONTENT_BYTES_MAX]) {
      const content = pattern(bytes);
      await writeFile(path, content);
      expect(read(path).equals(content)).toBe(true);
    }
  });

  test("reads files that don't know their length", () => {
    expect(read("/proc/self/status").toString()).toContain("VmRSS");
    expect(read("/dev/null").length).toBe(0);
  });

  test("waits for the writer of a pipe", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("pipe");
    execFileSync("mkfifo", [path]);
    const writer = spawn("sh", ["-c", `sleep 0.1; { echo one; sleep 0.1; echo two; } > ${path}`]);
    const ended = new Promise((resolve) => writer.on("exit", resolve));
    expect(read(path).toString()).toBe("one\ntwo\n");
    await ended;
  });

  test("refuses what can't be read, and what is too long", async () => {
    await using directory = await temporaryDirectory();
    const path = directory.file("large");
    await writeFile(path, Buffer.alloc(CONTENT_BYTES_MAX + 1));
    expect(() => read(path)).toThrow(`File “${path}” is too large`);
    expect(() => read("/dev/zero")).toThrow("File “/dev/zero” is too large");
    expect(() => read("/nonexist")).toThrow(
      "Failed to open file “/nonexist”: No such file or directory",
    );
    expect(() => read("/tmp")).toThrow("Error reading file “/tmp”: Is a directory");
    expect(() => read("/proc/self/mem")).toThrow(
      "Error reading file “/proc/self/mem”: Input/output error",
    );
  });
});
