import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { MFD_ALLOW_SEALING, MFD_CLOEXEC } from "../../../../src/abi/memfd.ts";
import * as vu from "../../../../src/abi/vhost-user.ts";
import * as blk from "../../../../src/abi/virtio-blk.ts";
import { VIRTIO_F_VERSION_1 } from "../../../../src/abi/virtio-ring.ts";
import { ENGINES } from "../../../support/reactor.ts";
import {
  longs,
  memoryTable,
  type VhostUserClient,
  words,
} from "../../../support/vhost-user-client.ts";
import {
  fdCount,
  NO_PACKED,
  PATTERN,
  RAM_BYTES,
  ServerRig,
} from "../../../support/vhost-user-rig.ts";
import { GuestRam } from "../../../support/virtio-driver.ts";

for (const engine of ENGINES) {
  describe(`VhostUserServer on ${engine}`, () => {
    let rig: ServerRig;

    beforeEach(() => {
      rig = new ServerRig(engine);
    });
    afterEach(() => rig.close());

    /** The client is dropped with this line. */
    async function expectPanic(client: VhostUserClient, text: string) {
      expect(await client.receive()).toBeNull();
      await client.until(() => !rig.server.hasClient);
      expect(rig.logged).toEqual([`vu_panic: ${text}`]);
    }

    for (const packed of [false, true]) {
      test(`reads what it wrote, on a ${packed ? "packed" : "split"} ring`, async () => {
        const { client, queue } = await rig.ready(packed);
        const at = rig.ram.allocate(8192, 4096);
        rig.ram.u8.set(PATTERN, at);
        const out = { at, bytes: 4096, write: false };
        const data = { at: at + 4096, bytes: 4096, write: true };
        expect(await queue.request(blk.VIRTIO_BLK_T_OUT, 8, [out])).toBe(blk.VIRTIO_BLK_S_OK);
        expect(rig.node.data.subarray(4096, 8192)).toEqual(PATTERN);
        expect(await queue.request(blk.VIRTIO_BLK_T_IN, 8, [data])).toBe(blk.VIRTIO_BLK_S_OK);
        expect(rig.ram.u8.slice(at + 4096, at + 8192)).toEqual(PATTERN);
        expect(client.linux.drainEventfd(queue.callFd)).toBeGreaterThan(0);
        client.close();
        queue.close();
      });
    }

    test("lets go of every descriptor, however a session ends", async () => {
      for (const isPolite of [true, false]) {
        const { client, queue } = await rig.ready();
        await client.tell(vu.VHOST_USER_SET_VRING_ERR, longs(0), [queue.callFd]);
        await client.tell(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [queue.callFd]);
        await client.tell(vu.VHOST_USER_SET_LOG_FD, undefined, [queue.callFd]);
        if (isPolite) await queue.stop();
        queue.close();
        client.close();
        await client.until(() => !rig.server.hasClient);
        await client.until(() => fdCount() <= rig.fdsBefore);
      }
      expect(fdCount()).toBeLessThanOrEqual(rig.fdsBefore);
    });

    test("stops a ring when its requests have ended, and starts it where it was", async () => {
      const { client, queue } = await rig.ready();
      const at = rig.ram.allocate(512, 512);
      rig.node.hold();
      queue.submit(blk.VIRTIO_BLK_T_IN, 0, [{ at, bytes: 512, write: true }]);
      await client.until(() => rig.node.waitingCount === 1);
      const stopped = queue.stop();
      await rig.pause();
      expect(queue.queue.collect()).toEqual([]);
      rig.node.go();
      expect(await stopped).toBe(1);
      expect(queue.queue.collect().length).toBe(1);
      await queue.start(1);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
    });

    test("looks at no ring that is disabled", async () => {
      const { client, queue } = await rig.ready();
      await client.tell(vu.VHOST_USER_SET_VRING_ENABLE, words(0, 0));
      queue.submit(blk.VIRTIO_BLK_T_FLUSH, 0, []);
      for (let i = 0; i < 20; i++) await rig.pause();
      expect(queue.queue.collect()).toEqual([]);
      await client.tell(vu.VHOST_USER_SET_VRING_ENABLE, words(0, 1));
      await client.until(() => queue.queue.collect().length === 1);
      client.close();
      queue.close();
    });

    test("polls a ring without a kick descriptor", async () => {
      const { client, queue } = await rig.ready();
      const noFd = longs(vu.VHOST_USER_VRING_NOFD_MASK);
      await client.tell(vu.VHOST_USER_SET_VRING_KICK, noFd);
      for (let i = 0; i < 50; i++) await rig.pause();
      const at = rig.ram.allocate(512, 512);
      const data = [{ at, bytes: 512, write: true }];
      expect(await queue.request(blk.VIRTIO_BLK_T_IN, 0, data)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
    });

    test("serves the next client when the first has gone", async () => {
      const { client, queue } = await rig.ready();
      const second = rig.connect();
      second.send(vu.VHOST_USER_GET_QUEUE_NUM);
      for (let i = 0; i < 20; i++) await rig.pause();
      client.close();
      queue.close();
      const reply = await second.receive();
      expect(new DataView(reply!.payload.buffer).getBigUint64(0, true)).toBe(4n);
      second.close();
    });

    test("waits for what is in flight before it unmaps anything", async () => {
      const { client, queue } = await rig.ready();
      const at = rig.ram.allocate(4096, 4096);
      rig.ram.u8.set(PATTERN, at);
      rig.node.hold();
      queue.submit(blk.VIRTIO_BLK_T_OUT, 0, [{ at, bytes: 4096, write: false }]);
      await client.until(() => rig.node.waitingCount === 1);
      client.close();
      for (let i = 0; i < 20; i++) await rig.pause();
      expect(rig.server.hasClient).toBe(true);
      rig.node.go();
      await client.until(() => !rig.server.hasClient);
      expect(rig.node.data.subarray(0, 4096)).toEqual(PATTERN);
      queue.close();
    });

    test("logs the pages that it writes to", async () => {
      const { client, queue } = await rig.ready();
      const logFd = rig.reactor.linux.memfdCreate("log", MFD_CLOEXEC | MFD_ALLOW_SEALING);
      const log = new GuestRam(rig.reactor.linux, 64 * 1024);
      const offered = await client.askU64(vu.VHOST_USER_GET_FEATURES);
      await client.tell(vu.VHOST_USER_SET_FEATURES, longs(offered & NO_PACKED));
      await client.ask(vu.VHOST_USER_SET_LOG_BASE, longs(log.bytes, 0), [log.fd]);
      const at = rig.ram.allocate(4096, 4096);
      await queue.request(blk.VIRTIO_BLK_T_IN, 0, [{ at, bytes: 4096, write: true }]);
      const page = (rig.ram.guestAddress + at) / 4096;
      expect((log.u8[Math.floor(page / 8)]! >>> (page % 8)) & 1).toBe(1);
      rig.reactor.linux.close(logFd);
      log.close();
      client.close();
      queue.close();
    });

    test("resets the device", async () => {
      const { client, queue } = await rig.ready();
      expect(await client.tell(vu.VHOST_USER_SET_STATUS, longs(15))).toBe(0n);
      expect(await client.askU64(vu.VHOST_USER_GET_STATUS)).toBe(15n);
      await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0);
      expect(await client.tell(vu.VHOST_USER_RESET_DEVICE)).toBe(0n);
      expect(await client.askU64(vu.VHOST_USER_GET_STATUS)).toBe(0n);
      await client.tell(vu.VHOST_USER_SET_FEATURES, longs(1n << BigInt(VIRTIO_F_VERSION_1)));
      const again = rig.makeQueue(client);
      await again.start();
      expect(await again.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
      again.close();
    });

    const FAULTS: readonly (readonly [string, string, (client: VhostUserClient) => void])[] = [
      [
        "a payload beyond all bounds",
        "Error: too big message request: 2, size: vmsg->size: 4294967295, " +
          "while sizeof(vmsg->payload) = 1024",
        (client) => client.sendRaw(words(2, 1, 0xffff_ffff)),
      ],
      [
        "half a message",
        "Unexpected end-of-file before all data",
        (client) => {
          client.sendRaw(words(2, 1, 8, 0));
          client.linux.shutdown(client.fd, 1);
        },
      ],
      [
        "more descriptors than are allowed",
        "A maximum of 8 fds are allowed",
        (client) => client.sendRaw(words(3, 1, 0), new Array(9).fill(client.fd)),
      ],
      ["an unknown request", "Unhandled request: 99", (client) => client.send(99)],
      [
        "another version",
        "Unsupported version in request: 1, flags: 0x2",
        (client) => client.sendRaw(words(1, 2, 0)),
      ],
      [
        "a queue that is not there",
        "Invalid queue index: 4",
        (client) => client.send(vu.VHOST_USER_SET_VRING_NUM, words(4, 64)),
      ],
      [
        "no descriptor where one must be",
        "Invalid fds in request: 12",
        (client) => client.send(vu.VHOST_USER_SET_VRING_KICK, longs(0)),
      ],
      [
        "a legacy driver",
        "virtio legacy devices aren't supported by libvhost-user",
        (client) => client.send(vu.VHOST_USER_SET_FEATURES, longs(0)),
      ],
      [
        "a change of what can't be changed",
        "Set virtio configuration space failed",
        (client) => client.send(vu.VHOST_USER_SET_CONFIG, Uint8Array.of(...words(0, 1, 0), 1)),
      ],
      [
        "a table of memory that its file does not have",
        "region mmap error: Invalid argument",
        (client) => {
          const region = { ...rig.ram.region(), bytes: 2 * RAM_BYTES };
          client.send(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([region]), [rig.ram.fd]);
        },
      ],
    ];

    for (const [what, text, send] of FAULTS) {
      test(`drops who sends ${what}, and serves the next one`, async () => {
        const client = rig.connect();
        send(client);
        await expectPanic(client, text);
        client.close();
        const next = rig.connect();
        expect(await next.askU64(vu.VHOST_USER_GET_QUEUE_NUM)).toBe(4n);
        next.close();
      });
    }
  });
}
