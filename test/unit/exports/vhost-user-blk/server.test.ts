import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM } from "../../../../src/abi/linux-socket.ts";
import { MFD_ALLOW_SEALING, MFD_CLOEXEC } from "../../../../src/abi/memfd.ts";
import * as vu from "../../../../src/abi/vhost-user.ts";
import * as blk from "../../../../src/abi/virtio-blk.ts";
import { VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from "../../../../src/abi/virtio-ring.ts";
import { BlockBackend } from "../../../../src/block/backend.ts";
import { EventFds } from "../../../../src/exports/vhost-user-blk/event-fds.ts";
import { VhostUserServer } from "../../../../src/exports/vhost-user-blk/server.ts";
import type { Reactor } from "../../../../src/io/reactor.ts";
import { driver } from "../../../support/driver.ts";
import { FakeNode } from "../../../support/fake-node.ts";
import { ENGINES, makeReactor, runOn } from "../../../support/reactor.ts";
import {
  ClientQueue,
  connectTo,
  longs,
  memoryTable,
  negotiate,
  regionWords,
  VhostUserClient,
  words,
} from "../../../support/vhost-user-client.ts";
import { GuestRam, makeDriver } from "../../../support/virtio-driver.ts";

const DISK_BYTES = 1024 * 1024;
const RAM_BYTES = 4 * 1024 * 1024;
const SIZE = 64;
const NO_PACKED = ~(1n << BigInt(VIRTIO_F_RING_PACKED));
/** Both indexes 0, both wrap counters 1. */
const PACKED_BASE = 0x8000_8000;
const PATTERN = Uint8Array.from({ length: 4096 }, (_, i) => i % 251);

let socketCount = 0;
const fdCount = () => readdirSync("/proc/self/fd").length;

for (const engine of ENGINES) {
  describe(`VhostUserServer on ${engine}`, () => {
    let reactor: Reactor;
    let node: FakeNode;
    let backend: BlockBackend;
    let server: VhostUserServer;
    let listenFd: number;
    let path: string;
    let logged: string[];
    let ram: GuestRam;
    let fdsBefore: number;

    const pause = async () => {
      reactor.turn(1_000_000);
      await driver.runMicrotasks();
    };
    const connect = () => {
      const fd = connectTo(reactor.linux, path);
      return new VhostUserClient({ linux: reactor.linux, fd, pause });
    };
    const makeQueue = (client: VhostUserClient, packed = false, index = 0) =>
      new ClientQueue(client, ram, makeDriver(ram, packed, { size: SIZE, eventIdx: true }), {
        index,
        size: SIZE,
      });

    /** Connected, with memory, and one queue that runs. */
    async function ready(packed = false) {
      const client = connect();
      await negotiate(client, packed ? ~0n : NO_PACKED);
      await client.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([ram.region()]), [ram.fd]);
      const queue = makeQueue(client, packed);
      await queue.start(packed ? PACKED_BASE : 0);
      return { client, queue };
    }

    /** The client is dropped with this line. */
    async function expectPanic(client: VhostUserClient, text: string) {
      expect(await client.receive()).toBeNull();
      await client.until(() => !server.hasClient);
      expect(logged).toEqual([`vu_panic: ${text}`]);
    }

    beforeEach(() => {
      reactor = makeReactor(engine);
      node = new FakeNode(reactor, DISK_BYTES);
      backend = new BlockBackend(reactor, node, { writable: true, writethrough: false });
      path = `\0outport-test-${driver.process.pid}-${socketCount++}`;
      listenFd = reactor.linux.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
      reactor.linux.bind(listenFd, { type: "unix", path });
      reactor.linux.listen(listenFd, 5);
      ram = new GuestRam(reactor.linux, RAM_BYTES);
      logged = [];
      server = new VhostUserServer({
        reactor,
        eventFds: new EventFds(reactor),
        backend,
        exportId: "e",
        listenFd,
        blockBytes: 512,
        queueCount: 4,
        serial: "abc",
        log: (level, text) => {
          if (level !== "info") logged.push(text);
        },
      });
      backend.onResized = () => server.resized();
      server.start();
      reactor.turn(0);
      fdsBefore = fdCount();
    });

    afterEach(async () => {
      await runOn(reactor, () => server.stop());
      await runOn(reactor, () => backend.close());
      reactor.linux.close(listenFd);
      ram.close();
      reactor.engine.close();
      reactor.memory.unmap();
    });

    for (const packed of [false, true]) {
      test(`reads what it wrote, on a ${packed ? "packed" : "split"} ring`, async () => {
        const { client, queue } = await ready(packed);
        const at = ram.allocate(8192, 4096);
        ram.u8.set(PATTERN, at);
        const out = { at, bytes: 4096, write: false };
        const data = { at: at + 4096, bytes: 4096, write: true };
        expect(await queue.request(blk.VIRTIO_BLK_T_OUT, 8, [out])).toBe(blk.VIRTIO_BLK_S_OK);
        expect(node.data.subarray(4096, 8192)).toEqual(PATTERN);
        expect(await queue.request(blk.VIRTIO_BLK_T_IN, 8, [data])).toBe(blk.VIRTIO_BLK_S_OK);
        expect(ram.u8.slice(at + 4096, at + 8192)).toEqual(PATTERN);
        expect(client.linux.drainEventfd(queue.callFd)).toBeGreaterThan(0);
        client.close();
        queue.close();
      });
    }

    test("lets go of every descriptor, however a session ends", async () => {
      for (const isPolite of [true, false]) {
        const { client, queue } = await ready();
        await client.tell(vu.VHOST_USER_SET_VRING_ERR, longs(0), [queue.callFd]);
        await client.tell(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [queue.callFd]);
        await client.tell(vu.VHOST_USER_SET_LOG_FD, undefined, [queue.callFd]);
        if (isPolite) await queue.stop();
        queue.close();
        client.close();
        await client.until(() => !server.hasClient);
        await client.until(() => fdCount() === fdsBefore);
      }
      expect(fdCount()).toBe(fdsBefore);
    });

    test("stops a ring when its requests have ended, and starts it where it was", async () => {
      const { client, queue } = await ready();
      const at = ram.allocate(512, 512);
      node.hold();
      queue.submit(blk.VIRTIO_BLK_T_IN, 0, [{ at, bytes: 512, write: true }]);
      await client.until(() => node.waitingCount === 1);
      const stopped = queue.stop();
      await pause();
      expect(queue.queue.collect()).toEqual([]);
      node.go();
      expect(await stopped).toBe(1);
      expect(queue.queue.collect().length).toBe(1);
      await queue.start(1);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
    });

    test("looks at no ring that is disabled", async () => {
      const { client, queue } = await ready();
      await client.tell(vu.VHOST_USER_SET_VRING_ENABLE, words(0, 0));
      queue.submit(blk.VIRTIO_BLK_T_FLUSH, 0, []);
      for (let i = 0; i < 20; i++) await pause();
      expect(queue.queue.collect()).toEqual([]);
      await client.tell(vu.VHOST_USER_SET_VRING_ENABLE, words(0, 1));
      await client.until(() => queue.queue.collect().length === 1);
      client.close();
      queue.close();
    });

    test("polls a ring without a kick descriptor", async () => {
      const { client, queue } = await ready();
      const noFd = longs(vu.VHOST_USER_VRING_NOFD_MASK);
      await client.tell(vu.VHOST_USER_SET_VRING_KICK, noFd);
      for (let i = 0; i < 50; i++) await pause();
      const at = ram.allocate(512, 512);
      const data = [{ at, bytes: 512, write: true }];
      expect(await queue.request(blk.VIRTIO_BLK_T_IN, 0, data)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
    });

    test("serves the next client when the first has gone", async () => {
      const { client, queue } = await ready();
      const second = connect();
      second.send(vu.VHOST_USER_GET_QUEUE_NUM);
      for (let i = 0; i < 20; i++) await pause();
      client.close();
      queue.close();
      const reply = await second.receive();
      expect(new DataView(reply!.payload.buffer).getBigUint64(0, true)).toBe(4n);
      second.close();
    });

    test("waits for what is in flight before it unmaps anything", async () => {
      const { client, queue } = await ready();
      const at = ram.allocate(4096, 4096);
      ram.u8.set(PATTERN, at);
      node.hold();
      queue.submit(blk.VIRTIO_BLK_T_OUT, 0, [{ at, bytes: 4096, write: false }]);
      await client.until(() => node.waitingCount === 1);
      client.close();
      for (let i = 0; i < 20; i++) await pause();
      expect(server.hasClient).toBe(true);
      node.go();
      await client.until(() => !server.hasClient);
      expect(node.data.subarray(0, 4096)).toEqual(PATTERN);
      queue.close();
    });

    test("tells the configuration, from any offset, and its write cache", async () => {
      const client = connect();
      await negotiate(client, NO_PACKED);
      const get = async (offset: number, bytes: number): Promise<Uint8Array> => {
        const payload = Uint8Array.of(...words(offset, bytes, 0), ...new Uint8Array(bytes));
        const reply = await client.ask(vu.VHOST_USER_GET_CONFIG, payload);
        return reply.payload.slice(12);
      };
      const whole = await get(0, 60);
      expect(new DataView(whole.buffer, whole.byteOffset).getBigUint64(0, true)).toBe(2048n);
      expect(await get(20, 4)).toEqual(words(512));
      expect((await get(blk.VIRTIO_BLK_CONFIG_WCE, 1))[0]).toBe(1);
      expect((await get(90, 8)).length).toBe(0);
      const wce = Uint8Array.of(...words(blk.VIRTIO_BLK_CONFIG_WCE, 1, 0), 0);
      await client.tell(vu.VHOST_USER_SET_CONFIG, wce);
      expect((await get(blk.VIRTIO_BLK_CONFIG_WCE, 1))[0]).toBe(0);
      // Who comes back finds what was set.
      client.close();
      await client.until(() => !server.hasClient);
      const again = connect();
      const payload = Uint8Array.of(...words(blk.VIRTIO_BLK_CONFIG_WCE, 1, 0), 0);
      const reply = await again.ask(vu.VHOST_USER_GET_CONFIG, payload);
      expect(reply.payload[12]).toBe(0);
      again.close();
    });

    test("takes regions one by one, up to 509, and gives them back", async () => {
      const client = connect();
      await negotiate(client, NO_PACKED);
      const slots = Number(await client.askU64(vu.VHOST_USER_GET_MAX_MEM_SLOTS));
      expect(slots).toBe(509);
      const region = (i: number) => ram.region(i * 4096, 4096);
      const payload = (i: number) => Uint8Array.of(...longs(0), ...regionWords(region(i)));
      for (let i = 0; i < slots; i++) {
        expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(i), [ram.fd])).toBe(0n);
      }
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(slots), [ram.fd])).toBe(1n);
      expect(await client.tell(vu.VHOST_USER_REM_MEM_REG, payload(3))).toBe(0n);
      expect(await client.tell(vu.VHOST_USER_REM_MEM_REG, payload(3))).toBe(1n);
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(3), [ram.fd])).toBe(0n);
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(3), [ram.fd])).toBe(1n);
      client.close();
    });

    test("keeps no end of memory for a request that takes long", async () => {
      const { client, queue } = await ready();
      const at = ram.allocate(512, 512);
      node.hold();
      queue.submit(blk.VIRTIO_BLK_T_IN, 0, [{ at, bytes: 512, write: true }]);
      await client.until(() => node.waitingCount === 1);
      const extra = { ...ram.region(0, 4096), guestAddress: 0, userAddress: 0 };
      const payload = Uint8Array.of(...longs(0), ...regionWords(extra));
      let count = 0;
      while ((await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [ram.fd])) === 0n) {
        expect(await client.tell(vu.VHOST_USER_REM_MEM_REG, payload)).toBe(0n);
        count++;
      }
      expect(count).toBeLessThan(3000);
      node.go();
      await client.until(() => queue.queue.collect().length === 1);
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [ram.fd])).toBe(0n);
      client.close();
      queue.close();
    });

    test("goes on where an earlier back-end was, with the area that tracks requests", async () => {
      const { client, queue } = await ready();
      const shape = new Uint8Array(new Uint16Array([1, SIZE]).buffer);
      const request = Uint8Array.of(...longs(0, 0), ...shape);
      const { payload, fds } = await client.ask(vu.VHOST_USER_GET_INFLIGHT_FD, request);
      expect(fds.length).toBe(1);
      await queue.stop();
      expect(await client.tell(vu.VHOST_USER_SET_INFLIGHT_FD, payload, fds)).toBe(0n);
      await queue.start();
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      await client.until(() => !server.hasClient);
      const second = connect();
      await negotiate(second, NO_PACKED);
      await second.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([ram.region()]), [ram.fd]);
      expect(await second.tell(vu.VHOST_USER_SET_INFLIGHT_FD, payload, fds)).toBe(0n);
      await queue.start(1, second);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      expect(node.calls.length).toBe(2);
      for (const fd of fds) reactor.linux.close(fd);
      second.close();
      queue.close();
    });

    test("logs the pages that it writes to", async () => {
      const { client, queue } = await ready();
      const logFd = reactor.linux.memfdCreate("log", MFD_CLOEXEC | MFD_ALLOW_SEALING);
      const log = new GuestRam(reactor.linux, 64 * 1024);
      const offered = await client.askU64(vu.VHOST_USER_GET_FEATURES);
      await client.tell(vu.VHOST_USER_SET_FEATURES, longs(offered & NO_PACKED));
      await client.ask(vu.VHOST_USER_SET_LOG_BASE, longs(log.bytes, 0), [log.fd]);
      const at = ram.allocate(4096, 4096);
      await queue.request(blk.VIRTIO_BLK_T_IN, 0, [{ at, bytes: 4096, write: true }]);
      const page = (ram.guestAddress + at) / 4096;
      expect((log.u8[Math.floor(page / 8)]! >>> (page % 8)) & 1).toBe(1);
      reactor.linux.close(logFd);
      log.close();
      client.close();
      queue.close();
    });

    test("tells of a resize on the channel, and goes on without one", async () => {
      const { client, queue } = await ready();
      server.resized();
      const [ours, theirs] = reactor.linux.socketpair(AF_UNIX, SOCK_STREAM) as [number, number];
      await client.tell(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [theirs]);
      reactor.linux.close(theirs);
      const channel = new VhostUserClient({ linux: reactor.linux, fd: ours, pause });
      server.resized();
      expect((await channel.receive())?.request).toBe(vu.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
      channel.close();
      server.resized();
      await client.until(() => logged.length === 1);
      expect(logged).toEqual(["Cannot tell the front-end of a resize: Broken pipe"]);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
    });

    test("resets the device", async () => {
      const { client, queue } = await ready();
      expect(await client.tell(vu.VHOST_USER_SET_STATUS, longs(15))).toBe(0n);
      expect(await client.askU64(vu.VHOST_USER_GET_STATUS)).toBe(15n);
      await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0);
      expect(await client.tell(vu.VHOST_USER_RESET_DEVICE)).toBe(0n);
      expect(await client.askU64(vu.VHOST_USER_GET_STATUS)).toBe(0n);
      await client.tell(vu.VHOST_USER_SET_FEATURES, longs(1n << BigInt(VIRTIO_F_VERSION_1)));
      const again = makeQueue(client);
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
          const region = { ...ram.region(), bytes: 2 * RAM_BYTES };
          client.send(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([region]), [ram.fd]);
        },
      ],
    ];
    for (const [what, text, send] of FAULTS) {
      test(`drops who sends ${what}, and serves the next one`, async () => {
        const client = connect();
        send(client);
        await expectPanic(client, text);
        client.close();
        const next = connect();
        expect(await next.askU64(vu.VHOST_USER_GET_QUEUE_NUM)).toBe(4n);
        next.close();
      });
    }
  });
}
