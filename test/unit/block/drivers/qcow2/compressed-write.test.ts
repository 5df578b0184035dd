import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import type { Qcow2Node } from "../../../../../src/block/drivers/qcow2/node.ts";
import { OP_DISCARD, OP_FLUSH, OP_READ, OP_WRITE } from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { EIO, ENOTSUP } from "../../../../../src/runtime/errno.ts";
import { Payload } from "../../../../support/block.ts";
import { run } from "../../../../support/clients.ts";
import { encryptedImage } from "../../../../support/encrypted-image.ts";
import {
  KiB,
  pattern,
  type TemporaryDirectory,
  temporaryDirectory,
} from "../../../../support/images.ts";
import { checkImage, openImage } from "../../../../support/qcow2-reader.ts";
import { type OpenedImage, openQcow2 } from "../../../../support/qcow2-rig.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const CLUSTER = 4 * KiB;

let folder: TemporaryDirectory;
let path: string;
let reactor: Reactor;
let image: OpenedImage;
let node: Qcow2Node;
let payload: Payload;

beforeEach(async () => {
  folder = await temporaryDirectory();
  path = folder.file("image.qcow2");
  reactor = makeReactor("epoll");
  payload = new Payload(reactor, 256 * KiB);
});

afterEach(async () => {
  expect(image.events).toEqual([]);
  await image.close();
  expect([reactor.requests.inUse, reactor.engine.inFlight]).toEqual([0, 0]);
  reactor.engine.close();
  reactor.memory.unmap();
  await folder[Symbol.asyncDispose]();
});

async function open(create = "cluster_size=4k", bytes = 512 * KiB): Promise<void> {
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", create, path, String(bytes)]);
  const dataFile = /data_file=([^,]*)/.exec(create)?.[1];
  // What is given up is free at once then.
  const options = { "pass-discard-request": false };
  const more = dataFile === undefined ? {} : { dataFile };
  image = await openQcow2(reactor, { path, options, ...more });
  node = image.node as Qcow2Node;
}

/** Half noise: it gets about half as long. */
function bytesOf(bytes: number, seed: number): Uint8Array<ArrayBuffer> {
  const content = new Uint8Array(bytes).fill(seed);
  for (let at = 0; at < bytes; at += CLUSTER) {
    const noise = pattern(Math.min(CLUSTER / 2, bytes - at), seed * 1000 + at);
    content.set(noise, at);
  }
  return content;
}

function compress(offset: number, content: Uint8Array): Promise<number> {
  payload.u8.set(content);
  const { length } = content;
  return runOn(reactor, () => node.writeCompressed(offset, length, payload.address));
}

function ask(op: 0 | 1 | 2 | 3, offset: number, bytes: number): Promise<number> {
  return runOn(reactor, () => image.backend.request(op, offset, bytes, payload.address, 0));
}

async function read(offset: number, bytes: number): Promise<Uint8Array> {
  payload.u8.fill(0xee);
  expect(await ask(OP_READ, offset, bytes)).toBe(0);
  return payload.u8.slice(0, bytes);
}

/** Closes it; the independent reader finds nothing wrong, and the same bytes. */
async function expectOnDisk(offset: number, content: Uint8Array<ArrayBuffer>): Promise<void> {
  await image.close();
  const closed = openImage(path);
  expect(checkImage(closed)).toMatchObject({ leaks: [], corruptions: [] });
  expect(new Uint8Array(closed.read(offset, content.length))).toEqual(content);
  image = await openQcow2(reactor, { path });
  node = image.node as Qcow2Node;
}

/** Entries of the first L2 table, by the file. */
function entriesOf(count: number): bigint[] {
  const file = readFileSync(path);
  const table = Number(file.readBigUInt64BE(Number(file.readBigUInt64BE(40))) & (2n ** 56n - 512n));
  return Array.from({ length: count }, (_, i) => file.readBigUInt64BE(table + 8 * i));
}

const offsetOf = (entry: bigint): number => Number(entry & (2n ** 58n - 1n));

describe("a compressed write", () => {
  test("packs clusters, several to a host cluster, none marked as its own", async () => {
    await open();
    const content = bytesOf(4 * CLUSTER, 1);
    for (let i = 0; i < 4; i++) {
      const one = content.subarray(i * CLUSTER, (i + 1) * CLUSTER);
      expect(await compress(i * CLUSTER, one)).toBe(0);
    }
    expect(await read(0, content.length)).toEqual(content);
    await expectOnDisk(0, content);
    const entries = entriesOf(4);
    expect(entries.map((entry) => entry >> 62n)).toEqual([1n, 1n, 1n, 1n]);
    const hosts = entries.map(offsetOf).sort((a, b) => a - b);
    // Four of about half a cluster each.
    expect(hosts.at(-1)! - hosts[0]!).toBeLessThan(2 * CLUSTER);
  });

  test("keeps what it does not cover", async () => {
    await open();
    const content = bytesOf(3 * CLUSTER, 2);
    await compress(0, content);
    const part = bytesOf(CLUSTER + 600, 3);
    expect(await compress(CLUSTER - 300, part)).toBe(0);
    content.set(part, CLUSTER - 300);
    expect(await read(0, content.length)).toEqual(content);
    await expectOnDisk(0, content);
    expect(entriesOf(3).every((entry) => entry >> 62n === 1n)).toBe(true);
  });

  test("of what does not get shorter is a plain one", async () => {
    await open();
    const noise = new Uint8Array(pattern(CLUSTER, 7));
    expect(await compress(0, noise)).toBe(0);
    await expectOnDisk(0, noise);
    expect(entriesOf(1)[0]! >> 63n).toBe(1n);
  });

  test("of a part goes to the place of a plain cluster", async () => {
    await open();
    const content = new Uint8Array(pattern(CLUSTER, 8));
    payload.u8.set(content);
    await ask(OP_WRITE, 0, CLUSTER);
    await ask(OP_FLUSH, 0, 0);
    const before = entriesOf(1);
    expect(await compress(512, new Uint8Array(1024))).toBe(0);
    content.fill(0, 512, 1536);
    await expectOnDisk(0, content);
    expect(entriesOf(1)).toEqual(before);
  });

  test("takes the place of plain and compressed clusters, which are given up", async () => {
    await open();
    payload.u8.set(pattern(8 * CLUSTER, 9));
    await ask(OP_WRITE, 0, 8 * CLUSTER);
    for (const seed of [4, 5, 6]) {
      const content = bytesOf(8 * CLUSTER, seed);
      expect(await compress(0, content)).toBe(0);
      await expectOnDisk(0, content);
    }
    const bytes = readFileSync(path).length;
    expect(bytes).toBeLessThan(32 * CLUSTER);
  });

  test("pads the last cluster of a disk", async () => {
    await open("cluster_size=4k", 10 * KiB);
    const content = bytesOf(10 * KiB, 5);
    expect(await compress(0, content)).toBe(0);
    expect(await read(0, content.length)).toEqual(content);
    await expectOnDisk(0, content);
    expect(entriesOf(3)[2]! >> 62n).toBe(1n);
  });

  test("replaces all subclusters", async () => {
    await open("cluster_size=16k,extended_l2=on");
    payload.u8.set(pattern(KiB, 1));
    await ask(OP_WRITE, 2 * KiB, KiB);
    const content = bytesOf(16 * KiB, 6);
    expect(await compress(0, content)).toBe(0);
    const part = bytesOf(512, 7);
    expect(await compress(3 * KiB, part)).toBe(0);
    content.set(part, 3 * KiB);
    await expectOnDisk(0, content);
  });

  test("is refused where data lies in a file of its own", async () => {
    await open(`data_file=${folder.file("data.raw")}`);
    expect(await compress(0, new Uint8Array(CLUSTER))).toBe(-ENOTSUP);
  });

  test("is refused where it would lie in clear among what is encrypted", async () => {
    const encrypted = await encryptedImage();
    writeFileSync(path, encrypted.image);
    const options = { encrypt: { format: "luks", "key-secret": "key" } };
    image = await openQcow2(reactor, { path, key: encrypted.key, options });
    node = image.node as Qcow2Node;
    expect(await compress(0, new Uint8Array(64 * KiB).fill(1))).toBe(-ENOTSUP);
    expect(await read(0, 512)).toEqual(new Uint8Array(512));
  });

  test("is what no image with a data file may have", async () => {
    const dataFile = folder.file("data.raw");
    await open(`data_file=${dataFile}`);
    await ask(OP_WRITE, 0, CLUSTER);
    await image.close();
    const file = readFileSync(path);
    const l2 = Number(file.readBigUInt64BE(Number(file.readBigUInt64BE(40))) & (2n ** 56n - 512n));
    file.writeBigUInt64BE((1n << 62n) | 0x5000n, l2);
    writeFileSync(path, file);
    image = await openQcow2(reactor, { path, dataFile, readOnly: true });
    expect(await ask(OP_READ, 0, 512)).toBe(-EIO);
    const at = `(L2 offset: 0x${l2.toString(16)}, L2 index: 0)`;
    const what = "Compressed cluster entry found in image with external data file";
    expect(image.events).toMatchObject([{ message: `${what} ${at}`, fatal: false }]);
    await image.close();
    image = await openQcow2(reactor, { path, dataFile, readOnly: true });
  });

  test("does not go on in a host cluster that was given up", async () => {
    await open();
    const first = bytesOf(CLUSTER, 1);
    await compress(0, first);
    await ask(OP_FLUSH, 0, 0);
    await ask(OP_DISCARD, 0, CLUSTER);
    await ask(OP_FLUSH, 0, 0);
    // What allocates sees first what is free by now, and then takes it.
    const plain = new Uint8Array(pattern(2 * CLUSTER, 2));
    payload.u8.set(plain);
    await ask(OP_WRITE, 20 * CLUSTER, CLUSTER);
    await runOn(reactor, () => reactor.sleep(1_000_000));
    await ask(OP_WRITE, 8 * CLUSTER, 2 * CLUSTER);
    // There would be room for it in the same cluster.
    const second = new Uint8Array(CLUSTER).fill(3);
    expect(await compress(0, second)).toBe(0);
    expect(await read(8 * CLUSTER, 2 * CLUSTER)).toEqual(plain);
    await expectOnDisk(8 * CLUSTER, plain);
    await expectOnDisk(0, second);
  });

  test("gives each a host cluster where refcounts have no room", async () => {
    await open("cluster_size=4k,refcount_bits=1");
    const content = bytesOf(4 * CLUSTER, 8);
    expect(await compress(0, content)).toBe(0);
    await expectOnDisk(0, content);
    const hosts = entriesOf(4).map((entry) => Math.floor(offsetOf(entry) / CLUSTER));
    expect(new Set(hosts).size).toBe(4);
  });

  test("works on several clusters at a time, with others", async () => {
    await open("cluster_size=64k", 4096 * KiB);
    const { memory } = reactor;
    const content = bytesOf(1024 * KiB, 9);
    const at = await reactor.allocate(1024 * KiB);
    memory.u8.set(content, at);
    const address = memory.address + at;
    const results = await runOn(reactor, () =>
      Promise.all(
        [0, 1, 2, 3].map((i) =>
          node.writeCompressed(i * 256 * KiB, 256 * KiB, address + i * 256 * KiB),
        ),
      ),
    );
    reactor.buffers.free(at);
    expect(results).toEqual([0, 0, 0, 0]);
    await expectOnDisk(0, content);
  });
});
