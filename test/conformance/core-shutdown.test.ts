/** Every orderly way to end: exit 0, data stored, sockets and pid file gone, clients let go. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import { NBD_CMD_READ } from "../../src/abi/nbd.ts";
import { assertFileIs, MiB } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { ended, type Scene, serve } from "./scene.ts";

setDefaultTimeout(30_000);

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
      expect(await disk.daemon.exitWithin(3_000)).toBe(0);
      await ended(client.stream);
      expectNothingLeft(disk);
    });
  }

  test("by quit, which is answered, with the events before it", async () => {
    await using disk = await serve();
    const client = await disk.open();
    await disk.qmp.execute("quit");
    await disk.qmp.event("BLOCK_EXPORT_DELETED", (data) => data.id === "e0");
    expect(await disk.daemon.exitWithin(3_000)).toBe(0);
    await ended(client.stream);
    expectNothingLeft(disk);
  });

  test("keeps a write that was answered just before it", async () => {
    await using disk = await serve();
    const client = await disk.open();
    const bytes = Buffer.alloc(65_536, 0xab);
    await client.write(4096, bytes);
    disk.daemon.signal("SIGTERM");
    expect(await disk.daemon.exitWithin(3_000)).toBe(0);
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
    expect(await disk.daemon.exitWithin(5_000)).toBe(0);
    client.close();
    expectNothingLeft(disk);
  });

  test("does not wait for a client that is in the middle of the handshake", async () => {
    await using disk = await serve();
    const client = await NbdClient.connect({ path: disk.socket });
    await client.greet();
    disk.daemon.signal("SIGTERM");
    expect(await disk.daemon.exitWithin(3_000)).toBe(0);
    await ended(client.stream);
  });
});
