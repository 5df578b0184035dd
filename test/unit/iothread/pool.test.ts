import { afterEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import type { NodeOpen } from "../../../src/iothread/messages.ts";
import { type IothreadOptions, IothreadPool, MAIN_LOOP } from "../../../src/iothread/pool.ts";
import type { Thread, ThreadDriver } from "../../../src/runtime/driver.ts";
import { Linux } from "../../../src/runtime/linux.ts";
import { Logger } from "../../../src/util/log.ts";
import { driver } from "../../support/driver.ts";
import { messageOf } from "../../support/iothread.ts";

const linux = new Linux(driver.ffi, driver.arch);
let pool: IothreadPool;
let crashes: string[];
let onCrash: () => void;

function makePool(engine?: string, threadDriver: ThreadDriver = driver): IothreadPool {
  crashes = [];
  onCrash = () => {};
  pool = new IothreadPool({
    driver: threadDriver,
    linux,
    engine,
    onCrash: (id, error) => {
      crashes.push(`${id}: ${error.message}`);
      onCrash();
    },
    logger: new Logger({ write: () => {}, realTimeUs: () => 0 }),
  });
  return pool;
}

afterEach(async () => {
  await pool.stopAll(1000);
});

const nodeOpen = (driver: string, options: Record<string, unknown>): NodeOpen => ({
  nodeName: "n0",
  driver,
  options,
  readOnly: true,
  autoReadOnly: false,
  forceShare: false,
  cacheDirect: false,
  cacheNoFlush: false,
  discardUnmap: false,
  detectZeroes: "off",
  children: {},
});
const openNull = (id: string) =>
  pool.get(id).call("node-open", nodeOpen("null-co", { size: 4096 }));

/** Takes messages, and does nothing by itself. */
function idleThread(): Thread {
  return { send() {}, onMessage() {}, onError() {}, onExit() {}, unref() {} };
}

describe("IothreadPool", () => {
  for (const engine of ["io_uring", "epoll"]) {
    test(`starts a thread with ${engine}, calls it and stops it`, async () => {
      makePool(engine);
      const engines: string[] = [];
      pool.onEvent((_, event) => {
        if (event.event === "ready") engines.push(event.engine);
      });
      await pool.start(MAIN_LOOP);
      expect(engines).toEqual([engine]);
      expect(await openNull(MAIN_LOOP)).toMatchObject({ bytes: 4096, writable: false });
      await pool.stop(MAIN_LOOP);
      expect(pool.has(MAIN_LOOP)).toBe(false);
      expect(crashes).toEqual([]);
    });
  }

  test("runs several threads, with properties of their own", async () => {
    makePool();
    const options: IothreadOptions = { pollMaxNs: 0, pollGrow: 3, pollShrink: 2 };
    await Promise.all([pool.start("io0"), pool.start("io1", options)]);
    const infos = await Promise.all([openNull("io0"), openNull("io1")]);
    expect(infos.map(({ bytes }) => bytes)).toEqual([4096, 4096]);
    expect(await pool.stopAll()).toBe(true);
  });

  test("brings back errors in QSD's words", async () => {
    makePool();
    await pool.start("io0");
    const filename = "/does/not/exist";
    const failing = pool.get("io0").call("node-open", nodeOpen("file", { filename }));
    expect(await messageOf(failing)).toBe(
      "Could not open '/does/not/exist': No such file or directory",
    );
  });

  test("refuses an unknown engine, a second thread of a name, and an unknown thread", async () => {
    makePool("none");
    expect(await messageOf(pool.start("io0"))).toBe(
      "OUTPORT_IO_ENGINE is 'none': expected io_uring or epoll",
    );
    makePool();
    const first = pool.start("io0");
    expect(await messageOf(pool.start("io0"))).toBe('iothread "io0" exists');
    await first;
    expect(() => pool.get("io9")).toThrow('iothread "io9" not found');
  });

  test("refuses to stop a thread with nodes", async () => {
    makePool();
    await pool.start("io0");
    pool.get("io0").userCount++;
    expect(await messageOf(pool.stop("io0"))).toBe("object 'io0' is in use, can not be deleted");
    pool.get("io0").userCount--;
    await pool.stop("io0");
  });

  test("reports a crash, and fails the calls that wait", async () => {
    makePool();
    await pool.start("io0");
    const crashed = new Promise<void>((resolve) => {
      onCrash = resolve;
    });
    // Main never asks for a node that it has not opened.
    const call = pool.get("io0").call("node-flush", { nodeName: "missing" });
    expect(await messageOf(call)).toBe("iothread 'io0' failed");
    await crashed;
    expect(crashes).toEqual(["io0: Assertion failed: node 'missing' is open"]);
    expect(pool.has("io0")).toBe(false);
  });

  test("a thread that crashes ends, with its offload threads", async () => {
    let thread = idleThread();
    const startThread: typeof driver.startThread = (kind, data) => {
      thread = driver.startThread(kind, data);
      return thread;
    };
    makePool("epoll", { ...driver, startThread });
    await pool.start("io0");
    const { onExit } = thread;
    const ended = new Promise<void>((resolve) => {
      thread.onExit = () => {
        onExit();
        resolve();
      };
    });
    const folder = mkdtempSync(`${tmpdir()}/outport-pool-`);
    const filename = `${folder}/disk`;
    writeFileSync(filename, new Uint8Array(4096));
    const iothread = pool.get("io0");
    await iothread.call("node-open", { ...nodeOpen("file", { filename }), readOnly: false });
    // Flushes, which takes an offload thread.
    await iothread.call("node-close", { nodeName: "n0" });
    const tasks = readdirSync("/proc/self/task");
    const names = tasks.map((task) => readFileSync(`/proc/self/task/${task}/comm`, "utf8").trim());
    expect(names).toContain("offload");
    await messageOf(iothread.call("node-flush", { nodeName: "missing" }));
    await ended;
    expect(crashes).toEqual(["io0: Assertion failed: node 'missing' is open"]);
    rmSync(folder, { recursive: true });
  });

  test("reports a crash although the thread can not end", async () => {
    const thread = idleThread();
    makePool(undefined, { ...driver, startThread: () => thread });
    const started = pool.start("io0");
    thread.onMessage({ event: { event: "ready", engine: "epoll" } });
    await started;
    const call = messageOf(pool.get("io0").call("node-close", { nodeName: "n0" }));
    thread.onError(new Error("broken"));
    expect(await call).toBe("iothread 'io0' failed");
    expect(crashes).toEqual(["io0: broken"]);
    thread.onExit();
    expect(crashes).toEqual(["io0: broken"]);
    expect(pool.has("io0")).toBe(false);
  });

  test("fails to start when the thread does", async () => {
    const thread = idleThread();
    makePool(undefined, { ...driver, startThread: () => thread });
    const started = messageOf(pool.start("io0"));
    thread.onError(new Error("no memory"));
    thread.onExit();
    expect(await started).toBe("Cannot start iothread 'io0': no memory");
    expect(pool.has("io0")).toBe(false);
    expect(crashes).toEqual([]);
  });

  test("leaves a thread behind that does not come back from the kernel", async () => {
    let isUnref = false;
    const thread = idleThread();
    thread.unref = () => {
      isUnref = true;
    };
    makePool(undefined, { ...driver, startThread: () => thread });
    const started = pool.start("io0");
    thread.onMessage({ event: { event: "ready", engine: "epoll" } });
    await started;
    const call = messageOf(pool.get("io0").call("node-close", { nodeName: "n0" }));
    expect(await pool.stopAll(20)).toBe(false);
    expect(isUnref).toBe(true);
    expect(pool.has("io0")).toBe(false);
    // Its end, much later, is no crash.
    thread.onExit();
    expect(await call).toBe("iothread 'io0' failed");
    expect(crashes).toEqual([]);
  });
});
