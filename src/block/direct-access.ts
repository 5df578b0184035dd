/**
 * Direct access: others than us read and write the host file that a node is, byte for byte, such
 * as the kernel for a FUSE export. While they may, nothing changes that they don't know of: where
 * the node's bytes live, and who has to see what is written. Thread: iothread.
 *
 * It can't be taken back from them while the node is in use, so that who wants to change something
 * is refused.
 */
import { OutportError } from "../util/error.ts";
import type { Permissions } from "./driver.ts";
import type { BlockNode } from "./node.ts";

/** The host file of a node. */
export interface DirectFile {
  /** The same for all open files of one host file. */
  readonly identity: string;
  /**
   * One more open file, the caller's to close. It keeps other programs from the image as
   * `permissions` say, as long as anybody has it open. Returns a descriptor or -errno.
   */
  open(permissions: Permissions): number;
  /** Its length, which is the node's unless somebody wrote beyond the end; or -errno. */
  readonly hostBytes: number;
  /** Whoever opens it with O_DIRECT may read and write single sectors of 512 bytes. */
  readonly takesSectors: boolean;
  /** On all of this host, nobody but its node has it open for writing. */
  isOnlyOurs(): boolean;
}

/** What is known of a node that has been used so, or is watched. */
interface Marks {
  /** Those who must see each write. */
  watchers: number;
  readonly accesses: Set<DirectAccess>;
  /** Shared mappings may outlive all that is known of who wrote directly. */
  maybeMapped: DirectFile | null;
}

const marks = new WeakMap<BlockNode, Marks>();

function marksOf(node: BlockNode): Marks {
  let all = marks.get(node);
  if (all === undefined) {
    all = { watchers: 0, accesses: new Set(), maybeMapped: null };
    marks.set(node, all);
  }
  return all;
}

export class DirectAccess {
  readonly file: DirectFile;
  /** The node, and those below it through which its requests would go. */
  readonly nodes: readonly BlockNode[];
  /** Some of those whom it is for may write, now or later. */
  readonly writes: boolean;

  constructor(file: DirectFile, nodes: readonly BlockNode[], writes: boolean) {
    this.file = file;
    this.nodes = nodes;
    this.writes = writes;
    for (const node of nodes) {
      const all = marksOf(node);
      all.accesses.add(this);
      if (writes) all.maybeMapped = file;
    }
  }

  /** None of those it was for has the file open any more. */
  close(): void {
    for (const node of this.nodes) marksOf(node).accesses.delete(this);
  }
}

/** Null: `node` is no host file, or somebody must see what is written. */
export function openDirectAccess(node: BlockNode, writes: boolean): DirectAccess | null {
  const nodes: BlockNode[] = [];
  const file = node.directFile?.(nodes) ?? null;
  // The last sector of a node may reach beyond the file.
  if (file === null || file.hostBytes !== node.bytes) return null;
  if (writes && nodes.some((one) => marksOf(one).watchers > 0)) return null;
  return new DirectAccess(file, nodes, writes);
}

/** The same for an access that goes on, of a node that has come here from another thread. */
export function continueDirectAccess(node: BlockNode, writes: boolean): DirectAccess | null {
  const nodes: BlockNode[] = [];
  const file = node.directFile?.(nodes) ?? null;
  return file === null ? null : new DirectAccess(file, nodes, writes);
}

/**
 * Somebody must see all writes of this node from now on: a dirty bitmap, a threshold. Returns what
 * ends that. Throws OutportError when others write directly.
 */
export function watchWrites(node: BlockNode): () => void {
  const all = marksOf(node);
  for (const access of all.accesses) if (access.writes) throw inUse(node);
  if (all.maybeMapped !== null) {
    if (!all.maybeMapped.isOnlyOurs()) throw inUse(node);
    all.maybeMapped = null;
  }
  all.watchers++;
  return () => all.watchers--;
}

/** After a change of `nodes`: throws OutportError when others would still be at other bytes. */
export function checkDirectAccess(nodes: readonly BlockNode[]): void {
  for (const node of nodes) {
    for (const { nodes: before, file } of marksOf(node).accesses) {
      const through: BlockNode[] = [];
      const now = before[0]!.directFile?.(through) ?? null;
      const isSame =
        now?.identity === file.identity &&
        through.length === before.length &&
        through.every((one, index) => one === before[index]);
      if (!isSame) throw inUse(before[0]!);
    }
  }
}

/** Those who read and write `node` are to do it elsewhere. Throws OutportError if some can't. */
export function checkNoDirectAccess(node: BlockNode): void {
  const { accesses, maybeMapped } = marksOf(node);
  if (accesses.size > 0 || maybeMapped?.isOnlyOurs() === false) throw inUse(node);
}

function inUse({ nodeName }: BlockNode): OutportError {
  const users = "programs that the kernel lets read and write directly";
  return new OutportError("in-use", `Node '${nodeName}' is in use by ${users}`);
}
