/**
 * Stored dirty bitmaps that lie: bits of their extension, directory and tables flipped at random.
 * Opening refuses them in words, or they are found, perhaps inconsistent; nothing throws or hangs,
 * and memory stays bounded.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { DirtyBitmap } from "../../src/bitmaps/dirty-bitmap.ts";
import { bitmapsOf } from "../../src/bitmaps/node-bitmaps.ts";
import { OP_WRITE } from "../../src/block/node.ts";
import { OutportError } from "../../src/util/error.ts";
import { Payload } from "../support/block.ts";
import { temporaryDirectory } from "../support/images.ts";
import { emptyImage } from "../support/qcow2-header.ts";
import { memorySource, Qcow2Image } from "../support/qcow2-reader.ts";
import { type OpenedImage, openQcow2 } from "../support/qcow2-rig.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";

const CASES = fuzzCases(200);
const EXTENSION = 112;
const EXTENSION_BYTES = 40;

const reactor = makeReactor("epoll");
const payload = new Payload(reactor, 65536);

afterAll(() => {
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
});

function add({ node }: OpenedImage, name: string, granularity: number): void {
  const options = { name, bytes: node.bytes, granularity, persistent: true, enabled: true };
  bitmapsOf(node).add(new DirtyBitmap(options));
}

const write = (image: OpenedImage, random: Random): Promise<number> =>
  runOn(reactor, () => {
    const offset = random.below(image.node.bytes / 512 - 128) * 512;
    return image.backend.request(OP_WRITE, offset, 65536, payload.address, 0);
  });

/** With three bitmaps in use by nobody. */
async function sound(path: string, random: Random): Promise<Uint8Array> {
  writeFileSync(path, emptyImage());
  const image = await openQcow2(reactor, { path });
  for (const [index, granularity] of [512, 4096, 65536].entries()) {
    add(image, `b${index}`, granularity);
    for (let i = 0; i < 4; i++) await write(image, random);
  }
  await image.close();
  return new Uint8Array(readFileSync(path));
}

function damage(bytes: Uint8Array, random: Random): void {
  const { bitmaps, header } = new Qcow2Image({ source: memorySource(bytes) });
  const { offset, bytes: length } = header.bitmapDirectory!;
  const regions = [
    [EXTENSION, EXTENSION_BYTES],
    [offset, length],
    [offset, length],
    ...bitmaps.map(({ table }) => [table.offset, table.count * 8]),
  ] as [number, number][];
  for (let i = random.below(3) + 1; i > 0; i--) {
    const [start, size] = random.pick(regions);
    const at = start + random.below(size);
    bytes[at] = random.chance(0.6) ? bytes[at]! ^ (1 << random.below(8)) : random.below(256);
  }
}

/** Nothing is in flight. */
async function attempt(task: () => Promise<void>): Promise<void> {
  try {
    await runOn(reactor, task);
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    expect(error.message).not.toBe("");
  }
}

async function use(image: OpenedImage, random: Random): Promise<void> {
  const { node } = image;
  const { list } = bitmapsOf(node);
  const [some] = list;
  if (some !== undefined && random.chance(0.5)) {
    await attempt(async () => {
      await node.removeStoredBitmap!(some.name);
      bitmapsOf(node).remove(some);
    });
  }
  for (const { bits } of list) expect(bits.nextDirty(0, node.bytes)).toBeLessThan(node.bytes);
  await attempt(async () => {
    await node.checkNewBitmap!("new", 4096);
    add(image, "new", 4096);
  });
  for (let i = 0; i < 3; i++) expect(await write(image, random)).toBeLessThanOrEqual(0);
  if (random.chance(0.3)) await attempt(() => node.truncate!(node.bytes * 2));
}

describe("qcow2", () => {
  test("survives damaged bitmaps", async () => {
    await using folder = await temporaryDirectory();
    const path = folder.file("image.qcow2");
    const first = randomSeed();
    const original = await sound(path, new Random(first));
    let opened = 0;
    for (let i = 0; i < CASES; i++) {
      const random = new Random(first + i);
      const bytes = original.slice();
      damage(bytes, random);
      writeFileSync(path, bytes);
      const readOnly = random.chance(0.2);
      let image: OpenedImage;
      try {
        image = await openQcow2(reactor, { path, readOnly });
      } catch (error) {
        if (!(error instanceof OutportError)) throw error;
        expect(error.message).not.toBe("");
        // What is refused stays as it was.
        expect(Buffer.compare(readFileSync(path), bytes)).toBe(0);
        continue;
      }
      opened++;
      if (!readOnly) await use(image, random);
      await image.close();
      // It can be opened again, whatever there was.
      await (await openQcow2(reactor, { path })).close();
    }
    expect(opened).toBeGreaterThan(CASES / 10);
    expect(opened).toBeLessThan(CASES);
  }, 180_000);
});
