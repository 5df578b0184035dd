import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { POLLIN } from "../../../../src/abi/linux.ts";
import { AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM } from "../../../../src/abi/linux-socket.ts";
import * as vu from "../../../../src/abi/vhost-user.ts";
import * as blk from "../../../../src/abi/virtio-blk.ts";
import { OP_FLUSH } from "../../../../src/block/node.ts";
import { EIO } from "../../../../src/runtime/errno.ts";
import { ENGINES, runOn } from "../../../support/reactor.ts";
import {
  type ClientQueue,
  longs,
  memoryTable,
  negotiate,
  VhostUserClient,
  words,
} from "../../../support/vhost-user-client.ts";
import { NO_PACKED, ServerRig, SIZE } from "../../../support/vhost-user-rig.ts";
import { GuestRam } from "../../../support/virtio-driver.ts";

for (const engine of ENGINES) {
  describe(`ConfigSpace on ${engine}`, () => {
    let rig: ServerRig;

    beforeEach(() => {
      rig = new ServerRig(engine);
    });
    afterEach(() => rig.close());

    test("tells the configuration, from any offset, and its write cache", async () => {
      const client = rig.connect();
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
      await client.until(() => !rig.server.hasClient);
      const again = rig.connect();
      const payload = Uint8Array.of(...words(blk.VIRTIO_BLK_CONFIG_WCE, 1, 0), 0);
      const reply = await again.ask(vu.VHOST_USER_GET_CONFIG, payload);
      expect(reply.payload[12]).toBe(0);
      again.close();
    });

    test("tells a front-end whose rings start of a capacity that it has not read", async () => {
      const client = rig.connect();
      await negotiate(client, NO_PACKED);
      await client.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([rig.ram.region()]), [rig.ram.fd]);
      const [ours, theirs] = rig.reactor.linux.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK) as [
        number,
        number,
      ];
      await client.tell(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [theirs]);
      rig.reactor.linux.close(theirs);
      const channel = new VhostUserClient({ linux: rig.reactor.linux, fd: ours, pause: rig.pause });
      const read = () =>
        client.ask(
          vu.VHOST_USER_GET_CONFIG,
          Uint8Array.of(...words(0, 8, 0), ...new Uint8Array(8)),
        );
      const queue = rig.makeQueue(client);
      await queue.start();
      expect((await channel.receive())?.request).toBe(vu.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
      await read();
      await queue.start(await queue.stop());
      // It knows it; nothing is told before its rings run, either.
      rig.server.resized();
      expect((await channel.receive())?.request).toBe(vu.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
      const base = await queue.stop();
      rig.server.resized();
      await queue.start(base);
      for (let i = 0; i < 20; i++) await rig.pause();
      expect(rig.reactor.linux.poll(ours, POLLIN, 0)).toBe(0);
      channel.close();
      client.close();
      queue.close();
    });

    describe("the write cache", () => {
      const setCache = (client: VhostUserClient, value: number) =>
        client.tell(
          vu.VHOST_USER_SET_CONFIG,
          Uint8Array.of(...words(blk.VIRTIO_BLK_CONFIG_WCE, 1, 0), value),
        );
      const readConfig = (client: VhostUserClient) =>
        client.ask(
          vu.VHOST_USER_GET_CONFIG,
          Uint8Array.of(...words(0, 60, 0), ...new Uint8Array(60)),
        );
      const getInflight = async (client: VhostUserClient) => {
        const shape = new Uint8Array(new Uint16Array([1, SIZE]).buffer);
        const request = Uint8Array.of(...longs(0, 0), ...shape);
        return await client.ask(vu.VHOST_USER_GET_INFLIGHT_FD, request);
      };
      /** Whether a write that it makes is stable when it is done. */
      const isStable = async (queue: ClientQueue): Promise<boolean> => {
        const at = rig.ram.allocate(512, 512);
        const out = [{ at, bytes: 512, write: false }];
        rig.node.calls.length = 0;
        expect(await queue.request(blk.VIRTIO_BLK_T_OUT, 0, out)).toBe(blk.VIRTIO_BLK_S_OK);
        return rig.node.calls.some(({ op }) => op === OP_FLUSH);
      };
      const begin = async (client: VhostUserClient) => {
        await negotiate(client, NO_PACKED);
        await client.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([rig.ram.region()]), [
          rig.ram.fd,
        ]);
      };
      /** As when outport was killed, and started again. */
      const restart = async (client: VhostUserClient) => {
        client.close();
        await client.until(() => !rig.server.hasClient);
        await runOn(rig.reactor, () => rig.server.stop());
        rig.server = rig.makeServer();
        rig.server.start();
        const next = rig.connect();
        await begin(next);
        return next;
      };

      test("is as a new driver finds it, from the start", async () => {
        const client = rig.connect();
        await begin(client);
        await readConfig(client);
        const queue = rig.makeQueue(client);
        await queue.start();
        expect(await isStable(queue)).toBe(false);
        client.close();
        queue.close();
      });

      test("is not trusted before a driver from elsewhere flushes", async () => {
        const client = rig.connect();
        await begin(client);
        await readConfig(client);
        const queue = rig.makeQueue(client);
        await queue.start();
        await queue.request(blk.VIRTIO_BLK_T_GET_ID, 0);
        const base = await queue.stop();
        const next = await restart(client);
        await readConfig(next);
        await queue.start(base, next);
        expect(await isStable(queue)).toBe(true);
        expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
        expect(await isStable(queue)).toBe(false);
        next.close();
        queue.close();
      });

      for (const isOn of [true, false]) {
        test(`is kept with the requests in flight, turned ${isOn ? "on" : "off"}`, async () => {
          const client = rig.connect();
          await begin(client);
          const area = await getInflight(client);
          await client.tell(vu.VHOST_USER_SET_INFLIGHT_FD, area.payload, area.fds);
          const queue = rig.makeQueue(client);
          await queue.start();
          expect(await setCache(client, isOn ? 0 : 1)).toBe(0n);
          expect(await setCache(client, isOn ? 1 : 0)).toBe(0n);
          expect(await isStable(queue)).toBe(!isOn);
          const next = await restart(client);
          await next.tell(vu.VHOST_USER_SET_INFLIGHT_FD, area.payload, area.fds);
          await queue.start(1, next);
          expect(await isStable(queue)).toBe(!isOn);
          // Who thinks that there is none sends no flushes, but may.
          await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0);
          expect(await isStable(queue)).toBe(!isOn);
          for (const fd of area.fds) rig.reactor.linux.close(fd);
          next.close();
          queue.close();
        });
      }

      test("is not found in an area that another back-end made", async () => {
        const client = rig.connect();
        await begin(client);
        const area = new GuestRam(rig.reactor.linux, 64 * 1024);
        const shape = new Uint8Array(new Uint16Array([1, SIZE]).buffer);
        const payload = Uint8Array.of(...longs(area.bytes, 0), ...shape);
        expect(await client.tell(vu.VHOST_USER_SET_INFLIGHT_FD, payload, [area.fd])).toBe(0n);
        const queue = rig.makeQueue(client);
        await queue.start();
        expect(await isStable(queue)).toBe(true);
        expect(await setCache(client, 1)).toBe(0n);
        expect(await isStable(queue)).toBe(false);
        area.close();
        client.close();
        queue.close();
      });

      test("is flushed when it is turned off", async () => {
        const { client, queue } = await rig.ready();
        expect(await setCache(client, 0)).toBe(0n);
        expect(rig.node.calls.map(({ op }) => op)).toEqual([OP_FLUSH]);
        rig.node.fails = () => -EIO;
        expect(await setCache(client, 0)).toBe(1n);
        expect(rig.logged).toEqual([
          "vhost-user request 25 of export 'e': Cannot flush what was written through the cache",
        ]);
        client.close();
        queue.close();
      });
    });

    test("tells of a resize on the channel, and goes on without one", async () => {
      const { client, queue } = await rig.ready();
      rig.server.resized();
      const [ours, theirs] = rig.reactor.linux.socketpair(AF_UNIX, SOCK_STREAM) as [number, number];
      await client.tell(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [theirs]);
      rig.reactor.linux.close(theirs);
      const channel = new VhostUserClient({ linux: rig.reactor.linux, fd: ours, pause: rig.pause });
      rig.server.resized();
      expect((await channel.receive())?.request).toBe(vu.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
      channel.close();
      rig.server.resized();
      await client.until(() => rig.logged.length === 1);
      expect(rig.logged).toEqual(["Cannot tell the front-end of a resize: Broken pipe"]);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
    });
  });
}
