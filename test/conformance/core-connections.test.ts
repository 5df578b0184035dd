/** Many clients, slow clients and clients that misbehave: the others do not notice. */

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { NBD_CMD_READ, NBD_CMD_WRITE, NBD_EINVAL, NBD_GREETING_BYTES } from "../../src/abi/nbd.ts";
import { ByteStream } from "../support/byte-stream.ts";
import { assertFileIs, assertSameBytes, MiB } from "../support/images.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { request } from "../support/nbd-wire.ts";
import { sleep } from "../support/process.ts";
import { ended, type Scene, serve } from "./scene.ts";

setDefaultTimeout(180_000);

/** Whether the promise is fulfilled within the time. */
async function within(timeoutMs: number, promise: Promise<unknown>): Promise<boolean> {
  return await Promise.race([promise.then(() => true), sleep(timeoutMs).then(() => false)]);
}

async function openMany(disk: Scene, count: number): Promise<NbdClient[]> {
  const clients: NbdClient[] = [];
  while (clients.length < count) {
    const batch = Array.from({ length: Math.min(100, count - clients.length) }, () => disk.open());
    clients.push(...(await Promise.all(batch)));
  }
  return clients;
}

async function expectServes(disk: Scene, content = disk.content): Promise<void> {
  const client = await disk.open();
  assertSameBytes(await client.read(8192, 4096), content.subarray(8192, 12_288));
  client.close();
}

/** Of threads that start when they are first needed, and stay. */
const THREADS_FDS = 16;
const VANISHING_CLIENTS = 40;

/** Waits until the count of open files is back at what it was. */
async function expectFdCount(disk: Scene, count: number): Promise<void> {
  for (let i = 0; i < 600 && disk.daemon.fdCount() > count; i++) await sleep(50);
  expect(disk.daemon.fdCount()).toBeLessThanOrEqual(count);
}

describe("max-connections", () => {
  test("lets one more client wait until another leaves", async () => {
    await using disk = await serve({ server: "max-connections=2" });
    const [first, second] = await openMany(disk, 2);
    const third = await ByteStream.connect({ path: disk.socket });
    const greeting = third.read(NBD_GREETING_BYTES);
    expect(await within(300, greeting)).toBe(false);
    first?.close();
    const magic = Buffer.from(await greeting).toString("latin1", 0, 16);
    expect(magic).toBe("NBDMAGICIHAVEOPT");
    second?.close();
    third.destroy();
  });

  test("is 100 when absent", async () => {
    await using disk = await serve();
    const clients = await openMany(disk, 100);
    const last = await ByteStream.connect({ path: disk.socket });
    expect(await within(300, last.read(NBD_GREETING_BYTES))).toBe(false);
    last.destroy();
    for (const client of clients) client.close();
  });
});

describe("handshake-max-seconds", () => {
  test("ends clients that do not finish the handshake, and no other", async () => {
    await using disk = await serve({ server: "handshake-max-seconds=1" });
    const served = await disk.open();
    const silent = await ByteStream.connect({ path: disk.socket });
    const slow = await ByteStream.connect({ path: disk.socket });
    const drip = setInterval(() => void slow.send(Buffer.of(0)), 100);
    await Promise.all([ended(silent), ended(slow)]);
    clearInterval(drip);
    assertSameBytes(await served.read(0, 512), disk.content.subarray(0, 512));
    served.close();
  });
});

describe("a client that breaks the protocol", () => {
  test("is disconnected for a wrong request magic", async () => {
    await using disk = await serve();
    const bystander = await disk.open();
    const client = await disk.open();
    await client.stream.send(request({ magic: 0xdeadbeef, type: NBD_CMD_READ }));
    await ended(client.stream);
    assertSameBytes(await bystander.read(0, 512), disk.content.subarray(0, 512));
    bystander.close();
  });

  test("is disconnected for a write of more than 32 MiB", async () => {
    await using disk = await serve();
    const client = await disk.open();
    await client.stream.send(request({ type: NBD_CMD_WRITE, length: 0xffff_ffff }));
    await ended(client.stream);
    await expectServes(disk);
    await assertFileIs(disk.image, disk.content);
  });

  test("is disconnected for garbage in the handshake", async () => {
    await using disk = await serve();
    const client = await NbdClient.connect({ path: disk.socket });
    await client.greet();
    await client.stream.send(Buffer.alloc(4096, 0x41));
    await ended(client.stream);
    await expectServes(disk);
  });

  test("gets EINVAL for an unknown command, and goes on", async () => {
    await using disk = await serve();
    const client = await disk.open();
    expect((await client.request(99, 0, 512)).error).toBe(NBD_EINVAL);
    assertSameBytes(await client.read(0, 512), disk.content.subarray(0, 512));
    client.close();
  });
});

describe("clients that vanish", () => {
  test("in the middle of writes change nothing outside of them", async () => {
    await using disk = await serve();
    const before = disk.daemon.fdCount();
    for (let i = 0; i < VANISHING_CLIENTS; i++) {
      const client = await disk.open();
      await client.stream.send(request({ type: NBD_CMD_WRITE, offset: i * 4096, length: MiB }));
      void client.stream.send(Buffer.alloc(i * 7001, 0xee));
      await sleep(i % 3);
      client.close();
    }
    await expectFdCount(disk, before + THREADS_FDS);
    const client = await disk.open();
    const end = VANISHING_CLIENTS * 4096 + MiB;
    assertSameBytes(await client.read(end, disk.bytes - end), disk.content.subarray(end));
    client.close();
  });

  test("with replies outstanding leave nothing behind", async () => {
    await using disk = await serve();
    const before = disk.daemon.fdCount();
    for (let i = 0; i < VANISHING_CLIENTS; i++) {
      const client = await disk.open();
      for (let n = 0; n < 64; n++) client.request(NBD_CMD_READ, 0, 3 * MiB).catch(() => {});
      await sleep(i % 4);
      client.close();
    }
    await expectFdCount(disk, before + THREADS_FDS);
    await expectServes(disk);
  });
});

describe("clients that stop reading", () => {
  test("stall nobody else, and get their data when they go on", async () => {
    await using disk = await serve();
    const stalled = await disk.open();
    stalled.stream.pause();
    const late = Array.from({ length: 32 }, () => stalled.read(0, 2 * MiB));
    const others = await openMany(disk, 4);
    for (let n = 0; n < 100; n++) {
      const reads = others.map((each) => each.read(n * 512, 70_000));
      const wanted = disk.content.subarray(n * 512, n * 512 + 70_000);
      for (const read of reads) assertSameBytes(await read, wanted);
    }
    stalled.stream.resume();
    for (const read of late) assertSameBytes(await read, disk.content.subarray(0, 2 * MiB));
    for (const each of [stalled, ...others]) each.close();
  });
});

describe("1000 idle connections", () => {
  test("disturb nobody, and leave no descriptor and little memory behind", async () => {
    await using disk = await serve({ server: "max-connections=0" });
    const fds = disk.daemon.fdCount();
    await expectServes(disk);
    await expectFdCount(disk, fds + THREADS_FDS);
    const resident = disk.daemon.residentKiB();
    for (let round = 0; round < 2; round++) {
      const idle = await openMany(disk, 1000);
      expect(disk.daemon.fdCount()).toBeGreaterThanOrEqual(fds + 1000);
      await expectServes(disk);
      for (const client of idle) client.close();
      await expectFdCount(disk, fds + THREADS_FDS);
    }
    expect(disk.daemon.residentKiB() - resident).toBeLessThan(48 * 1024);
    await expectServes(disk);
  });
});
