import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BlockBackend } from "../../../../src/block/backend.ts";
import { file } from "../../../../src/block/drivers/file/index.ts";
import { luks } from "../../../../src/block/drivers/luks/index.ts";
import {
  type BlockStatus,
  OP_DISCARD,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  PERM_ALL,
  PERM_CONSISTENT_READ,
  PERM_RESIZE,
  PERM_WRITE,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  ZERO,
} from "../../../../src/block/node.ts";
import { makeLuks, type NewLuks } from "../../../../src/crypto/luks-create.ts";
import { payloadOffset } from "../../../../src/crypto/luks-layout.ts";
import { unlockLuks } from "../../../../src/crypto/luks-lock.ts";
import { OutportError } from "../../../../src/util/error.ts";
import { openContext, Payload } from "../../../support/block.ts";
import { decryptSector, PASSPHRASE } from "../../../support/encrypted-image.ts";
import { assertSameBytes, pattern } from "../../../support/images.ts";
import { makeReactor, runOn } from "../../../support/reactor.ts";

const reactor = makeReactor("epoll");
const payload = new Payload(reactor, 512 * 1024);
const folder = mkdtempSync(join(tmpdir(), "luks-"));
const path = join(folder, "volume");
const START = payloadOffset(32);
const DISK_BYTES = 1024 * 1024;
let made: NewLuks;

beforeAll(async () => {
  made = await makeLuks({ "iter-time": 0, "cipher-alg": "aes-128" }, PASSPHRASE);
});
afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
  rmSync(folder, { recursive: true });
});

/** Of a new volume, unless it is to stay. */
async function open(keeps = false) {
  if (!keeps) {
    writeFileSync(path, made.area);
    truncateSync(path, START + DISK_BYTES);
  }
  const child = await runOn(reactor, () =>
    file.open(openContext(reactor, { options: { filename: path } })),
  );
  await runOn(reactor, () => child.setPermissions(0, PERM_ALL));
  const context = openContext(reactor, { children: { file: child }, nodeName: "disk" });
  const lock = await runOn(reactor, () => luks.encryption!.readLock(context));
  const key = await unlockLuks(lock!, PASSPHRASE);
  const node = await runOn(reactor, () => luks.open({ ...context, key })).catch(async (error) => {
    await runOn(reactor, () => child.close());
    throw error;
  });
  const backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
  const close = async (): Promise<void> => {
    await runOn(reactor, () => backend.close());
    await runOn(reactor, () => node.close());
    await runOn(reactor, () => child.close());
  };
  return { node, backend, key, close };
}

describe("luks", () => {
  test("reads what it wrote, which only the key shows", async () => {
    const { node, backend, key, close } = await open();
    // The node has its own copy.
    expect(key.every((byte) => byte === 0)).toBe(true);
    expect(node.bytes).toBe(DISK_BYTES);
    const data = pattern(300_000, 7);
    payload.u8.set(data);
    const request = (op: 0 | 1 | 4, offset: number, bytes: number) =>
      runOn(reactor, () => backend.request(op, offset, bytes, payload.address, 0));
    expect(await request(OP_WRITE, 1000, data.length)).toBe(0);
    assertSameBytes(payload.u8.subarray(0, data.length), data);
    expect(await request(OP_WRITE_ZEROES, 50_000, 10_000)).toBe(0);
    data.fill(0, 49_000, 59_000);
    payload.u8.fill(1);
    expect(await request(OP_READ, 1000, data.length)).toBe(0);
    assertSameBytes(payload.u8.subarray(0, data.length), data);
    await close();
    const whole = readFileSync(path);
    // Sectors count from the start of the payload.
    const sector = whole.subarray(START + 1024, START + 1536);
    assertSameBytes(decryptSector(made.masterKey, 1024, sector), data.subarray(24, 536));
    assertSameBytes(whole.subarray(0, made.area.length), made.area);
  });

  test("maps nothing, and calls all of it data", async () => {
    const { node, close } = await open();
    const out = { fd: -1, offset: 0, bytes: 0 };
    expect(node.limits.requestAlignment).toBe(512);
    expect(
      [OP_READ, OP_WRITE, OP_WRITE_ZEROES].map((op) => node.resolve(op as 0, 0, 512, out)),
    ).toEqual([SLOW, SLOW, SLOW]);
    expect(node.resolve(OP_DISCARD, 0, 512, out)).toBe(ZERO);
    expect(node.directFile?.([]) ?? null).toBe(null);
    const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    expect(node.blockStatus(0, DISK_BYTES, status)).toBe(0);
    expect(status).toEqual({ flags: STATUS_DATA | STATUS_ALLOCATED, bytes: DISK_BYTES, depth: 1 });
    await close();
  });

  test("takes its key along, and forgets it when it is closed", async () => {
    const { node, close } = await open();
    const handedOver = node.handOver?.() as { key: Uint8Array };
    expect(handedOver.key).toEqual(made.masterKey);
    await close();
    expect(handedOver.key.every((byte) => byte === 0)).toBe(true);
  });

  test("does not open without a key, or when the file ends before the data begins", async () => {
    const noKey = runOn(reactor, async () => {
      const child = await file.open(openContext(reactor, { options: { filename: path } }));
      const opening = luks.open(openContext(reactor, { children: { file: child } }));
      return opening.finally(() => child.close());
    });
    await expect(noKey).rejects.toThrow("Parameter 'key-secret' is required for cipher");
    truncateSync(path, START - 512);
    const short = await open(true).catch((error) => error);
    expect(short).toBeInstanceOf(OutportError);
    expect(short.message).toBe("Could not refresh total sector count: Input/output error");
  });

  test("lets nobody change its header, where that lies elsewhere", () => {
    const of = { used: PERM_WRITE, shared: PERM_ALL };
    expect(luks.childPermissions!("header", of, {}, true)).toEqual({
      used: PERM_CONSISTENT_READ,
      shared: PERM_ALL & ~(PERM_WRITE | PERM_RESIZE),
    });
    expect(luks.childPermissions!("file", of, {}, true)).toEqual({
      used: PERM_WRITE | PERM_CONSISTENT_READ,
      shared: PERM_ALL,
    });
  });
});
