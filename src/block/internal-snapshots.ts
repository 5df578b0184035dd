/**
 * Internal snapshots: those that an image keeps in itself. Thread: main.
 * Spec: qapi/block-core.json blockdev-snapshot-internal-sync,
 * blockdev-snapshot-delete-internal-sync; QEMU blockdev.c, block/snapshot.c
 */
import type { SnapshotInfo } from "../qapi/block.ts";
import { ENOTSUP, EPERM, strerror } from "../runtime/errno.ts";
import { OutportError } from "../util/error.ts";
import type { BlockGraph } from "./graph.ts";
import type { GraphNode } from "./graph-node.ts";
import type { Undo } from "./transactions.ts";

/** What a snapshot is asked for with, wire names. */
export interface InternalSnapshot {
  readonly device: string;
  readonly name: string;
}

export interface InternalSnapshotDeletion {
  readonly device: string;
  readonly id?: string | undefined;
  readonly name?: string | undefined;
}

/** Inside exclusive() and a drained section. Throws OutportError, and nothing has changed. */
export async function takeInternalSnapshot(
  graph: Pick<BlockGraph, "find">,
  { device, name }: InternalSnapshot,
  timeUs: number,
): Promise<Undo> {
  const root = rootNode(graph, device);
  if (!root.info.writable) {
    throw new OutportError("permission", `Device '${device}' is read only`);
  }
  const node = snapshotNode(root);
  if (node === undefined || !isWritableDownTo(root, node)) {
    const what = `Block format '${root.driver.name}' used by device '${device}'`;
    throw new OutportError("unsupported", `${what} does not support internal snapshots`);
  }
  if (name === "") throw new OutportError("invalid", "Name is empty");
  const list = await snapshotsOf(node);
  if (list.some((one) => one.name === name)) {
    const what = `Snapshot with name '${name}' already exists`;
    throw new OutportError("in-use", `${what} on device '${device}'`);
  }
  const { nodeName, iothread } = node;
  const taken = await iothread.call("snapshot-take", { nodeName, name, timeUs });
  if (typeof taken === "number") {
    const what = `Failed to create snapshot '${name}' on device '${device}'`;
    throw new OutportError("io", `${what}: ${strerror(-taken)}`);
  }
  const undo = async (): Promise<void> => {
    const made = (await snapshotsOf(node)).findLast(({ id }) => id === taken.id);
    if (made !== undefined) await node.iothread.call("snapshot-delete", { nodeName, ...made });
  };
  return { keep: async () => {}, undo };
}

/** The same. Returns what the snapshot was. */
export async function deleteInternalSnapshot(
  graph: Pick<BlockGraph, "find">,
  { device, id, name }: InternalSnapshotDeletion,
): Promise<SnapshotInfo> {
  const root = rootNode(graph, device);
  if (id === undefined && name === undefined) {
    throw new OutportError("invalid", "Name or id must be provided");
  }
  const node = snapshotNode(root);
  const list = node === undefined ? listFails() : await snapshotsOf(node);
  const found = list.find((one) => {
    return (id === undefined || one.id === id) && (name === undefined || one.name === name);
  });
  if (node === undefined || found === undefined) {
    const which = `id '${id ?? "null"}' and name '${name ?? "null"}'`;
    const message = `Snapshot with ${which} does not exist on device '${device}'`;
    throw new OutportError("not-found", message);
  }
  const { nodeName, iothread } = node;
  const params = { nodeName, id: found.id, name: found.name };
  const isWritable = isWritableDownTo(root, node);
  const result = isWritable ? await iothread.call("snapshot-delete", params) : -EPERM;
  if (result === 0) return found;
  const what = "Failed to remove snapshot from snapshot list";
  throw new OutportError("io", `${what}: ${strerror(-result)}`);
}

/** Throws OutportError. */
export function rootNode(graph: Pick<BlockGraph, "find">, device: string): GraphNode {
  const node = graph.find(device);
  if (node === undefined) {
    const message = `Cannot find device='${device}' nor node-name='${device}'`;
    throw new OutportError("not-found", message);
  }
  if (node.parents.some(({ parent }) => parent !== null)) {
    throw new OutportError("in-use", "Need a root block node");
  }
  return node;
}

/** Whose image it is that would be part of a snapshot: of the node, or of what is all there is. */
function snapshotNode(root: GraphNode): GraphNode | undefined {
  for (let node: GraphNode | undefined = root; node !== undefined; ) {
    if (node.driver.hasSnapshots === true) return node;
    // There is no snapshot of several images.
    node = node.children.length === 1 ? node.children[0]!.child : undefined;
  }
  return undefined;
}

function isWritableDownTo(root: GraphNode, last: GraphNode): boolean {
  for (let node = root; ; node = node.children[0]!.child) {
    if (!node.info.writable || !node.active) return false;
    if (node === last) return true;
  }
}

async function snapshotsOf(node: GraphNode): Promise<readonly SnapshotInfo[]> {
  if (node.children.some(({ role }) => role === "data-file")) listFails();
  const [info] = await node.iothread.call("nodes-query", { nodeNames: [node.nodeName] });
  const { image } = info!.description;
  return (image?.snapshots ?? []) as readonly SnapshotInfo[];
}

function listFails(): never {
  const message = `Failed to get a snapshot list: ${strerror(ENOTSUP)}`;
  throw new OutportError("unsupported", message);
}
