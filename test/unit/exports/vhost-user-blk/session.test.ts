import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM } from "../../../../src/abi/linux-socket.ts";
import { MFD_ALLOW_SEALING, MFD_CLOEXEC } from "../../../../src/abi/memfd.ts";
import * as vu from "../../../../src/abi/vhost-user.ts";
import * as blk from "../../../../src/abi/virtio-blk.ts";
import { VIRTIO_F_VERSION_1 } from "../../../../src/abi/virtio-ring.ts";
import { Memory } from "../../../../src/io/memory.ts";
import { ENGINES, runOn } from "../../../support/reactor.ts";
import {
  longs,
  memoryTable,
  negotiate,
  regionWords,
  VhostUserClient,
  words,
} from "../../../support/vhost-user-client.ts";
import {
  fdCount,
  memfdMappings,
  NO_PACKED,
  PACKED_BASE,
  PATTERN,
  RAM_BYTES,
  ServerRig,
  SIZE,
} from "../../../support/vhost-user-rig.ts";
import { GuestRam } from "../../../support/virtio-driver.ts";

for (const engine of ENGINES) {
  describe(`Session on ${engine}`, () => {
    let rig: ServerRig;

    beforeEach(() => {
      rig = new ServerRig(engine);
    });
    afterEach(() => rig.close());

    test("takes regions one by one, up to 509, and gives them back", async () => {
      const client = rig.connect();
      await negotiate(client, NO_PACKED);
      const slots = Number(await client.askU64(vu.VHOST_USER_GET_MAX_MEM_SLOTS));
      expect(slots).toBe(509);
      const region = (i: number) => rig.ram.region(i * 4096, 4096);
      const payload = (i: number) => Uint8Array.of(...longs(0), ...regionWords(region(i)));
      for (let i = 0; i < slots; i++) {
        expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(i), [rig.ram.fd])).toBe(0n);
      }
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(slots), [rig.ram.fd])).toBe(1n);
      expect(await client.tell(vu.VHOST_USER_REM_MEM_REG, payload(3))).toBe(0n);
      expect(await client.tell(vu.VHOST_USER_REM_MEM_REG, payload(3))).toBe(1n);
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(3), [rig.ram.fd])).toBe(0n);
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload(3), [rig.ram.fd])).toBe(1n);
      client.close();
    });

    test("reaches every byte of a guest of 1 TiB, also across regions", async () => {
      const GiB = 2 ** 30;
      const { client, queue } = await rig.ready();
      const fd = rig.reactor.linux.memfdCreate("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING);
      expect(rig.reactor.linux.ftruncate(fd, 1024 * GiB)).toBe(0);
      const regionBytes = 16 * GiB;
      const guestStart = 4096 * GiB;
      for (let at = 0; at < 1024 * GiB; at += regionBytes) {
        const guestAddress = guestStart + at;
        const region = { fd, fileOffset: at, guestAddress, userAddress: at, bytes: regionBytes };
        const payload = Uint8Array.of(...longs(0), ...regionWords(region));
        expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [fd])).toBe(0n);
      }
      const own = new Memory(rig.reactor.linux, 8192);
      own.u8.set(PATTERN);
      for (const at of [regionBytes - 1024, 5 * GiB, 63 * regionBytes + 9 * GiB, 1023 * GiB]) {
        const piece = { at: guestStart + at - rig.ram.guestAddress, bytes: 4096 };
        rig.reactor.linux.pwrite(fd, own.address, 4096, at);
        const out = { ...piece, write: false };
        expect(await queue.request(blk.VIRTIO_BLK_T_OUT, 0, [out])).toBe(blk.VIRTIO_BLK_S_OK);
        expect(rig.node.data.subarray(0, 4096)).toEqual(PATTERN);
        rig.node.data.fill(at / GiB, 0, 4096);
        const data = { ...piece, write: true };
        expect(await queue.request(blk.VIRTIO_BLK_T_IN, 0, [data])).toBe(blk.VIRTIO_BLK_S_OK);
        rig.reactor.linux.pread(fd, own.address + 4096, 4096, at);
        expect(own.u8.slice(4096)).toEqual(rig.node.data.slice(0, 4096));
      }
      own.unmap();
      rig.reactor.linux.close(fd);
      client.close();
      queue.close();
    });

    test("takes memory in and gives it back while requests use it", async () => {
      const { client, queue } = await rig.ready();
      const extra = { ...rig.ram.region(RAM_BYTES / 2), guestAddress: 2 ** 41, userAddress: 4096 };
      const payload = Uint8Array.of(...longs(0), ...regionWords(extra));
      const far = { at: 2 ** 41 - rig.ram.guestAddress, bytes: 4096, write: false };
      rig.ram.u8.set(PATTERN, RAM_BYTES / 2);
      const statuses: number[] = [];
      for (let round = 0; round < 50; round++) {
        expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [rig.ram.fd])).toBe(0n);
        rig.node.hold();
        for (let i = 0; i < 4; i++) {
          statuses.push(queue.submit(blk.VIRTIO_BLK_T_OUT, i * 8, [far]));
        }
        await client.until(() => rig.node.waitingCount === 4);
        expect(await client.tell(vu.VHOST_USER_REM_MEM_REG, payload)).toBe(0n);
        rig.node.go();
        let count = 0;
        await client.until(() => {
          count += queue.queue.collect().length;
          return count === 4;
        });
      }
      expect(new Set(statuses.map((at) => rig.ram.u8[at]))).toEqual(new Set([blk.VIRTIO_BLK_S_OK]));
      expect(rig.node.data.subarray(3 * 4096, 4 * 4096)).toEqual(PATTERN);
      client.close();
      queue.close();
    });

    test("keeps no end of memory for a request that takes long", async () => {
      const { client, queue } = await rig.ready();
      const at = rig.ram.allocate(512, 512);
      rig.node.hold();
      queue.submit(blk.VIRTIO_BLK_T_IN, 0, [{ at, bytes: 512, write: true }]);
      await client.until(() => rig.node.waitingCount === 1);
      const extra = { ...rig.ram.region(0, 4096), guestAddress: 0, userAddress: 0 };
      const payload = Uint8Array.of(...longs(0), ...regionWords(extra));
      let count = 0;
      while ((await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [rig.ram.fd])) === 0n) {
        expect(await client.tell(vu.VHOST_USER_REM_MEM_REG, payload)).toBe(0n);
        count++;
      }
      expect(count).toBeLessThan(3000);
      rig.node.go();
      await client.until(() => queue.queue.collect().length === 1);
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [rig.ram.fd])).toBe(0n);
      client.close();
      queue.close();
    });

    test("goes on where an earlier back-end was, with the area that tracks requests", async () => {
      const { client, queue } = await rig.ready();
      const shape = new Uint8Array(new Uint16Array([1, SIZE]).buffer);
      const request = Uint8Array.of(...longs(0, 0), ...shape);
      const { payload, fds } = await client.ask(vu.VHOST_USER_GET_INFLIGHT_FD, request);
      expect(fds.length).toBe(1);
      await queue.stop();
      expect(await client.tell(vu.VHOST_USER_SET_INFLIGHT_FD, payload, fds)).toBe(0n);
      await queue.start();
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      await client.until(() => !rig.server.hasClient);
      const second = rig.connect();
      await negotiate(second, NO_PACKED);
      await second.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([rig.ram.region()]), [rig.ram.fd]);
      expect(await second.tell(vu.VHOST_USER_SET_INFLIGHT_FD, payload, fds)).toBe(0n);
      await queue.start(1, second);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      expect(rig.node.calls.length).toBe(2);
      for (const fd of fds) rig.reactor.linux.close(fd);
      second.close();
      queue.close();
    });

    describe("suspend()", () => {
      /** To a server that knows no more than what comes through a port. */
      const move = async () => {
        const old = rig.server;
        const state = await runOn(rig.reactor, () => old.suspend());
        rig.server = rig.makeServer(structuredClone(state));
        rig.server.start();
      };

      for (const packed of [false, true]) {
        const kind = packed ? "packed" : "split";
        test(`takes a front-end with a ${kind} ring along, at work`, async () => {
          const { client, queue } = await rig.ready(packed);
          const read = Uint8Array.of(...words(0, 8, 0), ...new Uint8Array(8));
          await client.ask(vu.VHOST_USER_GET_CONFIG, read);
          const shape = new Uint8Array(new Uint16Array([1, SIZE]).buffer);
          const request = Uint8Array.of(...longs(0, 0), ...shape);
          const area = await client.ask(vu.VHOST_USER_GET_INFLIGHT_FD, request);
          const base = await queue.stop();
          await client.tell(vu.VHOST_USER_SET_INFLIGHT_FD, area.payload, area.fds);
          for (const fd of area.fds) rig.reactor.linux.close(fd);
          const log = new GuestRam(rig.reactor.linux, 64 * 1024);
          await client.ask(vu.VHOST_USER_SET_LOG_BASE, longs(log.bytes, 0), [log.fd]);
          await client.tell(vu.VHOST_USER_SET_LOG_FD, undefined, [queue.callFd]);
          await queue.start(packed ? PACKED_BASE : base);
          await client.tell(vu.VHOST_USER_SET_VRING_ERR, longs(0), [queue.callFd]);
          const [ours, theirs] = rig.reactor.linux.socketpair(
            AF_UNIX,
            SOCK_STREAM | SOCK_NONBLOCK,
          ) as [number, number];
          await client.tell(vu.VHOST_USER_SET_BACKEND_REQ_FD, undefined, [theirs]);
          rig.reactor.linux.close(theirs);
          const mappings = memfdMappings();
          const fds = fdCount();
          for (let round = 0; round < 10; round++) {
            const at = rig.ram.allocate(4096, 4096);
            rig.ram.u8.fill(round + 1, at, at + 4096);
            rig.node.hold();
            const out = [{ at, bytes: 4096, write: false }];
            const statusAt = queue.submit(blk.VIRTIO_BLK_T_OUT, round * 8, out);
            await client.until(() => rig.node.waitingCount === 1);
            const moved = move();
            await rig.pause();
            rig.node.go();
            await moved;
            await client.until(() => queue.queue.collect().length === 1);
            expect(rig.ram.u8[statusAt]).toBe(blk.VIRTIO_BLK_S_OK);
            expect(rig.node.data[round * 4096]).toBe(round + 1);
            expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
            expect(await client.askU64(vu.VHOST_USER_GET_QUEUE_NUM)).toBe(4n);
            expect([rig.server.hasClient, memfdMappings()]).toEqual([true, mappings]);
            expect(fdCount()).toBeLessThanOrEqual(fds);
          }
          const channel = new VhostUserClient({
            linux: rig.reactor.linux,
            fd: ours,
            pause: rig.pause,
          });
          rig.server.resized();
          expect((await channel.receive())?.request).toBe(vu.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
          channel.close();
          log.close();
          client.close();
          queue.close();
          await client.until(() => !rig.server.hasClient);
          expect(rig.logged).toEqual([]);
        });
      }

      test("goes without a front-end, and with one that has just come", async () => {
        await move();
        const client = rig.connect();
        expect(await client.askU64(vu.VHOST_USER_GET_QUEUE_NUM)).toBe(4n);
        await move();
        await negotiate(client, NO_PACKED);
        await client.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([rig.ram.region()]), [
          rig.ram.fd,
        ]);
        const queue = rig.makeQueue(client);
        await queue.start();
        expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
        client.close();
        queue.close();
      });

      test("calls the driver, who may have missed the last call of the old server", async () => {
        const { client, queue } = await rig.ready();
        expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
        await rig.pause();
        client.linux.drainEventfd(queue.callFd);
        await move();
        await rig.pause();
        expect(client.linux.drainEventfd(queue.callFd)).toBe(1);
        client.close();
        queue.close();
      });

      test("lets go of everything when a ring can't go on", async () => {
        const { client, queue } = await rig.ready();
        await client.tell(vu.VHOST_USER_SET_VRING_CALL, longs(1), [queue.callFd]);
        const state = await runOn(rig.reactor, () => rig.server.suspend());
        const { session, fd } = state.client!;
        const vrings = session.vrings.map((vring) => ({ ...vring, size: 3 }));
        rig.server = rig.makeServer({ ...state, client: { fd, session: { ...session, vrings } } });
        rig.server.start();
        expect(await client.receive()).toBeNull();
        await client.until(() => !rig.server.hasClient);
        client.close();
        queue.close();
        await client.until(() => fdCount() <= rig.fdsBefore);
        expect(rig.logged).toEqual(["vu_panic: Invalid vring_addr message: Invalid argument"]);
      });

      test("refuses in the middle of a message, and changes nothing", async () => {
        const { client, queue } = await rig.ready();
        client.sendRaw(words(vu.VHOST_USER_SET_FEATURES, 1, 8));
        for (let i = 0; i < 5; i++) await rig.pause();
        const refused = runOn(rig.reactor, () => rig.server.suspend().catch(() => "in use"));
        expect(await refused).toBe("in use");
        client.sendRaw(longs(1n << BigInt(VIRTIO_F_VERSION_1)));
        expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
        client.close();
        queue.close();
      });
    });

    test("begins anew for a front-end that follows another on the connection", async () => {
      const { client, queue } = await rig.ready();
      const region = rig.ram.region();
      const payload = Uint8Array.of(...longs(0), ...regionWords(region));
      // Not in the middle of one.
      expect(await client.tell(vu.VHOST_USER_SET_OWNER)).toBe(0n);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      const base = await queue.stop();
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [rig.ram.fd])).toBe(1n);
      expect(await client.tell(vu.VHOST_USER_SET_OWNER)).toBe(0n);
      expect(await client.tell(vu.VHOST_USER_ADD_MEM_REG, payload, [rig.ram.fd])).toBe(0n);
      await queue.start(base);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      expect(rig.logged).toEqual([
        "vhost-user request 37 of export 'e': Specified region overlaps another",
      ]);
      client.close();
      queue.close();
    });
  });
}
