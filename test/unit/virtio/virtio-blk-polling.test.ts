/** VirtioBlk while somebody looks at its queues all the time. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { VIRTIO_F_RING_PACKED } from "../../../src/abi/virtio-ring.ts";
import { BlockBackend } from "../../../src/block/backend.ts";
import type { Reactor } from "../../../src/io/reactor.ts";
import { GuestMemory } from "../../../src/virtio/guest-memory.ts";
import { VirtioBlk } from "../../../src/virtio/virtio-blk.ts";
import { FakeNode } from "../../support/fake-node.ts";
import { ENGINES, makeReactor, runOn } from "../../support/reactor.ts";
import { blkRequest, type DriverQueue, GuestRam, makeDriver } from "../../support/virtio-driver.ts";

const MiB = 1024 * 1024;
const SIZE = 128;

for (const engine of ENGINES) {
  for (const packed of [false, true]) {
    describe(`VirtioBlk, polled, on ${engine}, ${packed ? "packed" : "split"} ring`, () => {
      let reactor: Reactor;
      let node: FakeNode;
      let backend: BlockBackend;
      let ram: GuestRam;
      let memory: GuestMemory;
      let device: VirtioBlk;
      let front: DriverQueue;

      beforeEach(() => {
        reactor = makeReactor(engine);
        ram = new GuestRam(reactor.linux, 8 * MiB);
        node = new FakeNode(reactor, MiB);
        backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
        memory = new GuestMemory(reactor.linux);
        memory.add(ram.region());
        device = new VirtioBlk({
          reactor,
          backend,
          memory,
          queueCount: 2,
          blockBytes: 512,
          writable: true,
          serial: "",
          onCall: () => {},
          onBroken: () => {},
        });
        const packedBit = 1n << BigInt(VIRTIO_F_RING_PACKED);
        device.setFeatures(packed ? device.features : device.features & ~packedBit);
        front = makeDriver(ram, packed, { size: SIZE, eventIdx: true });
        const { addresses } = front;
        const base = packed ? 0x8000_8000 : 0;
        expect(device.startQueue(1, { size: SIZE, addresses, base, inflight: null })).toBe(0);
        device.pollsQueues = true;
      });
      afterEach(async () => {
        await runOn(reactor, () => device.stop());
        memory.clear();
        expect([reactor.requests.inUse, backend.inFlight, reactor.engine.inFlight]).toEqual([
          0, 0, 0,
        ]);
        ram.close();
        reactor.engine.close();
        reactor.memory.unmap();
      });

      const data = () => ({ at: ram.allocate(512), bytes: 512, write: true });
      const add = () => front.add(blkRequest(ram, 0, 0, [data()]).pieces, true);

      /** Turns the reactor until `count` requests have ended. */
      async function end(count: number): Promise<void> {
        await runOn(reactor, async () => {
          let left = count - front.collect().length;
          while (left > 0) {
            await reactor.sleep(10_000);
            left -= front.collect().length;
          }
          expect(left).toBe(0);
        });
      }

      test("kicks are allowed only before sleeping", async () => {
        expect([device.poll(), device.allowKicks()]).toEqual([false, false]);
        add();
        expect(front.mustKick()).toBe(true);
        expect([device.poll(), device.poll()]).toEqual([true, false]);
        add();
        expect(front.mustKick()).toBe(false);
        expect([device.allowKicks(), device.poll()]).toEqual([true, true]);
        expect(device.allowKicks()).toBe(false);
        await end(2);
        add();
        expect(front.mustKick()).toBe(true);
        device.pollsQueues = false;
        device.processQueue(1);
        add();
        expect(front.mustKick()).toBe(true);
        device.processQueue(1);
        await end(2);
      });

      test("each look takes a part of much, so that the first need not wait for all", async () => {
        node.hold();
        for (let i = 0; i < 100; i++) add();
        const inUse: number[] = [];
        while (device.poll()) inUse.push(reactor.requests.inUse);
        expect(inUse).toEqual([64, 100]);
        node.go();
        await end(100);
      });
    });
  }
}
