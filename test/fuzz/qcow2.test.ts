/**
 * Images that lie: bits of their metadata flipped at random. Opening refuses them in words, or
 * requests succeed or fail; nothing throws, hangs, or writes to where the header is.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { closeSync, openSync, readSync, writeFileSync } from "node:fs";
import * as abi from "../../src/abi/qcow2.ts";
import {
  type BlockStatus,
  OP_DISCARD,
  OP_FLUSH,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  type Op,
  REQ_MAY_UNMAP,
} from "../../src/block/node.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { OutportError } from "../../src/util/error.ts";
import { Payload } from "../support/block.ts";
import { temporaryDirectory } from "../support/images.ts";
import { type OpenedImage, openQcow2 } from "../support/qcow2-rig.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";
import {
  COMPRESSED_DATA,
  L1_TABLE,
  L2_TABLE,
  REFCOUNT_BLOCK,
  REFCOUNT_TABLE,
  soundImage,
  withCompressed,
  withSnapshot,
} from "./corpus/make.ts";

const CASES = fuzzCases(150);
const REQUESTS = 12;
const REQUEST_BYTES = 128 * 1024;
/** What is changed most: header, refcount table and block, L1 and L2 table of soundImage(). */
const REGIONS = [
  [0, 128],
  [REFCOUNT_TABLE, 16],
  [REFCOUNT_BLOCK, 64],
  [L1_TABLE, 16],
  [L2_TABLE, 256],
] as const;
const DISK_BYTES = 64 * 1024 * 1024;

const reactor: Reactor = makeReactor("epoll");
const payload = new Payload(reactor, REQUEST_BYTES);

afterAll(() => {
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
});

async function request(image: OpenedImage, random: Random): Promise<void> {
  const op = random.pick<Op>([OP_READ, OP_WRITE, OP_WRITE, OP_WRITE_ZEROES, OP_DISCARD, OP_FLUSH]);
  const end = Math.min(image.node.bytes, DISK_BYTES);
  const offset = Math.floor(random.below(Math.max(end / 16, 1)) / 512) * 512;
  const bytes = Math.min(random.below(REQUEST_BYTES / 512) * 512 + 512, end - offset);
  if (bytes <= 0) return;
  const flags = op === OP_WRITE_ZEROES ? random.pick([0, REQ_MAY_UNMAP]) : 0;
  const result = await runOn(reactor, () =>
    op === OP_FLUSH
      ? image.backend.request(op, 0, 0, 0, 0)
      : image.backend.request(op, offset, bytes, payload.address, flags),
  );
  expect(result).toBeLessThanOrEqual(0);
  const out: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
  const status = await runOn(reactor, async () => image.node.blockStatus(offset, bytes, out));
  if (status === 0) expect(out.bytes > 0 && out.bytes <= bytes).toBe(true);
}

/** What the driver never changes: magic and version, cluster size, size of the disk. */
function fixedFields(path: string): Uint8Array {
  const header = new Uint8Array(abi.HEADER_CRYPT_METHOD);
  const fd = openSync(path, "r");
  readSync(fd, header, 0, header.length, 0);
  closeSync(fd);
  return header;
}

/** Images to damage, and where. */
function bases(): readonly (readonly [image: Uint8Array, regions: Regions])[] {
  const plain = soundImage();
  const full = withSnapshot(withCompressed(plain.slice()));
  const subclusters = plain.slice();
  const view = new DataView(subclusters.buffer);
  view.setUint32(abi.HEADER_INCOMPATIBLE_FEATURES + 4, abi.QCOW2_INCOMPAT_EXTL2);
  // Entries of twice the size: all of the first two clusters is data.
  view.setBigUint64(L2_TABLE + 8, 0xffff_ffffn);
  view.setBigUint64(L2_TABLE + 16, view.getBigUint64(L2_TABLE + 40));
  view.setBigUint64(L2_TABLE + 24, 0xffff_0000_0000_ffffn);
  view.setBigUint64(L2_TABLE + 40, 0n);
  view.setBigUint64(L2_TABLE + 72, 0n);
  return [
    [plain, REGIONS],
    [full, [...REGIONS, [plain.length, 80], [COMPRESSED_DATA, 64]]],
    [subclusters, REGIONS],
  ];
}

type Regions = readonly (readonly [start: number, bytes: number])[];

function damage(image: Uint8Array, regions: Regions, random: Random): void {
  for (let i = random.below(4) + 1; i > 0; i--) {
    const [start, bytes] = random.pick(regions);
    const at = start + random.below(bytes);
    image[at] = random.chance(0.5) ? image[at]! ^ (1 << random.below(8)) : random.below(256);
  }
}

describe("qcow2", () => {
  test("survives damaged metadata", async () => {
    await using folder = await temporaryDirectory();
    const path = folder.file("image.qcow2");
    const images = bases();
    const first = randomSeed();
    let opened = 0;
    for (let i = 0; i < CASES; i++) {
      const random = new Random(first + i);
      const [original, regions] = images[i % images.length]!;
      const bytes = original.slice();
      damage(bytes, regions, random);
      writeFileSync(path, bytes);
      const before = fixedFields(path);
      let image: OpenedImage;
      try {
        image = await openQcow2(reactor, { path, readOnly: random.chance(0.2) });
      } catch (error) {
        if (!(error instanceof OutportError)) throw error;
        expect(error.message).not.toBe("");
        continue;
      }
      opened++;
      for (let n = 0; n < REQUESTS; n++) await request(image, random);
      await image.close();
      expect(fixedFields(path)).toEqual(before);
    }
    // Most damage shows only in use, or not at all.
    expect(opened).toBeGreaterThan(CASES / 5);
  }, 180_000);
});
