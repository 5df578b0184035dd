/** A VhostUserServer of a disk in memory, and front-ends that come to it, all on one thread. */
import { readdirSync, readFileSync } from "node:fs";
import { AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM } from "../../src/abi/linux-socket.ts";
import * as vu from "../../src/abi/vhost-user.ts";
import { VIRTIO_F_RING_PACKED } from "../../src/abi/virtio-ring.ts";
import { BlockBackend } from "../../src/block/backend.ts";
import { EventFds } from "../../src/exports/vhost-user-blk/event-fds.ts";
import { type ServerState, VhostUserServer } from "../../src/exports/vhost-user-blk/server.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { driver } from "./driver.ts";
import { FakeNode } from "./fake-node.ts";
import { type EngineName, makeReactor, runOn } from "./reactor.ts";
import {
  ClientQueue,
  connectTo,
  memoryTable,
  negotiate,
  VhostUserClient,
} from "./vhost-user-client.ts";
import { GuestRam, makeDriver } from "./virtio-driver.ts";

const DISK_BYTES = 1024 * 1024;
export const RAM_BYTES = 4 * 1024 * 1024;
/** Of rings. */
export const SIZE = 64;
/** Features without packed rings. */
export const NO_PACKED = ~(1n << BigInt(VIRTIO_F_RING_PACKED));
/** Both indexes 0, both wrap counters 1. */
export const PACKED_BASE = 0x8000_8000;
export const PATTERN = Uint8Array.from({ length: 4096 }, (_, i) => i % 251);

let socketCount = 0;

export const fdCount = () => readdirSync("/proc/self/fd").length;
export const memfdMappings = () => readFileSync("/proc/self/maps", "utf8").split("memfd:").length;

export class ServerRig {
  readonly reactor: Reactor;
  readonly node: FakeNode;
  readonly ram: GuestRam;
  /** Warnings and errors. */
  readonly logged: string[] = [];
  /** Descriptors of the process without a client. */
  readonly fdsBefore: number;
  server: VhostUserServer;
  #backend: BlockBackend;
  #path: string;
  #listenFd: number;

  constructor(engine: EngineName) {
    this.reactor = makeReactor(engine);
    const { linux } = this.reactor;
    this.node = new FakeNode(this.reactor, DISK_BYTES);
    const options = { writable: true, writethrough: false };
    this.#backend = new BlockBackend(this.reactor, this.node, options);
    this.#path = `\0outport-test-${driver.process.pid}-${socketCount++}`;
    this.#listenFd = linux.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
    linux.bind(this.#listenFd, { type: "unix", path: this.#path });
    linux.listen(this.#listenFd, 5);
    this.ram = new GuestRam(linux, RAM_BYTES);
    this.server = this.makeServer();
    this.server.start();
    this.reactor.turn(0);
    this.fdsBefore = fdCount();
  }

  /** For start(), when the one before it has ended. */
  makeServer(state: ServerState | null = null): VhostUserServer {
    const server = new VhostUserServer({
      reactor: this.reactor,
      eventFds: new EventFds(this.reactor),
      backend: this.#backend,
      exportId: "e",
      listenFd: this.#listenFd,
      blockBytes: 512,
      queueCount: 4,
      serial: "abc",
      state,
      log: (level, text) => {
        if (level !== "info") this.logged.push(text);
      },
    });
    this.#backend.onResized = () => server.resized();
    return server;
  }

  readonly pause = async (): Promise<void> => {
    this.reactor.turn(1_000_000);
    await driver.runMicrotasks();
  };

  connect(): VhostUserClient {
    const { linux } = this.reactor;
    return new VhostUserClient({ linux, fd: connectTo(linux, this.#path), pause: this.pause });
  }

  makeQueue(client: VhostUserClient, packed = false): ClientQueue {
    const queue = makeDriver(this.ram, packed, { size: SIZE, eventIdx: true });
    return new ClientQueue(client, this.ram, queue, { index: 0, size: SIZE });
  }

  /** Connected, with memory, and without a queue. */
  async begin(packed = false): Promise<VhostUserClient> {
    const { ram } = this;
    const client = this.connect();
    await negotiate(client, packed ? ~0n : NO_PACKED);
    await client.tell(vu.VHOST_USER_SET_MEM_TABLE, memoryTable([ram.region()]), [ram.fd]);
    return client;
  }

  /** Connected, with memory, and one queue that runs. */
  async ready(packed = false): Promise<{ client: VhostUserClient; queue: ClientQueue }> {
    const client = await this.begin(packed);
    const queue = this.makeQueue(client, packed);
    await queue.start(packed ? PACKED_BASE : 0);
    return { client, queue };
  }

  async close(): Promise<void> {
    const { reactor } = this;
    await runOn(reactor, () => this.server.stop());
    await runOn(reactor, () => this.#backend.close());
    reactor.linux.close(this.#listenFd);
    this.ram.close();
    reactor.engine.close();
    reactor.memory.unmap();
  }
}
