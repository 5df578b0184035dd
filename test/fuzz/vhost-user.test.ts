/** A hostile vhost-user front-end: any message, any descriptor, any ring, and any end. */
import { afterAll, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { EFD_NONBLOCK, O_RDONLY } from "../../src/abi/linux.ts";
import { AF_UNIX, SHUT_WR, SOCK_NONBLOCK, SOCK_STREAM } from "../../src/abi/linux-socket.ts";
import * as vu from "../../src/abi/vhost-user.ts";
import * as blk from "../../src/abi/virtio-blk.ts";
import { BlockBackend } from "../../src/block/backend.ts";
import { EventFds } from "../../src/exports/vhost-user-blk/event-fds.ts";
import { type ServerState, VhostUserServer } from "../../src/exports/vhost-user-blk/server.ts";
import { driver } from "../support/driver.ts";
import { FakeNode } from "../support/fake-node.ts";
import { fuzzCases, Random, randomSeed } from "../support/random.ts";
import { ENGINES, type EngineName, makeReactor, runOn } from "../support/reactor.ts";
import {
  ClientQueue,
  connectTo,
  longs,
  memoryTable,
  negotiate,
  VhostUserClient,
  words,
} from "../support/vhost-user-client.ts";
import { GuestRam, makeDriver } from "../support/virtio-driver.ts";

const DISK_BYTES = 256 * 1024;
const RAM_BYTES = 1024 * 1024;
const SIZE = 16;
const MESSAGES_MAX = 40;
const PACKED_BASE = 0x8000_8000;
const NO_PACKED = ~(1n << 34n);
const cases = fuzzCases(2000);

const fdCount = () => readdirSync("/proc/self/fd").length;
const guestMappings = () => readFileSync("/proc/self/maps", "utf8").split("memfd:guest").length - 1;

class Rig {
  readonly reactor;
  ram: GuestRam;
  server;
  readonly node;
  readonly random: Random;
  readonly path: string;
  readonly pause = async () => {
    this.reactor.turn(200_000);
    await driver.runMicrotasks();
  };
  #backend: BlockBackend;
  #listenFd: number;
  #eventFds: EventFds;
  /** Kinds of descriptors that a front-end may send. */
  #fds: number[];

  constructor(engine: EngineName, random: Random) {
    this.random = random;
    this.reactor = makeReactor(engine);
    const { linux } = this.reactor;
    this.node = new FakeNode(this.reactor, DISK_BYTES);
    this.#backend = new BlockBackend(this.reactor, this.node, {
      writable: true,
      writethrough: false,
    });
    this.path = `\0outport-fuzz-${driver.process.pid}-${engine}`;
    this.#listenFd = linux.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
    linux.bind(this.#listenFd, { type: "unix", path: this.path });
    linux.listen(this.#listenFd, 5);
    this.ram = new GuestRam(linux, RAM_BYTES);
    const pair = linux.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK) as [number, number];
    const pipe = linux.pipe() as { readFd: number; writeFd: number };
    this.#fds = [
      this.ram.fd,
      linux.eventfd(0, EFD_NONBLOCK),
      linux.eventfd(1),
      linux.open("/dev/null", O_RDONLY),
      linux.open("/proc/self/exe", O_RDONLY),
      ...pair,
      pipe.readFd,
      pipe.writeFd,
    ];
    this.#eventFds = new EventFds(this.reactor);
    this.server = this.#makeServer(null);
    this.server.start();
    this.reactor.turn(0);
  }

  /** To another thread, as it were, unless the front-end is in the middle of a message. */
  async move(): Promise<void> {
    const suspended = () => this.server.suspend().catch(() => null);
    const state = await runOn(this.reactor, suspended);
    if (state === null) return;
    this.server = this.#makeServer(structuredClone(state));
    this.server.start();
  }

  /** What was written to it is gone. */
  renewRam(): void {
    const { ram } = this;
    this.ram = new GuestRam(this.reactor.linux, RAM_BYTES);
    this.#fds[0] = this.ram.fd;
    ram.close();
  }

  connect(): VhostUserClient {
    const { linux } = this.reactor;
    return new VhostUserClient({ linux, fd: connectTo(linux, this.path), pause: this.pause });
  }

  fds(count: number): number[] {
    return Array.from({ length: count }, () => this.random.pick(this.#fds));
  }

  /** Sets a queue up as it should be. */
  async setUp(client: VhostUserClient): Promise<ClientQueue> {
    const packed = this.random.chance(0.5);
    await negotiate(client, packed ? ~0n : NO_PACKED);
    const table = memoryTable([this.ram.region()]);
    await client.tell(vu.VHOST_USER_SET_MEM_TABLE, table, [this.ram.fd]);
    const queue = makeDriver(this.ram, packed, { size: SIZE, eventIdx: true });
    const clientQueue = new ClientQueue(client, this.ram, queue, { index: 0, size: SIZE });
    await clientQueue.start(packed ? PACKED_BASE : 0);
    return clientQueue;
  }

  #makeServer(state: ServerState | null): VhostUserServer {
    return new VhostUserServer({
      reactor: this.reactor,
      eventFds: this.#eventFds,
      backend: this.#backend,
      exportId: "e",
      listenFd: this.#listenFd,
      blockBytes: 512,
      queueCount: 3,
      serial: "",
      state,
      log: () => {},
    });
  }

  async end(): Promise<void> {
    const { linux } = this.reactor;
    await runOn(this.reactor, () => this.server.stop());
    await runOn(this.reactor, () => this.#backend.close());
    linux.close(this.#listenFd);
    for (const fd of this.#fds) linux.close(fd);
    this.reactor.engine.close();
    this.reactor.memory.unmap();
  }
}

/** A number that a field may have. */
function field(random: Random): number {
  const interesting = [0, 1, 2, 16, 255, 256, 4095, 4096, 32768, 65535, 0x7fffffff, 0xffffffff];
  return random.chance(0.7) ? random.pick(interesting) : random.u32();
}

function payload(random: Random, ram: GuestRam): Uint8Array {
  if (random.chance(0.3)) {
    const at = random.below(RAM_BYTES / 4096) * 4096;
    const region = ram.region(at, random.pick([4096, 65536, RAM_BYTES, RAM_BYTES - at]));
    return random.chance(0.5)
      ? memoryTable([region])
      : Uint8Array.of(...longs(0), ...memoryTable([region]).subarray(8));
  }
  const count = random.pick([0, 1, 2, 3, 4, 5, 10, 12, 70]);
  return words(
    ...Array.from({ length: count }, (_, i) => (i === 0 ? random.below(5) : field(random))),
  );
}

/** One act of a front-end that knows no rules. */
function misbehave(rig: Rig, client: VhostUserClient, queue: ClientQueue | null): void {
  const { random, ram } = rig;
  const { linux } = client;
  if (queue !== null && random.chance(0.4)) {
    const at = random.chance(0.5) ? queue.queue.addresses.desc - ram.userAddress : 0;
    const length = 1 + random.below(64);
    ram.u8.set(random.bytes(length), Math.min(at + random.below(1024), RAM_BYTES - length));
    linux.signalEventfd(queue.kickFd);
    return;
  }
  if (random.chance(0.05)) {
    client.sendRaw(random.bytes(1 + random.below(40)), rig.fds(random.below(3)));
    return;
  }
  const request = random.chance(0.95) ? random.below(44) : random.u32();
  const data = payload(random, ram);
  const fds = rig.fds(random.pick([0, 0, 1, 1, 1, 2, 8, 9]));
  const flags = random.chance(0.9) ? 1 | (random.below(2) << 3) : random.u32();
  const lies = random.chance(0.05) ? field(random) : data.length;
  const message = Uint8Array.of(...words(request, flags, lies), ...data);
  const cut = random.chance(0.05) ? 1 + random.below(message.length) : message.length;
  client.sendRaw(message.subarray(0, cut), fds);
}

for (const engine of ENGINES) {
  describe(`a hostile vhost-user front-end on ${engine}`, () => {
    const random = new Random(randomSeed());
    const rig = new Rig(engine, random);
    afterAll(() => rig.end());

    test("harms nobody, and leaves nothing behind", async () => {
      const fdsBefore = fdCount();
      const mappingsBefore = guestMappings();
      for (let done = 0; done < cases; ) {
        const client = rig.connect();
        const queue = random.chance(0.5) ? await rig.setUp(client) : null;
        const count = 1 + random.below(MESSAGES_MAX);
        for (let i = 0; i < count; i++, done++) {
          misbehave(rig, client, queue);
          if (random.chance(0.7)) await rig.pause();
          if (random.chance(0.02)) await rig.move();
        }
        if (random.chance(0.3)) client.linux.shutdown(client.fd, SHUT_WR);
        client.close();
        queue?.close();
        await client.until(() => !rig.server.hasClient);
        await client.until(() => fdCount() <= fdsBefore && guestMappings() === mappingsBefore);
        rig.renewRam();
      }
      // Somebody decent is served still.
      const client = rig.connect();
      const queue = await rig.setUp(client);
      expect(await queue.request(blk.VIRTIO_BLK_T_FLUSH, 0)).toBe(blk.VIRTIO_BLK_S_OK);
      client.close();
      queue.close();
      await client.until(() => !rig.server.hasClient && fdCount() <= fdsBefore);
    }, 600_000);
  });
}
