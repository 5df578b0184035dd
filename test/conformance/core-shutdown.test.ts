/** Every orderly way to end: exit 0, data stored, sockets and pid file gone, clients let go. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { F_WRLCK, O_RDONLY } from "../../src/abi/linux.ts";
import { NBD_CMD_READ } from "../../src/abi/nbd.ts";
import { Linux } from "../../src/runtime/linux.ts";
import { driver } from "../support/driver.ts";
import { assertFileIs, MiB } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { sleep } from "../support/process.ts";
import { ended, type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

function expectNothingLeft(disk: Scene): void {
  expect(existsSync(disk.socket)).toBe(false);
  expect(existsSync(disk.monitor)).toBe(false);
  expect(existsSync(disk.pidfile)).toBe(false);
}

describe("an orderly end", () => {
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    test(`by ${signal} while a client is connected`, async () => {
      await using disk = await serve();
      const client = await disk.open();
      disk.daemon.signal(signal);
      expect(await disk.daemon.exitSoon()).toBe(0);
      await ended(client.stream);
      expectNothingLeft(disk);
    });
  }

  test("by quit, which is answered, with the events before it", async () => {
    await using disk = await serve();
    const client = await disk.open();
    await disk.qmp.execute("quit");
    await disk.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "e0");
    expect(await disk.daemon.exitSoon()).toBe(0);
    await ended(client.stream);
    expectNothingLeft(disk);
  });

  test("keeps a write that was answered just before it", async () => {
    await using disk = await serve();
    const client = await disk.open();
    const bytes = Buffer.alloc(65_536, 0xab);
    await client.write(4096, bytes);
    disk.daemon.signal("SIGTERM");
    expect(await disk.daemon.exitSoon()).toBe(0);
    const wanted = Buffer.from(disk.content);
    bytes.copy(wanted, 4096);
    await assertFileIs(disk.image, wanted);
  });

  test("does not wait for a client that stopped reading", async () => {
    await using disk = await serve();
    const client = await disk.open();
    client.stream.pause();
    for (let i = 0; i < 64; i++) client.request(NBD_CMD_READ, 0, MiB).catch(() => {});
    disk.daemon.signal("SIGTERM");
    expect(await disk.daemon.exitSoon()).toBe(0);
    client.close();
    expectNothingLeft(disk);
  });

  test("does not wait for a client that is in the middle of the handshake", async () => {
    await using disk = await serve();
    const client = await NbdClient.connect({ path: disk.socket });
    await client.greet();
    disk.daemon.signal("SIGTERM");
    expect(await disk.daemon.exitSoon()).toBe(0);
    await ended(client.stream);
  });
});

/** Of fcntl(): from <fcntl.h>. */
const F_SETSIG = 10;
const F_SETLEASE = 1024;
/** Ignored unless there is a handler. */
const SIGURG = 23;

describe("an end that something in the host does not let be orderly", () => {
  async function expectForcedEnd(disk: Scene): Promise<void> {
    disk.daemon.expectedExit = 1;
    disk.daemon.signal("SIGTERM");
    await disk.daemon.said(/an orderly end takes long/);
    expect(existsSync(disk.pidfile)).toBe(true);
    disk.daemon.signal("SIGTERM");
    expect(await disk.daemon.exitSoon()).toBe(1);
    expect(disk.daemon.stderr).toContain("leaving without an orderly end");
    expect(existsSync(disk.monitor)).toBe(false);
    expect(existsSync(disk.pidfile)).toBe(false);
  }

  test.concurrent("comes when told again, with a request that does not end", async () => {
    await using disk = await serve({
      before: ["--blockdev", "driver=null-co,node-name=slow,latency-ns=600000000000"],
      after: ["--export", "type=nbd,id=e1,node-name=slow,name=slow"],
    });
    const client = await disk.open("slow");
    client.request(NBD_CMD_READ, 0, 4096).catch(() => {});
    await sleep(1000);
    await expectForcedEnd(disk);
    expectNothingLeft(disk);
  });

  test.concurrent("comes when told again, with a thread that is stuck in the kernel", async () => {
    await using disk = await serve();
    const linux = new Linux(driver.ffi, driver.arch);
    const path = `${disk.directory}/leased`;
    writeFileSync(path, "x");
    const fd = linux.open(path, O_RDONLY);
    // Whoever opens the file waits until the lease is given up.
    expect(linux.fcntl(fd, F_SETSIG, SIGURG)).toBe(0);
    expect(linux.fcntl(fd, F_SETLEASE, F_WRLCK)).toBe(0);
    const add = { driver: "file", "node-name": "leased", filename: path };
    disk.qmp.execute("blockdev-add", add).catch(() => {});
    await sleep(1000);
    await expectForcedEnd(disk);
    linux.close(fd);
  });
});
