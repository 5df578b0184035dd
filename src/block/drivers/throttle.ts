/**
 * throttle: lets requests through as the limits of a throttle group allow. Schema and child rules
 * on main, nodes on an iothread.
 * Spec: qapi/block-core.json BlockdevOptionsThrottle; QEMU block/throttle.c, docs/throttle.txt
 */
import { str } from "../../qapi/scalars.ts";
import { OutportError } from "../../util/error.ts";
import type { BlockDriver, OpenContext } from "../driver.ts";
import { FilterNode, passPermissions } from "../filter-node.ts";
import {
  OP_CACHE,
  OP_FLUSH,
  OP_READ,
  type Op,
  type ReopenedNode,
  type Resolution,
  type ResolutionKind,
  SLOW,
  ZERO,
} from "../node.ts";
import {
  THROTTLE_READ,
  THROTTLE_WRITE,
  type ThrottleDirection,
  ThrottleGroup,
} from "../throttle-group.ts";
import { ThrottleQueue } from "../throttle-queue.ts";

class ThrottleNode extends FilterNode {
  #queue: ThrottleQueue;

  constructor(context: OpenContext, group: ThrottleGroup) {
    super("throttle", context);
    this.#queue = new ThrottleQueue(context.reactor, group);
  }

  override resolve(op: Op, offset: number, bytes: number, out: Resolution): ResolutionKind {
    const kind = super.resolve(op, offset, bytes, out);
    if (op === OP_FLUSH || !this.#queue.group.isLimited(directionOf(op))) return kind;
    // There is nothing to wait for where nothing is to be done.
    if (kind === ZERO && op > OP_FLUSH) return ZERO;
    out.bytes = bytes;
    return SLOW;
  }

  override async read(offset: number, bytes: number, address: number): Promise<number> {
    await this.#enter(THROTTLE_READ, bytes);
    return super.read(offset, bytes, address);
  }

  protected override async writeData(
    offset: number,
    bytes: number,
    address: number,
    flags: number,
  ): Promise<number> {
    await this.#enter(THROTTLE_WRITE, bytes);
    return super.writeData(offset, bytes, address, flags);
  }

  async writeCompressed(offset: number, bytes: number, address: number): Promise<number> {
    await this.#enter(THROTTLE_WRITE, bytes);
    return this.passCompressed(offset, bytes, address);
  }

  override async writeZeroes(offset: number, bytes: number, flags: number): Promise<number> {
    await this.#enter(THROTTLE_WRITE, bytes);
    return super.writeZeroes(offset, bytes, flags);
  }

  override async discard(offset: number, bytes: number): Promise<number> {
    if (this.context.discardUnmap) await this.#enter(THROTTLE_WRITE, bytes);
    return super.discard(offset, bytes);
  }

  override async copyUp(offset: number, bytes: number): Promise<number> {
    await this.#enter(THROTTLE_READ, bytes);
    return super.copyUp(offset, bytes);
  }

  override drainBegin(): void {
    this.#queue.drainBegin();
    super.drainBegin();
  }

  override drainEnd(): void {
    super.drainEnd();
    this.#queue.drainEnd();
  }

  override async reopen(context: OpenContext): Promise<ReopenedNode> {
    const before = { context: this.context, group: this.#queue.group };
    const group = joinGroup(context);
    this.use(context);
    this.#queue.use(group);
    return {
      commit: () => before.group.leave(),
      undo: () => {
        this.use(before.context);
        this.#queue.use(before.group);
        group.leave();
      },
    };
  }

  override async close(): Promise<void> {
    this.#queue.group.leave();
  }

  async #enter(direction: ThrottleDirection, bytes: number): Promise<void> {
    if (this.#queue.group.isLimited(direction)) await this.#queue.enter(direction, bytes);
  }
}

export const throttle: BlockDriver = {
  name: "throttle",
  members: { "throttle-group": str },
  children: [{ role: "file", optional: false, after: "throttle-group" }],
  strongOptions: ["throttle-group"],
  reopenable: ["throttle-group"],
  filtered: "file",
  childPermissions: passPermissions,
  bind({ options, findObject }) {
    const { "throttle-group": name } = options as { "throttle-group": string };
    return findObject(name)?.throttleGroup ?? missing(name);
  },
  async open(context) {
    return new ThrottleNode(context, joinGroup(context));
  },
};

function directionOf(op: Op): ThrottleDirection {
  return op === OP_READ || op === OP_CACHE ? THROTTLE_READ : THROTTLE_WRITE;
}

function joinGroup({ bound, options }: OpenContext): ThrottleGroup {
  const group = new ThrottleGroup(bound as SharedArrayBuffer);
  if (!group.join()) missing((options as { "throttle-group": string })["throttle-group"]);
  return group;
}

function missing(name: string): never {
  throw new OutportError("not-found", `Throttle group '${name}' does not exist`);
}
