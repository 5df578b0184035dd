import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { deflateRawSync } from "node:zlib";
import { QCOW2_COMPRESSION_TYPE_ZLIB } from "../../../../../src/abi/qcow2.ts";
import type { CompressedPlace } from "../../../../../src/block/drivers/qcow2/compressed.ts";
import { ClusterCodec } from "../../../../../src/block/drivers/qcow2/compressed-codec.ts";
import { ImageFile } from "../../../../../src/block/drivers/qcow2/image-file.ts";
import { InflatedClusters } from "../../../../../src/block/drivers/qcow2/inflated-clusters.ts";
import { OP_READ } from "../../../../../src/block/node.ts";
import type { Reactor } from "../../../../../src/io/reactor.ts";
import { NONE } from "../../../../../src/io/requests.ts";
import { EIO, ENOMEM } from "../../../../../src/runtime/errno.ts";
import { Payload } from "../../../../support/block.ts";
import { FakeNode } from "../../../../support/fake-node.ts";
import { makeReactor, runOn } from "../../../../support/reactor.ts";

const CLUSTER = 64 * 1024;
const COUNT = 80;
const STRIDE = 4096;

let reactor: Reactor;
let file: FakeNode;
let inflated: InflatedClusters;
let payload: Payload;

const placeOf = (index: number): CompressedPlace => ({ offset: index * STRIDE, bytes: STRIDE });

/** Cluster `index` is full of that byte. */
beforeEach(() => {
  reactor = makeReactor("epoll");
  payload = new Payload(reactor, 2 * CLUSTER);
  file = new FakeNode(reactor, COUNT * STRIDE);
  for (let i = 0; i < COUNT; i++) {
    file.data.set(deflateRawSync(new Uint8Array(CLUSTER).fill(i)), i * STRIDE);
  }
  inflated = new InflatedClusters({
    reactor,
    file: new ImageFile(reactor, file),
    clusterBytes: CLUSTER,
    codec: new ClusterCodec(reactor, CLUSTER, QCOW2_COMPRESSION_TYPE_ZLIB),
  });
});

afterEach(async () => {
  file.go();
  await runOn(reactor, () => inflated.close());
  expect(reactor.engine.inFlight).toBe(0);
  reactor.engine.close();
  reactor.memory.unmap();
});

const readAt = (index: number, at = 0): Promise<number> =>
  inflated.read(placeOf(index), 100, 512, payload.address + at);

const readsOf = (index: number): number =>
  file.calls.filter(({ op, offset }) => op === OP_READ && offset === index * STRIDE).length;

describe("InflatedClusters", () => {
  test("inflates a cluster once for all who read in it", async () => {
    const all = () => Promise.all([0, 1, 2, 3].map((i) => readAt(7, i * 512)));
    expect(await runOn(reactor, all)).toEqual([0, 0, 0, 0]);
    expect(payload.u8.subarray(0, 2048).every((byte) => byte === 7)).toBe(true);
    expect(await runOn(reactor, () => readAt(7))).toBe(0);
    expect(readsOf(7)).toBe(1);
  });

  test("serves more readers than it has places", async () => {
    const all = async (): Promise<void> => {
      const one = async (i: number): Promise<void> => {
        expect(await readAt(i, i * 512)).toBe(0);
      };
      await Promise.all(Array.from({ length: COUNT }, (_, i) => one(i)));
    };
    await runOn(reactor, all);
    for (let i = 0; i < COUNT; i++) expect(payload.u8[i * 512 + 511]).toBe(i);
  });

  test("forgets a place that is given up, also while it is read", async () => {
    file.hold();
    const first = readAt(3);
    inflated.forget(3 * STRIDE);
    file.go();
    expect(await runOn(reactor, () => first)).toBe(0);
    expect(payload.u8[0]).toBe(3);
    file.data.copyWithin(3 * STRIDE, 5 * STRIDE, 6 * STRIDE);
    expect(await runOn(reactor, () => readAt(3))).toBe(0);
    expect(payload.u8[0]).toBe(5);
    inflated.forget(3 * STRIDE);
    file.data.copyWithin(3 * STRIDE, 6 * STRIDE, 7 * STRIDE);
    await runOn(reactor, () => readAt(3));
    expect(payload.u8[0]).toBe(6);
  });

  test("tries again what failed", async () => {
    file.fails = () => -EIO;
    expect(await runOn(reactor, () => readAt(4))).toBe(-EIO);
    file.fails = () => 0;
    file.data.fill(0xff, 4 * STRIDE, 5 * STRIDE);
    expect(await runOn(reactor, () => readAt(4))).toBe(-EIO);
    file.data.copyWithin(4 * STRIDE, 5 * STRIDE, 6 * STRIDE);
    expect(await runOn(reactor, () => readAt(4))).toBe(0);
    expect(payload.u8[0]).toBe(5);
  });

  test("fails what lies behind the end of the file, or has another length", async () => {
    const read = (place: CompressedPlace) =>
      runOn(reactor, () => inflated.read(place, 0, 512, payload.address));
    expect(await read({ offset: COUNT * STRIDE, bytes: 512 })).toBe(-EIO);
    expect(await read({ offset: 2 ** 60, bytes: 512 })).toBe(-EIO);
    file.data.set(deflateRawSync(new Uint8Array(CLUSTER + 1)), 0);
    expect(await runOn(reactor, () => readAt(0))).toBe(-EIO);
    file.data.set(deflateRawSync(new Uint8Array(CLUSTER - 1)), STRIDE);
    expect(await runOn(reactor, () => readAt(1))).toBe(-EIO);
  });

  test("has entries of different lengths for one place apart", async () => {
    expect(await runOn(reactor, () => readAt(9))).toBe(0);
    const short = { offset: 9 * STRIDE, bytes: 8 };
    expect(await runOn(reactor, () => inflated.read(short, 0, 1, payload.address))).toBe(-EIO);
    expect(await runOn(reactor, () => readAt(9))).toBe(0);
  });

  test("gives its memory back when nobody has read for some time", async () => {
    const later = (): void => reactor.timers.run(reactor.nowNs() + 6e9);
    await runOn(reactor, () => readAt(2));
    later();
    await runOn(reactor, () => readAt(2));
    later();
    expect(readsOf(2)).toBe(1);
    later();
    expect(reactor.timers.nextNs).toBe(Infinity);
    expect(await runOn(reactor, () => readAt(2))).toBe(0);
    expect(payload.u8[0]).toBe(2);
    expect(readsOf(2)).toBe(2);
  });

  test("keeps its memory while one is loaded that is forgotten already", async () => {
    const later = (): void => reactor.timers.run(reactor.nowNs() + 6e9);
    expect(await runOn(reactor, () => readAt(1))).toBe(0);
    file.hold();
    const slow = readAt(6);
    inflated.forget(6 * STRIDE);
    for (let i = 0; i < 3; i++) later();
    file.go();
    expect(await runOn(reactor, () => slow)).toBe(0);
    expect(payload.u8[0]).toBe(6);
    // Nor does it close before.
    file.hold();
    inflated.prefetch(placeOf(8));
    await runOn(reactor, () => reactor.sleep(1000));
    inflated.forget(8 * STRIDE);
    let isClosed = false;
    const closed = inflated.close().then(() => {
      isClosed = true;
    });
    await runOn(reactor, () => reactor.sleep(1000));
    expect([isClosed, file.waitingCount]).toEqual([false, 1]);
    file.go();
    await runOn(reactor, () => closed);
  });

  test("needs no second buffer where the file has blocks", async () => {
    const blocks = new FakeNode(reactor, file.bytes, { requestAlignment: 4096 });
    blocks.data = file.data.slice();
    blocks.data.copyWithin(20 * STRIDE + 700, 21 * STRIDE, 22 * STRIDE);
    const image = new ImageFile(reactor, blocks);
    const codec = new ClusterCodec(reactor, CLUSTER, QCOW2_COMPRESSION_TYPE_ZLIB);
    const others = new InflatedClusters({ reactor, file: image, clusterBytes: CLUSTER, codec });
    let last = NONE;
    for (let at = 0; at !== NONE; at = reactor.buffers.allocate(16 * 1024)) if (at > 0) last = at;
    reactor.buffers.free(last);
    const place = { offset: 20 * STRIDE + 700, bytes: 900 };
    expect(await runOn(reactor, () => others.read(place, 0, 512, payload.address))).toBe(0);
    expect(payload.u8[0]).toBe(21);
    await runOn(reactor, () => others.close());
  });

  test("fails where the host has no memory for it", async () => {
    Object.assign(reactor.linux, { mmap: () => -ENOMEM });
    expect(await runOn(reactor, () => readAt(1))).toBe(-ENOMEM);
    expect(inflated.prefetch(placeOf(2))).toBe(false);
  });

  test("prefetches as far as there is room, and ends that before it closes", async () => {
    file.hold();
    let count = 0;
    while (inflated.prefetch(placeOf(count))) count++;
    expect(count).toBeGreaterThan(3);
    expect(count).toBeLessThan(COUNT);
    const waits = readAt(COUNT - 1);
    expect(inflated.prefetch(placeOf(0))).toBe(false);
    file.go();
    expect(await runOn(reactor, () => waits)).toBe(0);
    file.hold();
    inflated.prefetch(placeOf(count));
    const closed = inflated.close();
    file.go();
    await runOn(reactor, () => closed);
  });
});
