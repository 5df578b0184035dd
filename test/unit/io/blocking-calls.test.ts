/** BlockingCalls with a real thread. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { BlockingCalls } from "../../../src/io/blocking-calls.ts";
import { EINVAL, ENAMETOOLONG, ENOENT, ETIMEDOUT } from "../../../src/runtime/errno.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { modeOf, openPathCall, statCall } from "../../../src/runtime/linux-mount.ts";
import { driver } from "../../support/driver.ts";

const linux = new Linux(driver.ffi, driver.arch);

describe("BlockingCalls", () => {
  let calls: BlockingCalls;
  let threads: number;

  beforeEach(() => {
    threads = 0;
    const startThread: typeof driver.startThread = (kind, data) => {
      threads++;
      return driver.startThread(kind, data);
    };
    calls = new BlockingCalls(linux, { startThread });
  });
  afterEach(() => calls.close());

  test("runs calls with strings, and returns what they write", async () => {
    const { result, output } = await calls.run(statCall(linux, "/proc/self/mountinfo"));
    expect(result).toBe(0);
    expect(modeOf(output)).toBe(0o100444);
    const opened = await calls.run(openPathCall(linux, "/proc"));
    expect(opened.result).toBeGreaterThanOrEqual(0);
    linux.close(opened.result);
    expect((await calls.run(openPathCall(linux, "/nowhere"))).result).toBe(-ENOENT);
    expect(threads).toBe(1);
  });

  test("refuses strings that it can't give to the kernel", async () => {
    expect((await calls.run(openPathCall(linux, "x".repeat(20_000)))).result).toBe(-ENAMETOOLONG);
    expect((await calls.run(openPathCall(linux, "/proc\0x"))).result).toBe(-EINVAL);
    expect(threads).toBe(0);
  });

  test("stops waiting in time, while others go on", async () => {
    const pipe = linux.pipe();
    if (typeof pipe === "number") throw new Error("no pipe");
    const read = { number: linux.sys.read, args: [pipe.readFd, { bytes: 4 }, 4] };
    expect(await calls.run(read, 10)).toEqual({
      result: -ETIMEDOUT,
      output: new Uint8Array(0),
    });
    expect((await calls.run(statCall(linux, "/"))).result).toBe(0);
    const late = calls.run(read);
    linux.write(pipe.writeFd, addressOfWords(), 8);
    const { result, output } = await late;
    expect(result).toBe(4);
    expect(output).toHaveLength(4);
    linux.close(pipe.readFd);
    linux.close(pipe.writeFd);
  });
});

/** Of eight readable bytes. */
function addressOfWords(): number {
  return linux.mmap(0, 4096, 1, 0x22, -1, 0);
}
