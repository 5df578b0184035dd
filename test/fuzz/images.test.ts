/**
 * Images of the formats that are only read, with lies in their metadata and cut short: opening
 * refuses them in words, or every read ends in data or an error; nothing throws, hangs, or looks
 * beyond the file.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { BlockBackend } from "../../src/block/backend.ts";
import { blockDrivers } from "../../src/block/drivers/index.ts";
import {
  type BlockNode,
  type BlockStatus,
  MAPPED,
  OP_READ,
  type Resolution,
} from "../../src/block/node.ts";
import { EIO } from "../../src/runtime/errno.ts";
import { OutportError } from "../../src/util/error.ts";
import { openContext, Payload } from "../support/block.ts";
import { FakeNode } from "../support/fake-node.ts";
import { KiB } from "../support/images.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { makeReactor, runOn } from "../support/reactor.ts";
import { type SmallImage, sealVhdx, sealVpc, smallImages } from "../support/small-images.ts";

const CASES = fuzzCases(120);
const REQUESTS = 12;
const REQUEST_BYTES = 128 * KiB;
const FD = 77;
/** Values that break arithmetic more often than others. */
const EDGES = [0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];

const reactor = makeReactor("epoll");
const payload = new Payload(reactor, REQUEST_BYTES);
const bytesInUse = reactor.buffers.bytesInUse;

afterAll(() => {
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  expect(reactor.buffers.bytesInUse).toBe(bytesInUse);
  reactor.engine.close();
  reactor.memory.unmap();
});

/** Changes the file's metadata; most of the time its checksums hold nevertheless. */
function damage({ driver, metadata }: SmallImage, file: Uint8Array, random: Random): void {
  const view = new DataView(file.buffer);
  for (let i = random.below(3) + 1; i > 0; i--) {
    const [start, bytes] = random.pick(metadata);
    const at = start + random.below(bytes);
    const word = Math.min(start + Math.floor((at - start) / 4) * 4, file.length - 4);
    if (random.chance(0.3)) file[at] = file[at]! ^ (1 << random.below(8));
    else if (random.chance(0.5)) view.setUint32(word, random.pick(EDGES), random.chance(0.5));
    else view.setUint32(word, random.u32() >>> random.below(32), random.chance(0.7));
  }
  if (!random.chance(0.9)) return;
  if (driver === "vhdx") sealVhdx(file);
  if (driver === "vpc") {
    sealVpc(file.subarray(0, 512));
    sealVpc(file.subarray(file.length - 512));
  }
}

async function use(node: BlockNode, file: FakeNode, random: Random): Promise<void> {
  const backend = new BlockBackend(reactor, node, { writable: false, writethrough: false });
  const sectors = Math.floor(node.bytes / 512);
  for (let n = 0; n < REQUESTS && sectors > 0; n++) {
    const near = random.chance(0.5) ? Math.min(sectors, 8192) : sectors;
    const offset = random.below(near) * 512;
    const bytes = Math.min((random.below(REQUEST_BYTES / 512) + 1) * 512, node.bytes - offset);
    const result = await runOn(reactor, () =>
      backend.request(OP_READ, offset, bytes, payload.address, 0),
    );
    expect([0, -EIO]).toContain(result);
    const out: Resolution = { fd: -1, offset: 0, bytes: 0 };
    file.fd = FD;
    const kind = node.resolve(OP_READ, offset, bytes, out);
    file.fd = -1;
    expect(out.bytes > 0 && out.bytes <= bytes).toBe(true);
    if (kind === MAPPED) {
      expect(out.offset >= 0 && out.offset + out.bytes <= file.bytes).toBe(true);
    }
    const status: BlockStatus = { flags: 0, bytes: 0, depth: 0 };
    const said = await runOn(reactor, async () => node.blockStatus(offset, bytes, status));
    expect(said).toBe(0);
    expect(status.bytes > 0 && status.bytes <= bytes).toBe(true);
  }
  for (const { offset, bytes } of file.calls) {
    expect(offset >= 0 && offset + bytes <= file.bytes).toBe(true);
  }
}

/** Whether it could be opened. */
async function attempt(image: SmallImage, bytes: Uint8Array, random: Random): Promise<boolean> {
  const file = new FakeNode(reactor, 0);
  // Nodes are whole sectors.
  file.data = bytes.slice(0, Math.floor(bytes.length / 512) * 512);
  const driver = blockDrivers.find(({ name }) => name === image.driver)!;
  const context = openContext(reactor, { children: { file }, readOnly: true });
  let node: BlockNode;
  try {
    node = await runOn(reactor, () => driver.open(context));
  } catch (error) {
    if (!(error instanceof OutportError)) throw error;
    expect(error.message).not.toBe("");
    return false;
  }
  await use(node, file, random);
  await node.close();
  return true;
}

describe("damaged images", () => {
  const first = randomSeed();
  for (const make of smallImages) {
    const image = make();

    test(`of ${image.name} are survived`, async () => {
      let opened = 0;
      for (let i = 0; i < CASES; i++) {
        const random = new Random(first + i);
        let bytes = image.file.slice();
        damage(image, bytes, random);
        if (random.chance(0.1)) bytes = bytes.slice(0, random.below(bytes.length));
        if (await attempt(image, bytes, random)) opened++;
      }
      expect(opened).toBeGreaterThan(CASES / 50);
    }, 180_000);
  }
});
