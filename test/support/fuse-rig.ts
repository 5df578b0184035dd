/** A FUSE session on a node in memory, whose kernel is the test. */
import * as fuse from "../../src/abi/fuse.ts";
import { BlockBackend } from "../../src/block/backend.ts";
import { FuseDevices } from "../../src/exports/fuse/devices.ts";
import { FuseSession, type SessionParts } from "../../src/exports/fuse/session.ts";
import type { Reactor } from "../../src/io/reactor.ts";
import { driver } from "./driver.ts";
import { FakeNode } from "./fake-node.ts";
import { FuseKernel, fuseSockets } from "./fuse-kernel.ts";
import { type EngineName, makeReactor } from "./reactor.ts";

const NODE_BYTES = 1024 * 1024;

export interface FuseRigOptions extends Partial<SessionParts> {
  readonly writable?: boolean;
  readonly node?: (reactor: Reactor) => FakeNode;
  /** Already said FUSE_INIT; default: yes. */
  readonly isInitialised?: boolean;
}

export class FuseRig extends FuseKernel {
  readonly reactor: Reactor;
  readonly node: FakeNode;
  readonly backend: BlockBackend;
  readonly session: FuseSession;
  /** What the session said of its end. */
  readonly ends: number[] = [];
  /** Lengths that the session asked for: all are given. */
  readonly resizes: [bytes: number, atLeast: boolean][] = [];
  #fd: number;

  constructor(engine: EngineName, options: FuseRigOptions = {}) {
    const reactor = makeReactor(engine);
    const [fd, kernelFd] = fuseSockets(reactor.linux);
    super(reactor.linux, kernelFd, async () => {
      reactor.turn(1_000_000);
      await driver.runMicrotasks();
    });
    this.reactor = reactor;
    this.#fd = fd;
    this.node = options.node?.(reactor) ?? new FakeNode(reactor, NODE_BYTES);
    const { writable = true } = options;
    this.backend = new BlockBackend(reactor, this.node, { writable, writethrough: false });
    const agreed = { minor: fuse.FUSE_KERNEL_MINOR_VERSION, flags: 0, flags2: 0 };
    this.session = new FuseSession({
      devices: new FuseDevices(reactor),
      backend: this.backend,
      fd,
      growable: false,
      allowOther: false,
      state: { uid: 7, gid: 8, ...(options.isInitialised === false ? {} : { agreed }) },
      resize: async (bytes, atLeast) => {
        this.resizes.push([bytes, atLeast]);
        await this.resize(bytes);
        return 0;
      },
      extras: null,
      onAgreed: () => {},
      onEnd: (error) => this.ends.push(error),
      ...options,
    });
    this.session.start();
  }

  /** Gives the node another length, as main does. */
  async resize(bytes: number): Promise<void> {
    await this.backend.drain();
    this.node.resize(bytes);
    this.reactor.asyncResumed();
    this.backend.resume();
  }

  /** Nobody holds a buffer or a slot any more. */
  get isClean(): boolean {
    return this.reactor.buffers.bytesInUse === 0 && this.reactor.requests.inUse === 0;
  }

  async end(): Promise<void> {
    let ended = false;
    const stop = this.session.stop().then(() => {
      ended = true;
    });
    while (!ended) await this.turn();
    await stop;
    this.reactor.linux.close(this.#fd);
    this.closeKernel();
    this.reactor.engine.close();
    this.reactor.memory.unmap();
  }
}
