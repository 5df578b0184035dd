/**
 * What a block driver is: one literal object in one file of block/drivers. Its schema and child
 * rules serve main, its open() serves an iothread.
 */
import type { Reactor } from "../io/reactor.ts";
import type { NodeOpen } from "../iothread/messages.ts";
import type { ObjectMembers } from "../qapi/types.ts";
import type { BlockNode } from "./node.ts";

/** What open() gets. */
export interface OpenContext extends Omit<NodeOpen, "driver" | "children"> {
  readonly reactor: Reactor;
  /** By role: "file", "backing". Open, on the same reactor. */
  readonly children: Readonly<Record<string, BlockNode>>;
}

/** What a parent uses of a child and lets others use. PERM_* bits. */
export interface Permissions {
  readonly used: number;
  readonly shared: number;
}

export interface ChildRule {
  readonly role: string;
  readonly optional: boolean;
}

export interface BlockDriver {
  /** Its BlockdevDriver value. */
  readonly name: string;
  /** Its branch of the BlockdevOptions union, without children. */
  readonly members: ObjectMembers;
  readonly children: readonly ChildRule[];
  /** What it asks of a child when its own parents ask `of`. Only drivers with children have it. */
  childPermissions?(
    role: string,
    of: Permissions,
    options: Readonly<Record<string, unknown>>,
    writable: boolean,
  ): Permissions;
  /** Throws OutportError in QSD's words; leaves nothing behind then. */
  open(context: OpenContext): Promise<BlockNode>;
}
