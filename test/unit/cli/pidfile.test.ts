/** writePidfile() on the host's file system. Words are those of QSD 11.1. */
import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writePidfile } from "../../../src/cli/pidfile.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);
const folder = mkdtempSync(join(tmpdir(), "outport-pidfile-"));
const path = join(folder, "pid");

afterAll(() => rmSync(folder, { recursive: true }));

test("writePidfile() locks the file until it is removed", () => {
  writeFileSync(path, "123456789012345");
  const remove = writePidfile(linux, path, 4711);
  expect(readFileSync(path, "utf8")).toBe("4711\n");
  expect(() => writePidfile(linux, path, 4712)).toThrow(
    "Cannot lock pid file: Resource temporarily unavailable",
  );
  expect(readFileSync(path, "utf8")).toBe("4711\n");
  remove();
  expect(existsSync(path)).toBe(false);
  writePidfile(linux, path, 4713)();
});

test("writePidfile() says why it cannot", () => {
  expect(() => writePidfile(linux, "/nonexistent/pid", 1)).toThrow(
    "Could not create '/nonexistent/pid': No such file or directory",
  );
});
