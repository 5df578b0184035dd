/**
 * Gives open nodes new options, new children and new permissions, all or nothing: everything is
 * changed and can still be taken back, until main says which of both. In a drained section.
 * Thread: iothread.
 */
import type { NodeInfo, NodesReopen } from "../iothread/messages.ts";
import { strerror } from "../runtime/errno.ts";
import { assert, OutportError } from "../util/error.ts";
import type { BlockBackend } from "./backend.ts";
import { checkDirectAccess, checkNoDirectAccess } from "./direct-access.ts";
import type { OpenContext } from "./driver.ts";
import type { BlockNode, ReopenedNode } from "./node.ts";
import {
  dropPermissions,
  gainPermissions,
  type NodeEntry,
  type PermissionChange,
} from "./node-permissions.ts";
import { checkWriteLength } from "./permissions.ts";

export interface NodeReopensParts {
  /** Of all nodes. */
  readonly backends: () => Iterable<BlockBackend>;
  readonly entry: (nodeName: string) => NodeEntry;
  readonly contextOf: (open: NodesReopen["nodes"][number]) => OpenContext;
  readonly infoOf: (entry: NodeEntry) => NodeInfo;
  readonly log: (text: string) => void;
}

interface Reopen {
  /** Those that have been told to settle, parents first. */
  readonly settled: readonly BlockNode[];
  readonly handles: readonly ReopenedNode[];
  readonly changes: readonly PermissionChange[];
  /** Takes back what was gained. */
  readonly release: () => Promise<void>;
  /** Those whose length may have followed, children first. */
  readonly connected: readonly NodeEntry[];
  readonly users: NodesReopen["users"];
}

export class NodeReopens {
  #parts: NodeReopensParts;
  #open = new Map<number, Reopen>();
  #next = 1;

  constructor(parts: NodeReopensParts) {
    this.#parts = parts;
  }

  /** Throws OutportError, and nothing has changed. */
  async begin(params: NodesReopen): Promise<{ reopen: number; infos: readonly NodeInfo[] }> {
    const { entry, log, infoOf } = this.#parts;
    const { users } = params;
    for (const { nodeName } of params.nodes) await this.#flush(entry(nodeName));
    const settled: BlockNode[] = [];
    const reopened = new Set(params.nodes.map(({ nodeName }) => nodeName));
    const changes = params.permissions
      .filter(({ nodeName }) => !reopened.has(nodeName))
      .map((next) => ({ entry: entry(next.nodeName), next }));
    let release = async (): Promise<void> => {};
    const handles: ReopenedNode[] = [];
    const connected = params.connected.map(entry);
    try {
      // Parents first: what they still write, those below must not have settled before.
      for (const { nodeName, readOnly } of [...params.nodes].reverse()) {
        const { node } = entry(nodeName);
        await node.settle?.(readOnly ? "read-only" : null);
        settled.push(node);
      }
      release = await gainPermissions(changes, false, log);
      for (const open of params.nodes) handles.push(await this.#reopen(open, params));
      for (const one of connected) one.node.refreshLength?.();
      checkLengths(connected, params);
      checkDirectAccess(connected.map(({ node }) => node));
      if (users !== undefined) checkNoDirectAccess(entry(users.from).node);
    } catch (error) {
      await this.#undo({ settled, handles, release, connected });
      throw error;
    }
    if (users !== undefined) this.#moveUsers(entry(users.from).node, entry(users.to).node);
    const reopen = this.#next++;
    this.#open.set(reopen, { settled, handles, changes, release, connected, users });
    return { reopen, infos: connected.map(infoOf) };
  }

  /** `keep`: for good; otherwise all is as before begin(). */
  async end(number: number, keep: boolean): Promise<void> {
    const reopen = this.#open.get(number);
    assert(reopen !== undefined, "a reopen ends once");
    this.#open.delete(number);
    if (!keep) {
      const { users } = reopen;
      const { entry } = this.#parts;
      if (users !== undefined) this.#moveUsers(entry(users.to).node, entry(users.from).node);
      await this.#undo(reopen);
      return;
    }
    for (const handle of reopen.handles) handle.commit();
    await dropPermissions(reopen.changes, this.#parts.log);
  }

  #moveUsers(from: BlockNode, to: BlockNode): void {
    for (const backend of this.#parts.backends()) {
      if (backend.node === from && !backend.stays) backend.replaceNode(to);
    }
  }

  async #flush({ node }: NodeEntry): Promise<void> {
    const result = node.writable ? await node.flush() : 0;
    if (result === 0) return;
    throw new OutportError("io", `Error flushing drive: ${strerror(-result)}`);
  }

  async #reopen(
    open: NodesReopen["nodes"][number],
    { permissions }: NodesReopen,
  ): Promise<ReopenedNode> {
    const entry = this.#parts.entry(open.nodeName);
    const { node } = entry;
    assert(node.reopen !== undefined, "main knows which drivers reopen");
    const before = entry.permissions;
    const next = permissions.find(({ nodeName }) => nodeName === open.nodeName) ?? before;
    const handle = await node.reopen(this.#parts.contextOf(open), next);
    entry.permissions = { used: next.used, shared: next.shared };
    return {
      commit: handle.commit,
      undo: async () => {
        await handle.undo();
        entry.permissions = before;
      },
    };
  }

  async #undo({
    settled,
    handles,
    release,
    connected,
  }: Omit<Reopen, "changes" | "users">): Promise<void> {
    for (const handle of [...handles].reverse()) await handle.undo();
    for (const node of [...settled].reverse()) await node.unsettle?.();
    await release();
    try {
      for (const { node } of connected) node.refreshLength?.();
    } catch (error) {
      this.#parts.log(`Could not measure a node again: ${error}`);
    }
  }
}

/** Of nodes that have other limits now, and writers still. Throws OutportError. */
function checkLengths(entries: readonly NodeEntry[], { permissions }: NodesReopen): void {
  for (const { node, permissions: held } of entries) {
    const next = permissions.find(({ nodeName }) => nodeName === node.nodeName);
    checkWriteLength(node, (next ?? held).used);
  }
}
