import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LUKS_HEADER_MK_DIGEST } from "../../../../../src/abi/luks.ts";
import * as abi from "../../../../../src/abi/qcow2.ts";
import {
  type BlockStatus,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_MAY_UNMAP,
  SLOW,
  STATUS_ALLOCATED,
  STATUS_DATA,
  ZERO,
} from "../../../../../src/block/node.ts";
import { EIO } from "../../../../../src/runtime/errno.ts";
import { Payload } from "../../../../support/block.ts";
import {
  DISK_BYTES,
  decryptSector,
  encryptedImage,
  LUKS_OFFSET,
} from "../../../../support/encrypted-image.ts";
import { assertSameBytes, pattern } from "../../../../support/images.ts";
import {
  checkImage,
  describeCorruptions,
  memorySource,
  Qcow2Image,
} from "../../../../support/qcow2-reader.ts";
import { type OpenedImage, openQcow2 } from "../../../../support/qcow2-rig.ts";
import { Random, randomSeed } from "../../../../support/random.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const reactor = makeReactor("epoll");
const payload = new Payload(reactor, 512 * 1024);
const folder = mkdtempSync(join(tmpdir(), "qcow2-encryption-"));
const path = join(folder, "image");
const options = { encrypt: { format: "luks", "key-secret": "key" } };
let made: Awaited<ReturnType<typeof encryptedImage>>;

beforeAll(async () => {
  made = await encryptedImage();
});
afterAll(() => {
  reactor.engine.close();
  reactor.memory.unmap();
  rmSync(folder, { recursive: true });
});

/** `change`: of the image before it is opened. */
async function open(change = (_image: DataView): void => {}): Promise<OpenedImage> {
  const image = made.image.slice();
  change(new DataView(image.buffer));
  writeFileSync(path, image);
  return openQcow2(reactor, { path, options, key: made.key.slice() });
}

const request = (image: OpenedImage, op: Op, offset: number, bytes: number, flags = 0) =>
  runOn(reactor, () => image.backend.request(op, offset, bytes, payload.address, flags));

const messageOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "success",
    (error: Error) => error.message,
  );

describe("an encrypted qcow2 image", () => {
  test("holds what is written to it, as an independent reader decrypts it", async () => {
    const random = new Random(randomSeed());
    const image = await open();
    const model = Buffer.alloc(DISK_BYTES);
    for (let i = 0; i < 150; i++) {
      const op = random.pick<Op>([OP_READ, OP_WRITE, OP_WRITE, OP_WRITE_ZEROES, OP_DISCARD]);
      // The backend widens what is no whole sector.
      const unit = random.pick([1, 512, 65536]);
      const offset = random.below(DISK_BYTES / unit) * unit;
      const most = Math.min(300_000, DISK_BYTES - offset);
      const bytes = Math.max(unit, random.below(Math.ceil(most / unit)) * unit);
      const data = pattern(bytes, i + 1);
      if (op === OP_WRITE) payload.u8.set(data);
      const flags = op === OP_WRITE_ZEROES ? random.pick([0, REQ_MAY_UNMAP]) : 0;
      expect(await request(image, op, offset, bytes, flags)).toBe(0);
      if (op === OP_READ) {
        assertSameBytes(payload.u8.subarray(0, bytes), model.subarray(offset, offset + bytes));
      } else if (op === OP_WRITE) {
        // What the guest gave stays as it was.
        assertSameBytes(payload.u8.subarray(0, bytes), data);
        model.set(data, offset);
      } else if (op === OP_WRITE_ZEROES) {
        model.fill(0, offset, offset + bytes);
      } else {
        const first = Math.ceil(offset / 65536) * 65536;
        const end = offset + bytes;
        const last = end === DISK_BYTES ? end : end - (end % 65536);
        if (last > first) model.fill(0, first, last);
      }
    }
    await image.close();
    const source = memorySource(readFileSync(path));
    const decrypt = (host: number, sector: Uint8Array) => decryptSector(made.key, host, sector);
    const reader = new Qcow2Image({ source, decrypt });
    const result = checkImage(reader);
    expect([describeCorruptions(result), result.leaks]).toEqual(["", []]);
    assertSameBytes(reader.read(0, DISK_BYTES), model);
  });

  test("is never mapped where it has data, and wants whole sectors", async () => {
    const image = await open();
    payload.u8.set(pattern(65536));
    expect(await request(image, OP_WRITE, 0, 65536)).toBe(0);
    const out = { fd: -1, offset: 0, bytes: 0 };
    const { node } = image;
    expect(node.limits.requestAlignment).toBe(512);
    expect(node.resolve(OP_READ, 0, 4096, out)).toBe(SLOW);
    expect(node.resolve(OP_WRITE, 0, 4096, out)).toBe(SLOW);
    expect(node.resolve(OP_WRITE, 65536, 4096, out)).toBe(SLOW);
    expect(node.resolve(OP_READ, 65536, 4096, out)).toBe(ZERO);
    expect(node.directFile?.([]) ?? null).toBe(null);
    await image.close();
  });

  test("has data where it has clusters, whatever holes its file has", async () => {
    const image = await open();
    // All zeroes, and yet no hole of the guest.
    payload.u8.fill(0);
    expect(await request(image, OP_WRITE, 0, 65536)).toBe(0);
    const out: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    await runOn(reactor, async () => image.node.blockStatus(0, DISK_BYTES, out));
    expect([out.flags, out.bytes]).toEqual([STATUS_DATA | STATUS_ALLOCATED, 65536]);
    expect(image.node.isKnownData(0, 65536)).toBe(true);
    await image.close();
    expect(
      readFileSync(path)
        .subarray(7 * 65536)
        .every((byte) => byte === 0),
    ).toBe(false);
  });

  test("grows by whole sectors, wherever its header says that it ends", async () => {
    const image = await open((view) => view.setUint32(abi.HEADER_SIZE + 4, 70_000));
    const { bytes } = image.node;
    expect(bytes).toBe(137 * 512);
    payload.u8.fill(9);
    expect(await request(image, OP_WRITE, 0, bytes)).toBe(0);
    await runOn(reactor, async () => image.node.truncate!(DISK_BYTES));
    expect(await request(image, OP_READ, 0, 65536 * 2)).toBe(0);
    const expected = new Uint8Array(65536 * 2).fill(9, 0, bytes);
    assertSameBytes(payload.u8.subarray(0, expected.length), expected);
    await image.close();
  });

  test("takes its key along, and forgets it when it is closed", async () => {
    const image = await open();
    payload.u8.set(pattern(512));
    expect(await request(image, OP_WRITE, 1024, 512)).toBe(0);
    expect(await request(image, OP_FLUSH, 0, 0)).toBe(0);
    const handedOver = image.node.handOver?.() as { key: Uint8Array };
    expect(handedOver.key).toEqual(made.key);
    const { key } = structuredClone(handedOver);
    await image.close();
    expect(handedOver.key.every((byte) => byte === 0)).toBe(true);
    const again = await openQcow2(reactor, { path, options, key });
    expect(await request(again, OP_READ, 1024, 512)).toBe(0);
    assertSameBytes(payload.u8.subarray(0, 512), pattern(512));
    await again.close();
  });

  test("does not open without a key, or when there is another one", async () => {
    writeFileSync(path, made.image);
    const required = "Parameter 'encrypt.key-secret' is required for cipher";
    expect(await messageOf(openQcow2(reactor, { path }))).toBe(required);
    expect(await messageOf(openQcow2(reactor, { path, options }))).toBe(required);
    const image = await open();
    const bytes = readFileSync(path);
    bytes[LUKS_OFFSET + LUKS_HEADER_MK_DIGEST]! ^= 1;
    writeFileSync(path, bytes);
    const invalidated = runOn(reactor, async () => image.node.invalidate?.());
    expect(await messageOf(invalidated)).toBe("The image has got another encryption key");
    await image.close();
  });

  test("keeps its keys when its tables lead there", async () => {
    const image = await open((view) => {
      // An L2 table, and in it the LUKS header for data.
      view.setUint32(0x30000, 0x8000_0000);
      view.setUint32(0x30004, 0x10000);
      view.setUint32(abi.HEADER_REFCOUNT_TABLE_OFFSET + 4, 0x10000);
      view.setUint32(0x10000, 0x8000_0000);
      view.setUint32(0x10004, LUKS_OFFSET);
    }).catch(() => null);
    if (image === null) throw new Error("it opens");
    expect(await request(image, OP_WRITE, 0, 4096)).toBe(-EIO);
    await image.close();
    const after = readFileSync(path).subarray(LUKS_OFFSET, LUKS_OFFSET + 132_096);
    assertSameBytes(after, made.image.subarray(LUKS_OFFSET, LUKS_OFFSET + 132_096));
  });

  test("counts its header when it repairs refcounts", async () => {
    const image = await open((view) => {
      view.setUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4, abi.QCOW2_INCOMPAT_DIRTY);
      for (let cluster = 0; cluster < 7; cluster++) view.setUint16(0x20000 + cluster * 2, 0);
    });
    payload.u8.set(pattern(65536));
    expect(await request(image, OP_WRITE, 0, 65536)).toBe(0);
    await image.close();
    const result = checkImage(new Qcow2Image({ source: memorySource(readFileSync(path)) }));
    expect([describeCorruptions(result), result.leaks]).toEqual(["", []]);
  });
});
