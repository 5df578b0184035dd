/**
 * Images whose snapshots lie: bits of the header, the snapshot table, and the tables of snapshots
 * flipped at random. Opening refuses them in words, or they are taken and deleted, or that fails;
 * nothing throws or hangs. What only a snapshot says never costs the disk its data.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { HEADER_NB_SNAPSHOTS } from "../../src/abi/qcow2.ts";
import { SNAPSHOT_HEADER_BYTES } from "../../src/abi/qcow2-snapshots.ts";
import { OP_FLUSH, OP_READ, OP_WRITE } from "../../src/block/node.ts";
import { OutportError } from "../../src/util/error.ts";
import { Payload } from "../support/block.ts";
import { pattern, temporaryDirectory } from "../support/images.ts";
import { emptyImage } from "../support/qcow2-header.ts";
import { openImage } from "../support/qcow2-reader.ts";
import { type OpenedImage, openQcow2 } from "../support/qcow2-rig.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";

const CASES = fuzzCases(150);
const CLUSTER = 65_536;
const CLUSTERS = 6;

const reactor = makeReactor("epoll");
const payload = new Payload(reactor, CLUSTER);

afterAll(() => {
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
});

const request = (image: OpenedImage, op: 0 | 1 | 2, cluster: number) =>
  runOn(reactor, () => {
    const bytes = op === OP_FLUSH ? 0 : CLUSTER;
    return image.backend.request(op, cluster * CLUSTER, bytes, payload.address, 0);
  });

async function write(image: OpenedImage, cluster: number, seed: number): Promise<number> {
  payload.u8.set(pattern(CLUSTER, seed));
  return request(image, OP_WRITE, cluster);
}

/** Three snapshots, each with some clusters of its own. The disk's have these seeds. */
async function sound(path: string): Promise<readonly number[]> {
  writeFileSync(path, emptyImage());
  const image = await openQcow2(reactor, { path });
  const seeds = new Array<number>(CLUSTERS).fill(0);
  for (let round = 0; round < 3; round++) {
    for (let cluster = round; cluster < CLUSTERS; cluster++) {
      seeds[cluster] = round * 100 + cluster + 1;
      expect(await write(image, cluster, seeds[cluster]!)).toBe(0);
    }
    await runOn(reactor, () => image.node.takeSnapshot!(`s${round}`, 1e15));
  }
  await image.close();
  return seeds;
}

/** Where the snapshots' own metadata lies: the table and the L1 tables. */
function regionsOf(path: string): readonly (readonly [number, number])[] {
  const { header, snapshots } = openImage(path);
  const entries = snapshots.length * (SNAPSHOT_HEADER_BYTES + 40);
  return [
    [header.snapshots.offset, entries],
    ...snapshots.map(({ l1 }) => [l1.offset, 8] as const),
    [HEADER_NB_SNAPSHOTS, 12],
  ];
}

async function act(image: OpenedImage, random: Random): Promise<void> {
  const listed = (image.node.describe().image?.snapshots ?? []) as { id: string; name: string }[];
  if (listed.length > 0 && random.chance(0.6)) {
    const { id, name } = random.pick(listed);
    const result = await runOn(reactor, () => image.node.deleteSnapshot!(id, name));
    expect(result).toBeLessThanOrEqual(0);
  } else {
    const result = await runOn(reactor, () => image.node.takeSnapshot!("new", 1e15));
    expect(typeof result === "object" || result < 0).toBe(true);
  }
}

async function openOrRefuse(path: string): Promise<OpenedImage | null> {
  try {
    return await openQcow2(reactor, { path });
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    expect(error.message).not.toBe("");
    return null;
  }
}

describe("qcow2 with snapshots that lie", () => {
  test("keeps the disk", async () => {
    await using folder = await temporaryDirectory();
    const path = folder.file("image.qcow2");
    const seeds = await sound(path);
    const regions = regionsOf(path);
    const original = new Uint8Array(readFileSync(path));
    const first = randomSeed();
    let opened = 0;
    for (let i = 0; i < CASES; i++) {
      const random = new Random(first + i);
      const bytes = original.slice();
      for (let n = random.below(3) + 1; n > 0; n--) {
        const [start, length] = random.pick(regions);
        const at = start + random.below(length);
        bytes[at] = random.chance(0.5) ? bytes[at]! ^ (1 << random.below(8)) : random.below(256);
      }
      writeFileSync(path, bytes);
      const image = await openOrRefuse(path);
      if (image === null) continue;
      opened++;
      for (let n = 0; n < 3; n++) await act(image, random);
      for (const [cluster, seed] of seeds.entries()) {
        // Marked as corrupt, it says nothing any more.
        if ((await request(image, OP_READ, cluster)) !== 0) continue;
        expect([i, cluster, Buffer.compare(payload.u8, pattern(CLUSTER, seed))]).toEqual([
          i,
          cluster,
          0,
        ]);
      }
      await image.close();
    }
    expect(opened).toBeGreaterThan(CASES / 5);
  }, 180_000);

  test("refuses tables of absurd size in no time", async () => {
    await using folder = await temporaryDirectory();
    const path = folder.file("image.qcow2");
    await sound(path);
    const original = readFileSync(path);
    for (const count of [65_536, 65_537, 0xffff_ffff]) {
      const bytes = Buffer.from(original);
      bytes.writeUInt32BE(count, HEADER_NB_SNAPSHOTS);
      writeFileSync(path, bytes);
      const begun = performance.now();
      const image = await openOrRefuse(path);
      await image?.close();
      expect(performance.now() - begun).toBeLessThan(10_000);
      expect(image === null || count === 65_536).toBe(true);
    }
  }, 60_000);
});
