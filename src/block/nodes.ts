/** The open nodes of one iothread. Main keeps the graph and says what is open. Thread: iothread. */

import { dirtyInfosOf } from "../bitmaps/node-bitmaps.ts";
import type { Reactor } from "../io/reactor.ts";
import type {
  IothreadEvent,
  IothreadHandlersOf,
  NodeInfo,
  NodeOpen,
  NodePermissions,
} from "../iothread/messages.ts";
import { ENOTSUP, strerror } from "../runtime/errno.ts";
import { assert } from "../util/error.ts";
import { backendsOf } from "./drains.ts";
import type { BlockDriver, OpenContext } from "./driver.ts";
import { isInactive, markActive } from "./inactive-nodes.ts";
import type { BlockNode } from "./node.ts";
import { dropPermissions, gainPermissions, type NodeEntry } from "./node-permissions.ts";
import { NodeReopens } from "./node-reopen.ts";
import { NO_PERMISSIONS } from "./permissions.ts";

export interface NodeTableParts {
  readonly reactor: Reactor;
  readonly drivers: readonly BlockDriver[];
  readonly log: (text: string) => void;
  readonly report?: OpenContext["report"];
}

export class NodeTable {
  #reactor: Reactor;
  #drivers: ReadonlyMap<string, BlockDriver>;
  #log: (text: string) => void;
  #report: (event: IothreadEvent) => void;
  #entries = new Map<string, NodeEntry>();
  #reopens: NodeReopens;

  constructor({ reactor, drivers, log, report }: NodeTableParts) {
    this.#reactor = reactor;
    this.#drivers = new Map(drivers.map((driver) => [driver.name, driver]));
    this.#log = log;
    this.#report = report ?? (() => {});
    this.#reopens = new NodeReopens({
      backends: () => backendsOf(reactor),
      entry: (nodeName) => this.#entry(nodeName),
      contextOf: (open) => this.#contextOf(open),
      infoOf: ({ node }) => infoOf(node),
      log,
    });
  }

  /** Its handlers, by call. */
  readonly calls: IothreadHandlersOf<
    | "node-open"
    | "node-implied"
    | "node-lock"
    | "node-close"
    | "node-permissions"
    | "node-flush"
    | "nodes-query"
    | "snapshot-take"
    | "snapshot-delete"
    | "node-backing-file"
    | "nodes-reopen"
    | "nodes-reopen-end"
  > = {
    "node-open": (params) => this.#open(params),
    "node-implied": async (params) => {
      const driver = this.#drivers.get(params.driver);
      assert(driver?.impliedChildren !== undefined, "main knows the same drivers");
      return driver.impliedChildren(this.#contextOf(params));
    },
    "node-lock": async (params) => {
      const driver = this.#drivers.get(params.driver);
      assert(driver?.encryption !== undefined, "main knows the same drivers");
      return driver.encryption.readLock(this.#contextOf(params));
    },
    "node-close": async ({ nodeName }) => {
      await this.#close(nodeName);
      return null;
    },
    "node-permissions": async ({ nodes, handedOver }) => {
      await this.#setPermissions(nodes, handedOver ?? false);
      return null;
    },
    "node-flush": async ({ nodeName }) => {
      const node = this.get(nodeName);
      return { result: node.writable ? await node.flush() : 0 };
    },
    "snapshot-take": async ({ nodeName, name, timeUs }) =>
      this.get(nodeName).takeSnapshot?.(name, timeUs) ?? -ENOTSUP,
    "snapshot-delete": async ({ nodeName, id, name }) =>
      this.get(nodeName).deleteSnapshot?.(id, name) ?? -ENOTSUP,
    "node-backing-file": async ({ nodeName, backingFile, format }) =>
      this.get(nodeName).changeBackingFile?.(backingFile, format) ?? -ENOTSUP,
    "nodes-reopen": (params) => this.#reopens.begin(params),
    "nodes-reopen-end": async ({ reopen, keep }) => {
      await this.#reopens.end(reopen, keep);
      return null;
    },
    "nodes-query": async ({ nodeNames }) => nodeNames.map((name) => infoOf(this.get(name))),
  };

  find(nodeName: string): BlockNode | undefined {
    return this.#entries.get(nodeName)?.node;
  }

  get(nodeName: string): BlockNode {
    return this.#entry(nodeName).node;
  }

  /** Closes all that is left, parents first. */
  async closeAll(): Promise<void> {
    for (const nodeName of [...this.#entries.keys()].reverse()) await this.#close(nodeName);
  }

  #entry(nodeName: string): NodeEntry {
    const entry = this.#entries.get(nodeName);
    assert(entry !== undefined, `node '${nodeName}' is open`);
    return entry;
  }

  async #open(params: NodeOpen): Promise<NodeInfo> {
    const { nodeName } = params;
    assert(!this.#entries.has(nodeName), `node '${nodeName}' is opened once`);
    const driver = this.#drivers.get(params.driver);
    assert(driver !== undefined, "main knows the same drivers");
    const node = await driver.open(this.#contextOf(params)).finally(() => params.key?.fill(0));
    markActive(node, params.active ?? true);
    this.#entries.set(nodeName, { node, permissions: NO_PERMISSIONS });
    return infoOf(node);
  }

  async #close(nodeName: string): Promise<void> {
    const { node } = this.#entry(nodeName);
    // At once: nobody may find a node that is closing.
    this.#entries.delete(nodeName);
    const result = node.writable ? await node.flush() : 0;
    if (result < 0) this.#log(`Could not flush node '${nodeName}': ${strerror(-result)}`);
    await node.close();
  }

  /** All or none. */
  async #setPermissions(nodes: readonly NodePermissions[], handedOver: boolean): Promise<void> {
    const changes = nodes.map((next) => ({ entry: this.#entry(next.nodeName), next }));
    const settled: BlockNode[] = [];
    try {
      for (const { entry, next } of changes) {
        if (next.active || isInactive(entry.node)) continue;
        await entry.node.settle?.("handover");
        settled.push(entry.node);
      }
      await gainPermissions(changes, handedOver, this.#log);
    } catch (error) {
      // What was handed over is taken back.
      for (const node of settled.reverse()) await this.#lookAgain(node);
      throw error;
    }
    await dropPermissions(changes, this.#log);
    // Children first, whose lengths may be others' doing.
    for (const { entry, next } of changes.reverse()) {
      if (next.active && isInactive(entry.node)) await this.#lookAgain(entry.node);
      markActive(entry.node, next.active);
    }
  }

  /** A node that was inactive goes on with what it knows where the host tells nothing else. */
  async #lookAgain(node: BlockNode): Promise<void> {
    try {
      await node.invalidate?.();
      node.refreshLength?.();
    } catch (error) {
      this.#log(`Could not look at node '${node.nodeName}' again: ${error}`);
    }
  }

  #contextOf(open: NodeOpen): OpenContext {
    const children: Record<string, BlockNode> = {};
    for (const [role, name] of Object.entries(open.children)) children[role] = this.get(name);
    const reactor = this.#reactor;
    return { ...open, reactor, log: this.#log, report: this.#report, children };
  }
}

/** What main keeps of it. */
export function infoOf(node: BlockNode): NodeInfo {
  const { bytes, writable } = node;
  const dirtyBitmaps = dirtyInfosOf(node);
  const description = node.describe();
  return { bytes, writable, description, ...(dirtyBitmaps === undefined ? {} : { dirtyBitmaps }) };
}
