/** The two sides of --daemonize with a fake process. */
import { describe, expect, test } from "bun:test";
import { Background, isLauncher, launch, READY_FD_VARIABLE } from "../../../src/cli/daemonize.ts";
import type { Process, RuntimeDriver } from "../../../src/runtime/driver.ts";
import type { Linux } from "../../../src/runtime/linux.ts";

describe("launch()", () => {
  const outcome = (exitCode: number | undefined): Promise<number> =>
    launch({ startAgain: async () => exitCode } as unknown as Process);

  test("succeeds when the daemon is ready, and fails as it does", async () => {
    expect(await outcome(undefined)).toBe(0);
    expect(await outcome(3)).toBe(3);
    // As --object help: there is no daemon then.
    expect(await outcome(0)).toBe(1);
  });

  test("is for the process that was not started by it", () => {
    const driver = (value?: string) =>
      ({ env: (name: string) => (name === READY_FD_VARIABLE ? value : "") }) as RuntimeDriver;
    expect(isLauncher(driver(), true)).toBe(true);
    expect(isLauncher(driver("3"), true)).toBe(false);
    expect(isLauncher(driver(), false)).toBe(false);
  });
});

describe("Background", () => {
  function setUp() {
    const done: unknown[] = [];
    const memory = new ArrayBuffer(4096);
    const linux = {
      umask: (mask: number) => void done.push(["umask", mask]),
      open: () => 9,
      dup3: (source: number, target: number) => void done.push(["dup", source, target]),
      close: (fd: number) => void done.push(["close", fd]),
      mmap: () => 4096,
      munmap: () => 0,
      ffi: { view: () => memory },
      write: (fd: number, _address: number, bytes: number) =>
        void done.push(["write", fd, ...new Uint8Array(memory, 0, bytes)]),
    } as unknown as Linux;
    const driver = {
      env: () => "7",
      process: {
        cwd: () => "/start",
        chdir: (path: string) => void done.push(["chdir", path]),
        standardFds: () => [0, 1, 2, 30],
      },
    } as unknown as RuntimeDriver;
    return { background: new Background(driver, linux), done };
  }

  test("lets go of the folder and the streams, and says so last", () => {
    const { background, done } = setUp();
    expect(done).toEqual([["umask", 0o027]]);
    background.enter(null);
    expect(done.slice(1)).toEqual([
      ["chdir", "/"],
      ["dup", 9, 0],
      ["dup", 9, 1],
      ["dup", 9, 2],
      ["dup", 9, 30],
      ["close", 9],
      ["write", 7, 10],
      ["close", 7],
    ]);
  });

  test("keeps errors where traces go, and comes back", () => {
    const { background, done } = setUp();
    background.enter(5);
    expect(done).toContainEqual(["dup", 5, 2]);
    background.leave();
    expect(done.at(-1)).toEqual(["chdir", "/start"]);
  });
});
