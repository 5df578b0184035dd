/**
 * Takes a tree of nodes from one iothread to another, with all that use it. Thread: main.
 *
 * No byte can be lost, and nobody else gets at an image: everything is drained and flushed; files
 * are open and locked there before they are closed here; what lies above them, which may keep
 * metadata in memory, is closed here before it is opened there. When it can't be, all goes back.
 */
import type { NodeHistory } from "../iothread/messages.ts";
import type { Iothread } from "../iothread/pool.ts";
import { strerror } from "../runtime/errno.ts";
import { assert, OutportError } from "../util/error.ts";
import { drained } from "./drained.ts";
import type { GraphNode, RootUser } from "./graph-node.ts";
import { toldOf } from "./permission-update.ts";
import { openOf } from "./reopen.ts";

type Histories = ReadonlyMap<GraphNode, NodeHistory>;

/**
 * `nodes`: all that are connected, parents before their children. Throws OutportError, and nothing
 * has changed.
 */
export async function moveNodes(nodes: readonly GraphNode[], target: Iothread): Promise<void> {
  const source = nodes[0]!.iothread;
  assert(
    nodes.every((node) => node.iothread === source),
    "a tree lives in one iothread",
  );
  const users = nodes.flatMap(({ parents }) =>
    parents.filter(({ parent }) => parent === null).map(({ user }) => user),
  );
  if (users.some((user) => user.beforeMove === undefined)) {
    throw new OutportError("in-use", "Cannot change iothread of active block backend");
  }
  const away: RootUser[] = [];
  // The thread must not be deleted meanwhile.
  target.userCount++;
  try {
    // First: in a drained section requests that have begun to wait would never end.
    for (const user of users) {
      await user.beforeMove?.();
      away.push(user);
    }
    await drained(nodes, async () => {
      await flush(nodes, source);
      await transfer(nodes, source, target);
    });
  } finally {
    target.userCount--;
    for (const user of away) await user.afterMove?.();
  }
}

async function flush(nodes: readonly GraphNode[], source: Iothread): Promise<void> {
  for (const { nodeName } of nodes) {
    const { result } = await source.call("node-flush", { nodeName });
    if (result < 0) throw new OutportError("io", `Error flushing drive: ${strerror(-result)}`);
  }
}

async function transfer(
  nodes: readonly GraphNode[],
  source: Iothread,
  target: Iothread,
): Promise<void> {
  const files = nodes.filter(({ children }) => children.length === 0);
  const upper = nodes.filter(({ children }) => children.length > 0);
  const histories = new Map<GraphNode, NodeHistory>();
  for (const node of nodes) {
    histories.set(node, await source.call("node-history", { nodeName: node.nodeName }));
  }
  const undoFiles = await open(files, target, histories);
  try {
    for (const node of upper) await close(node, source);
    try {
      await open(upper, target, histories);
    } catch (error) {
      await openAgain(upper, source, histories);
      await restore(upper, source, histories);
      throw error;
    }
  } catch (error) {
    await undoFiles();
    throw error;
  }
  for (const node of files) await close(node, source);
  for (const node of nodes) {
    node.iothread = target;
    source.userCount--;
    target.userCount++;
  }
  await restore(nodes, target, histories);
}

/**
 * Nothing was written meanwhile: what could be opened here can be opened here again. When even that
 * fails, what was written is safe, but nothing serves it any more: that ends the process.
 */
async function openAgain(
  nodes: readonly GraphNode[],
  source: Iothread,
  histories: Histories,
): Promise<void> {
  await open(nodes, source, histories).catch((cause) => {
    const names = nodes.map(({ nodeName }) => nodeName).join(", ");
    throw new Error(`Nodes ${names} are lost on their way to another iothread`, { cause });
  });
}

/** Children first, with their permissions. Returns what takes it back, as it is when it throws. */
async function open(
  nodes: readonly GraphNode[],
  iothread: Iothread,
  histories: Histories,
): Promise<() => Promise<void>> {
  const opened: GraphNode[] = [];
  const undo = async (): Promise<void> => {
    for (const node of opened.reverse()) await close(node, iothread);
  };
  try {
    for (const node of [...nodes].reverse()) {
      const { handedOver } = historyOf(node, histories);
      const info = await iothread.call("node-open", { ...openOf(node), handedOver });
      opened.push(node);
      node.info = info;
    }
    await iothread.call("node-permissions", { nodes: nodes.map(toldOf), handedOver: true });
  } catch (error) {
    await undo();
    throw error;
  }
  return undo;
}

async function close({ nodeName }: GraphNode, iothread: Iothread): Promise<void> {
  await iothread.call("node-close", { nodeName });
}

async function restore(
  nodes: readonly GraphNode[],
  iothread: Iothread,
  histories: Histories,
): Promise<void> {
  for (const node of nodes) {
    const history = historyOf(node, histories);
    await iothread.call("node-history-restore", { nodeName: node.nodeName, history });
  }
}

function historyOf(node: GraphNode, histories: Histories): NodeHistory {
  const history = histories.get(node);
  assert(history !== undefined, "every node's history was taken");
  return history;
}
