/**
 * LUKS headers that lie: bytes of them changed at random. They are refused in words, or what they
 * ask for is bounded; in an image, opening it fails in words or its data is what it was.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { LUKS_HEADER_BYTES, LUKS_HEADER_KEY_SLOTS } from "../../src/abi/luks.ts";
import * as abi from "../../src/abi/qcow2.ts";
import { file } from "../../src/block/drivers/file/index.ts";
import { qcow2 } from "../../src/block/drivers/qcow2/index.ts";
import { OP_READ, OP_WRITE, OP_WRITE_ZEROES, type Op, PERM_ALL } from "../../src/block/node.ts";
import { ITERATIONS_MAX, materialBytes, parseLuksHeader } from "../../src/crypto/luks-header.ts";
import { OutportError } from "../../src/util/error.ts";
import { openContext, Payload } from "../support/block.ts";
import { type EncryptedImage, encryptedImage, LUKS_OFFSET } from "../support/encrypted-image.ts";
import { temporaryDirectory } from "../support/images.ts";
import { type OpenedImage, openQcow2 } from "../support/qcow2-rig.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";

const HEADERS = fuzzCases(20_000);
const IMAGES = fuzzCases(150);

const reactor = makeReactor("epoll");
const payload = new Payload(reactor, 128 * 1024);
const options = { encrypt: { format: "luks", "key-secret": "key" } };
let made: EncryptedImage;

beforeAll(async () => {
  made = await encryptedImage();
});
afterAll(() => {
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
});

const INTERESTING = [0, 1, 7, 8, 32, 64, 4000, 0xac71f3, 0xdead, 0x7fff_ffff, 0xffff_ffff];

/** Of names, numbers and slots, all in [0, LUKS_HEADER_BYTES). */
function spoil(random: Random, bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let i = 1 + random.below(3); i > 0; i--) {
    const start = random.pick([0, 0, LUKS_HEADER_KEY_SLOTS]);
    const at = start + random.below((LUKS_HEADER_BYTES - start) / 4) * 4;
    if (random.chance(0.5)) view.setUint32(at, random.pick(INTERESTING));
    else bytes[at + random.below(4)] = random.below(256);
  }
}

const isBounded = (count: number): boolean => count >= 1 && count <= ITERATIONS_MAX;

/** What it says, if it is refused. */
async function complaint(action: () => Promise<unknown> | unknown): Promise<string> {
  try {
    await action();
    return "";
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    expect(error.message.length).toBeGreaterThan(5);
    return error.message;
  }
}

async function request({ backend, node }: OpenedImage, random: Random): Promise<void> {
  const op = random.pick<Op>([OP_READ, OP_WRITE, OP_WRITE_ZEROES]);
  const offset = random.below(node.bytes);
  const bytes = Math.min(1 + random.below(100_000), node.bytes - offset);
  const result = await runOn(reactor, () => backend.request(op, offset, bytes, payload.address, 0));
  expect(result).toBeLessThanOrEqual(0);
}

describe("a LUKS header with random flaws", () => {
  test("is refused, or asks for nothing without bounds", async () => {
    const random = new Random(randomSeed());
    const sound = made.image.slice(LUKS_OFFSET, LUKS_OFFSET + LUKS_HEADER_BYTES);
    let refused = 0;
    for (let i = 0; i < HEADERS; i++) {
      const bytes = sound.slice();
      spoil(random, bytes);
      const text = await complaint(() => {
        const header = parseLuksHeader(bytes);
        const { keyBytes, payloadOffset, slots } = header;
        expect([32, 64]).toContain(keyBytes);
        expect(isBounded(header.digestIterations)).toBe(true);
        for (const slot of slots) {
          if (slot.isActive) expect(isBounded(slot.iterations)).toBe(true);
          expect(slot.offset + materialBytes(keyBytes)).toBeLessThanOrEqual(payloadOffset);
        }
      });
      if (text !== "") refused++;
    }
    expect(refused).toBeGreaterThan(HEADERS / 10);
    expect(refused).toBeLessThan(HEADERS);
  });

  test("in an image is refused, or does not matter", async () => {
    const random = new Random(randomSeed());
    await using folder = await temporaryDirectory();
    const path = folder.file("image.qcow2");
    for (let i = 0; i < IMAGES; i++) {
      const image = made.image.slice();
      const view = new DataView(image.buffer);
      if (random.chance(0.5)) spoil(random, image.subarray(LUKS_OFFSET));
      // An L2 table somewhere, with entries that lead anywhere.
      view.setUint32(0x30000, 0x8000_0000);
      view.setUint32(0x30004, random.pick([0, 0x40000, 0x50000, 0x60000]));
      for (let n = random.below(20); n > 0; n--) {
        view.setUint32(0x60000 + random.below(256) * 4, random.u32());
      }
      const pointer = abi.HEADER_LENGTH_KNOWN + abi.EXTENSION_TYPE + random.below(6) * 4;
      if (random.chance(0.5)) view.setUint32(pointer, random.pick([...INTERESTING, random.u32()]));
      writeFileSync(path, image);
      const node = await runOn(reactor, () =>
        file.open(openContext(reactor, { options: { filename: path } })),
      );
      await runOn(reactor, () => node.setPermissions(0, PERM_ALL));
      const context = openContext(reactor, { options, children: { file: node } });
      const lock = await complaint(() => runOn(reactor, () => qcow2.encryption!.readLock(context)));
      await runOn(reactor, () => node.close());
      const opening = await complaint(async () => {
        const opened = await openQcow2(reactor, { path, options, key: made.key.slice() });
        for (let n = 0; n < 4; n++) await request(opened, random);
        await opened.close();
      });
      if (lock !== "") expect(opening).not.toBe("");
    }
  });
});
